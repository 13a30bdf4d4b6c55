"""The server's half of SMC: packets -> integer latents -> fused pictures, with the state of one GOP carried along.

`latent` tensors are the decoded integers times the quantiser step of the packet's quality. Where a packet is missing
the latent is zero: the decoder then works from the lossy picture alone, as it was trained to.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from scene_edge.codec.bundle import Bundle, shipped_bundles, shipped_zoo
from scene_edge.codec.errors import BundleError, FormatError, PacketError
from scene_edge.codec.media import magnified, reduced
from scene_edge.codec.packet import SemanticPacket
from scene_edge.codec.planes import U8, Planes, aligned, pack, unpack
from scene_edge.codec.quality import PacketDecoder, fused_from_qp, latent_shape, seen_size
from scene_edge.inference.session import Session, open_session

PREFERENCE = ("openvino", "onnx", "litert")

UNCHANGED = np.uint8(128)
"""What stands for no change where changes are samples."""

log = structlog.get_logger(__name__)


class FusionDecoder:
    """SMC decoder of one camera and size. Not thread-safe: one owner.

    Shapes: pictures width x height; latents int16 `latent_shape`. Where the bundle looks at smaller pictures than
    these, what it changes there is put onto the whole ones. Raises BundleError for a bundle of another kind,
    EngineError where no runtime opens it.
    """

    def __init__(
        self,
        bundle: Bundle,
        width: int,
        height: int,
        *,
        prefer: Sequence[str] = PREFERENCE,
        precision: str = "int8",
        threads: int | None = None,
        session: Session | None = None,
    ) -> None:
        self._packets = PacketDecoder.of(bundle, width, height)
        self._fused_from_qp = fused_from_qp(bundle)
        self.latent_shape = latent_shape(bundle, width, height)
        self.bundle, self.width, self.height = bundle, width, height
        self._seen = seen_size(bundle, width, height)
        rows, columns = (aligned(side) // 4 for side in reversed(self._seen))
        self.session = session or open_session(
            bundle, "decoder", height=rows, width=columns, prefer=prefer, precision=precision, threads=threads
        )
        shapes = {name: info.shape for name, info in self.session.inputs.items()}
        self._zero_lossy = np.zeros(shapes["state_lossy"], np.float32)
        self._zero_fuse = np.zeros(shapes["state_fuse"], np.float32)
        self._state_lossy, self._state_fuse = self._zero_lossy, self._zero_fuse

    @property
    def engine(self) -> str:
        return f"{self.session.engine} {self.session.precision}"

    def decode_packet(self, packet: SemanticPacket) -> list[NDArray[np.int16]]:
        """The integer latents of a packet's frames, in order.

        Raises PacketError for a packet that is made for another bundle, size or place in the GOP, EntropyError for a
        damaged payload; after either, packets are refused until the next key packet.
        """
        self._check(packet)
        return self._packets.decode(packet)

    def step_of(self, packet: SemanticPacket) -> float:
        """The quantiser step that belongs to a packet's quality. Raises PacketError."""
        return self._packets.quality_of(packet).step

    def fuse(
        self,
        lossy: Planes,
        latent: NDArray[np.int16] | None,
        key: bool,
        step: float | None = None,
        qp: float | None = None,
    ) -> Planes:
        """The fused picture. `key` starts a GOP (states are cleared); latent None is a frame without semantics.

        `step` is the quantiser's, of the packet that the latent came in; `qp` is the video's. Where that is so low that
        fusion would only do harm, the picture is returned as it is, and the next one is fused as if it began a GOP.
        Raises FormatError for a latent without a step.
        """
        if (lossy.width, lossy.height) != (self.width, self.height):
            raise FormatError(
                "picture of another size", got=f"{lossy.width}x{lossy.height}", allowed=f"{self.width}x{self.height}"
            )
        passed = qp is not None and qp < self._fused_from_qp
        if key or passed:
            self._state_lossy, self._state_fuse = self._zero_lossy, self._zero_fuse
        if passed:
            return lossy
        values = np.zeros((1, *self.latent_shape), np.float32)
        if latent is not None:
            if step is None:
                raise FormatError("a latent without its quantiser's step", hint="Take both from latent_of or step_of.")
            np.multiply(latent, np.float32(step), out=values[0])
        seen = reduced(lossy, *self._seen)
        out = self.session.run(
            {
                "lossy": pack(seen)[None],
                "latent": values,
                "state_lossy": self._state_lossy,
                "state_fuse": self._state_fuse,
            }
        )
        self._state_lossy, self._state_fuse = out["next_lossy"], out["next_fuse"]
        fused = unpack(np.asarray(out["fused"], np.uint8)[0], *self._seen)
        return fused if seen is lossy else changed_likewise(lossy, seen, fused)

    def close(self) -> None:
        self.session.close()

    def _check(self, packet: SemanticPacket) -> None:
        if packet.bundle_digest != self.bundle.short_digest:
            raise PacketError("packet was made with another bundle", got=packet.bundle_digest.hex())
        if (packet.width, packet.height) != (self.width, self.height):
            raise PacketError(
                "packet is for another size",
                got=f"{packet.width}x{packet.height}",
                allowed=f"{self.width}x{self.height}",
            )


