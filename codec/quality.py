"""The qualities of an SMC bundle, each with a quantiser step and tables of its own, and the packets coded with them.

A bundle's manifest names `quality_steps` (in any order, mostly the finest first) and the file of `tables`, which holds
"q<index>.flags", "q<index>.places" and "q<index>.values" for each of them. Its `hold` is how long a latent stands: only
every `hold`-th frame of a GOP, from its first on, has one of its own, and only those are coded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import BundleError, EntropyError, PacketError
from scene_edge.codec.latents import I16, LatentDecoder, LatentTables
from scene_edge.codec.packet import CODEC_SMC_GOP, DELTA, KEY, SemanticPacket
from scene_edge.codec.planes import ALIGN, MAX_SIDE, aligned, within

MAX_QUALITIES = 16
STRIDES = (8, 16, 32)
MAX_HOLD = 30
MAX_QP = 51
MAX_STEP = 1e6
"""Largest quantiser step: times the largest latent it is far below what a float holds."""


@dataclass(frozen=True, slots=True, eq=False)
class Quality:
    """`step` times the coded integers is the latent."""

    step: float
    tables: LatentTables


def load_qualities(bundle: Bundle) -> tuple[Quality, ...]:
    """The qualities of an SMC bundle, in the order of its manifest. Raises BundleError."""
    if bundle.kind != "smc":
        raise BundleError(f"bundle {bundle.name} is no SMC network", got=bundle.kind, allowed="smc")
    steps, file = bundle.parameters.get("quality_steps"), bundle.parameters.get("tables")
    if not (isinstance(steps, list) and 1 <= len(steps) <= MAX_QUALITIES and all(map(_is_step, steps))):
        raise BundleError(
            f"bundle {bundle.name}: quality_steps is not usable",
            got=str(steps)[:200],
            allowed=f"a list of 1..{MAX_QUALITIES} numbers above 0, at most {MAX_STEP:g}",
        )
    if not isinstance(file, str):
        raise BundleError(f"bundle {bundle.name} names no entropy tables", got=str(file)[:80])
    tensors = bundle.tensors(file)
    try:
        tables = [LatentTables.from_tensors(tensors, f"q{index}.") for index in range(len(steps))]
    except EntropyError as error:
        raise BundleError(f"bundle {bundle.name}: its entropy tables are not usable", got=str(error)) from error
    channels = bundle.parameters.get("channels")
    if any(found.channels != channels for found in tables):
        raise BundleError(
            f"bundle {bundle.name}: tables for another number of channels",
            got=[found.channels for found in tables],
            allowed=str(channels),
        )
    return tuple(Quality(float(step), found) for step, found in zip(steps, tables, strict=True))


def seen_size(bundle: Bundle, width: int, height: int) -> tuple[int, int]:
    """Width and height of what an SMC bundle looks at, where pictures are of this size, in luma samples.

    `max_side` of the bundle says how long the longer side may be; what is larger is looked at smaller, in its shape.
    Raises BundleError.
    """
    most = bundle.parameters.get("max_side", MAX_SIDE)
    if not isinstance(most, int) or isinstance(most, bool) or not ALIGN <= most <= MAX_SIDE:
        raise BundleError(
            f"bundle {bundle.name}: max_side is not usable", got=str(most)[:80], allowed=f"{ALIGN}..{MAX_SIDE}"
        )
    return within(width, height, most)


def latent_shape(bundle: Bundle, width: int, height: int) -> tuple[int, int, int]:
    """[C, h, w] of an SMC bundle's latents for pictures of width x height luma samples. Raises BundleError."""
    width, height = seen_size(bundle, width, height)
    channels, stride = bundle.parameters.get("channels"), bundle.parameters.get("stride")
    if not isinstance(channels, int) or not isinstance(stride, int) or stride not in STRIDES:
        raise BundleError(
            f"bundle {bundle.name}: channels or stride is not usable",
            got=f"{channels}, {stride}"[:80],
            allowed=f"a number, and one of {', '.join(map(str, STRIDES))}",
        )
    return channels, aligned(height) // stride, aligned(width) // stride


def hold_of(bundle: Bundle) -> int:
    """For how many frames a latent of an SMC bundle stands; 1 where the bundle does not say. Raises BundleError."""
    hold = bundle.parameters.get("hold", 1)
    if not isinstance(hold, int) or isinstance(hold, bool) or not 1 <= hold <= MAX_HOLD:
        raise BundleError(f"bundle {bundle.name}: hold is not usable", got=str(hold)[:80], allowed=f"1..{MAX_HOLD}")
    return hold


def fused_from_qp(bundle: Bundle) -> float:
    """The QP from which on an SMC bundle's fusion helps: pictures coded more finely are best left as they are.

    0 where the bundle does not say: all are fused. Raises BundleError.
    """
    value = bundle.parameters.get("fused_from_qp", 0)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= MAX_QP:
        raise BundleError(
            f"bundle {bundle.name}: fused_from_qp is not usable", got=str(value)[:80], allowed=f"0..{MAX_QP}"
        )
    return float(value)


def tensors_of(tables: Sequence[LatentTables]) -> dict[str, NDArray[np.uint16]]:
    """What the file of tables of a bundle holds: one entry of `tables` for each of its quality steps."""
    tensors: dict[str, NDArray[np.uint16]] = {}
    for index, found in enumerate(tables):
        tensors |= found.to_tensors(f"q{index}.")
    return tensors


class PacketDecoder:
    """The integer latents of a stream of packets for one picture size, [C, h, w] = `shape`; `hold` as in the bundle."""

    def __init__(self, qualities: Sequence[Quality], shape: tuple[int, int, int], hold: int = 1) -> None:
        self._qualities, self._shape, self._hold = tuple(qualities), shape, hold
        self._decoder: LatentDecoder | None = None
        self._follows: tuple[int, int, int] | None = None
        self._frames = 0
        self._standing: I16 = np.zeros(shape, np.int16)

    @classmethod
    def of(cls, bundle: Bundle, width: int, height: int) -> PacketDecoder:
        """For a bundle's packets at width x height luma samples. Raises BundleError."""
        return cls(load_qualities(bundle), latent_shape(bundle, width, height), hold_of(bundle))

    def decode(self, packet: SemanticPacket) -> list[I16]:
        """One array for each frame of a key or delta packet.

        Raises PacketError for a packet of an unknown codec or quality or one that does not follow the one before,
        EntropyError for a damaged one; after either, packets are refused until the next key packet.
        """
        decoder, follows = self._decoder, self._follows
        self._decoder = self._follows = None
        if packet.kind not in (KEY, DELTA) or packet.codec_id != CODEC_SMC_GOP:
            raise PacketError(
                "not a packet of latents",
                got=f"kind {packet.kind}, codec {packet.codec_id}",
                allowed=f"key or delta, codec {CODEC_SMC_GOP}",
            )
        quality = self.quality_of(packet)
        if packet.kind == KEY:
            decoder, self._frames = LatentDecoder(quality.tables), 0
        elif decoder is None or (packet.session_id, packet.first_seq, packet.quality) != follows:
            raise PacketError(
                "a delta packet does not follow the one before",
                got=f"frame {packet.first_seq}, quality {packet.quality}",
                allowed="a key packet" if follows is None else f"frame {follows[1]}, quality {follows[2]}",
            )
        latents = self._spread(decoder, packet)
        self._decoder = decoder
        self._follows = (packet.session_id, packet.first_seq + packet.count, packet.quality)
        return latents

    def _spread(self, decoder: LatentDecoder, packet: SemanticPacket) -> list[I16]:
        """What the packet codes, each latent at all frames for which it stands."""
        own = [number % self._hold == 0 for number in range(self._frames, self._frames + packet.count)]
        coded = decoder.decode(packet.body, sum(own), self._shape) if any(own) else []
        if packet.body and not coded:
            raise EntropyError("a packet codes something, and no frame of it has a latent of its own")
        fresh, latents = iter(coded), []
        for is_own in own:
            self._standing = next(fresh) if is_own else self._standing
            latents.append(self._standing)
        self._frames += packet.count
        return latents

    def quality_of(self, packet: SemanticPacket) -> Quality:
        if packet.quality >= len(self._qualities):
            raise PacketError("unknown quality", got=packet.quality, allowed=f"0..{len(self._qualities) - 1}")
        return self._qualities[packet.quality]


def _is_step(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MAX_STEP