def changed_likewise(picture: Planes, small: Planes, changed: Planes) -> Planes:
    """The picture with the change that its small copy went through: the fine detail of its own stays.

    Changes by more than half the range are cut off there.
    """
    wide = magnified(Planes(*map(_offset, _each(changed), _each(small))), picture.width, picture.height)
    return Planes(*map(_added, _each(picture), _each(wide)))


def _each(planes: Planes) -> tuple[U8, U8, U8]:
    return planes.y, planes.u, planes.v


def _offset(changed: U8, small: U8) -> U8:
    """What was added, with UNCHANGED for nothing."""
    return (changed.astype(np.int16) - small + np.int16(UNCHANGED)).clip(0, 255).astype(np.uint8)


def _added(plane: U8, change: U8) -> U8:
    """plane + change - UNCHANGED, kept within 0..255: in 8 bits and in place, several times as fast as in 16."""
    out = np.invert(plane)
    step = np.full_like(change, UNCHANGED)  # numpy compares two arrays ten times as fast as an array and a number
    np.maximum(change, step, out=step)
    step -= UNCHANGED
    np.minimum(step, out, out=step)
    np.add(plane, step, out=out)
    step.fill(UNCHANGED)
    np.minimum(change, step, out=step)
    np.subtract(UNCHANGED, step, out=step)
    np.minimum(step, out, out=step)
    out -= step
    return out


class LatentFeed:
    """Hands out each frame's latent from packets that come frame by frame; a bad packet costs its frames, no more."""

    def __init__(self, decoder: FusionDecoder) -> None:
        self.decoder = decoder
        self._ready: dict[int, tuple[NDArray[np.int16], float]] = {}
        self._seen: tuple[int, int, int] | None = None

    def latent_of(self, packet: SemanticPacket | None, seq: int) -> tuple[NDArray[np.int16] | None, float | None]:
        """(latent, step) of frame `seq`. Raises PacketError or EntropyError once per bad packet, then gives None."""
        if packet is None:
            return None, None
        key = (packet.session_id, packet.first_seq, packet.count)
        if key != self._seen:
            self._seen = key
            self._ready.clear()
            latents, step = self.decoder.decode_packet(packet), self.decoder.step_of(packet)
            self._ready = {packet.first_seq + offset: (latent, step) for offset, latent in enumerate(latents)}
        return self._ready.pop(seq, (None, None))


class BundleShelf:
    """The SMC bundles that this server knows, found by the eight digest bytes that a packet names.

    With a key, only those that it signed."""

    def __init__(self, extra: Sequence[str] = (), zoo: Path | None = None, *, public_key: bytes | None = None) -> None:
        self._extra, self._public_key = tuple(extra), public_key
        self._zoo = shipped_zoo() if zoo is None else zoo
        self._known: dict[bytes, Bundle] | None = None

    def find(self, digest: bytes) -> Bundle:
        """Raises BundleError for a digest that no bundle here has."""
        known = self._load()
        try:
            return known[digest[:8]]
        except KeyError:
            names = ", ".join(f"{b.name} {d.hex()}" for d, b in known.items()) or "none"
            raise BundleError(
                "the camera uses a bundle that this server does not have",
                got=digest[:8].hex(),
                allowed=names,
                hint="Add its folder to fusion.bundles.",
            ) from None

    def _load(self) -> dict[bytes, Bundle]:
        if self._known is None:
            folders = [*self._extra, *(str(self._zoo / name) for name in shipped_bundles(self._zoo))]
            opened = [_open_or_skip(folder, self._public_key) for folder in folders]
            self._known = {bundle.short_digest: bundle for bundle in opened if bundle is not None}
        return self._known


def _open_or_skip(folder: str, public_key: bytes | None) -> Bundle | None:
    """One broken bundle must not take the others away: it is reported, and its cameras degrade to their H.264."""
    try:
        bundle = Bundle.open(folder, public_key=public_key)
    except BundleError as error:
        log.error("bundle not used", bundle=folder, error=str(error))
        return None
    return bundle if bundle.kind == "smc" else None
