"""Integer latents of SMC as bytes: gates for silent channels, rANS with tables chosen by the previous frame's integers.

No float takes part: tables are 16-bit integers from the bundle, and which one applies follows from integers that both
ends have. A frame's symbols come in three runs: one gate per channel, the values of the channels whose gate is open in
raster order, then the escaped magnitudes. The gate's table follows from the channel's gate in the frame before
(0 no frame before, 1 closed, 2 open), a value's from the value before at the same place (0 no frame before, then
|value| = 0, 1, >= 2). A value's symbol counts 0, -1, 1, -2, 2 ..: what begins at 0 in its table does not move the coder
while its state is 0, so that the zeros at a frame's end are free and a frame of zeros alone is b"".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scene_edge.codec.errors import EntropyError
from scene_edge.codec.rans import MAX_SYMBOLS, PRECISION, TOTAL, RansDecoder, RansEncoder, Tables, as_array, quantise

I16: TypeAlias = NDArray[np.int16]

CONTEXTS = 4
GATE_CONTEXTS = 3
MAX_CHANNELS = 512
MAX_GRID = 1024
"""Largest height or width of a latent: 8192 luma samples at stride 8."""
MAX_ABS = 127
"""Largest magnitude with a symbol of its own; beyond it comes an escape."""

END_BITS = 16
"""What a frame that is not silent takes beyond its ideal length, on average: the coder's last state and whole bytes."""

_ESCAPE_BITS = 17
"""Elias-gamma prefix of at most 16 zeros: int16 reaches 32768."""
_COIN = Tables.from_frequencies([[TOTAL // 2, TOTAL // 2]])


@dataclass(frozen=True, slots=True, eq=False)
class LatentTables:
    """Cumulative to 65536: symbols_cdf [C, 4, A + 1], gate_cdf [C, 3, 3]; A = 2 * max_abs + 2, the last an escape."""

    symbols_cdf: NDArray[np.uint32]
    gate_cdf: NDArray[np.uint32]
    max_abs: int
    symbols: Tables = field(init=False, repr=False)
    gates: Tables = field(init=False, repr=False)
    digest: bytes = field(init=False)
    """SHA-256 over everything that decides a coded bit."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_abs <= MAX_ABS:
            raise EntropyError("largest coded magnitude out of range", got=self.max_abs, allowed=f"1..{MAX_ABS}")
        symbols, gates = np.asarray(self.symbols_cdf), np.asarray(self.gate_cdf)
        channels = symbols.shape[0] if symbols.ndim == 3 else 0
        if not 1 <= channels <= MAX_CHANNELS or symbols.shape[1:] != (CONTEXTS, 2 * self.max_abs + 3):
            raise EntropyError(
                "latent tables of the wrong shape",
                got=symbols.shape,
                allowed=f"[1..{MAX_CHANNELS}, {CONTEXTS}, {2 * self.max_abs + 3}]",
            )
        if gates.shape != (channels, GATE_CONTEXTS, 3):
            raise EntropyError("gate tables of the wrong shape", got=gates.shape, allowed=(channels, GATE_CONTEXTS, 3))
        set_field = object.__setattr__
        set_field(self, "symbols", Tables(symbols.reshape(channels * CONTEXTS, -1)))
        set_field(self, "gates", Tables(gates.reshape(channels * GATE_CONTEXTS, 3)))
        set_field(self, "symbols_cdf", self.symbols.cdf.reshape(symbols.shape))
        set_field(self, "gate_cdf", self.gates.cdf.reshape(gates.shape))
        sums = hashlib.sha256(f"latents 1 {channels} {self.max_abs}".encode("ascii"))
        sums.update(self.symbols.cdf.astype("<u4").tobytes())
        sums.update(self.gates.cdf.astype("<u4").tobytes())
        set_field(self, "digest", sums.digest())

    @property
    def channels(self) -> int:
        return int(self.symbols_cdf.shape[0])

    @classmethod
    def fit(cls, samples: Iterable[ArrayLike], max_abs: int | None = None) -> LatentTables:
        """Tables from the statistics of GOPs of latents, each an integer array [T, C, h, w] whose first frame is a key.

        Contexts that were seen little lean on their channel as a whole, so that no table is overconfident.
        """
        gops = [_checked_gop(sample) for sample in samples]
        if not gops or len({gop.shape[1] for gop in gops}) != 1:
            raise EntropyError("latents to fit tables to must exist and agree in channels", got=len(gops))
        if max_abs is None:
            max_abs = min(max(1, *(int(np.abs(gop.astype(np.int32)).max(initial=0)) for gop in gops)), 31)
        channels, alphabet = gops[0].shape[1], 2 * max_abs + 2
        values = np.zeros((channels, CONTEXTS, alphabet), np.int64)
        gates = np.zeros((channels, GATE_CONTEXTS, 2), np.int64)
        for gop in gops:
            previous: I16 | None = None
            for z in gop:
                rows, opened = _gate_rows(previous, channels), z.any(axis=(1, 2))
                gates.reshape(-1, 2)[rows, opened.astype(np.int64)] += 1
                active = np.flatnonzero(opened)
                table, symbol = _value_rows(previous, active, z.shape), _symbols_of(z[active], max_abs)
                values += np.bincount(table * alphabet + symbol, minlength=values.size).reshape(values.shape)
                previous = z
        return cls(_cumulative(_smoothed(values, strength=64)), _cumulative(_smoothed(gates, strength=8)), max_abs)

    def to_tensors(self) -> dict[str, NDArray[np.uint16]]:
        """As a bundle stores them: frequencies u16 "symbols" [C, 4, A] and "gates" [C, 3, 2]."""
        return {
            "symbols": np.diff(self.symbols_cdf.astype(np.int64), axis=2).astype(np.uint16),
            "gates": np.diff(self.gate_cdf.astype(np.int64), axis=2).astype(np.uint16),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[np.generic]]) -> LatentTables:
        """The inverse of `to_tensors`. Raises EntropyError for anything else."""
        for name in ("symbols", "gates"):
            found = tensors.get(name)
            if found is None or found.dtype != np.uint16 or found.ndim != 3:
                got = "nothing" if found is None else f"{found.dtype} {found.shape}"
                raise EntropyError(
                    f"table tensor {name} is missing or of the wrong kind", got=got, allowed="uint16 [C, n, A]"
                )
        symbols, gates = tensors["symbols"], tensors["gates"]
        alphabet = symbols.shape[2]
        if alphabet % 2 or not 4 <= alphabet <= 2 * MAX_ABS + 2:
            raise EntropyError("latent alphabet out of range", got=alphabet, allowed=f"even, 4..{2 * MAX_ABS + 2}")
        return cls(_cumulative(symbols), _cumulative(gates), alphabet // 2 - 1)

    def estimate_bits(self, gop: ArrayLike) -> float:
        """Ideal code length in bits of a GOP [T, C, h, w] whose first frame is a key; a frame of zeros is free.

        What is written has about END_BITS more in each frame that is not silent.
        """
        checked = _checked_gop(gop)
        log_symbol = PRECISION - np.log2(self.symbols.frequencies)
        log_gate = PRECISION - np.log2(self.gates.frequencies)
        bits = 0.0
        previous: I16 | None = None
        for z in checked:
            opened = z.any(axis=(1, 2))
            active = np.flatnonzero(opened)
            if active.size:
                symbols = _symbols_of(z[active], self.max_abs)
                bits += float(log_gate[_gate_rows(previous, self.channels), opened.astype(np.int64)].sum())
                bits += float(log_symbol[_value_rows(previous, active, z.shape), symbols].sum())
                escaped = np.abs(z[active].astype(np.int64)).reshape(-1)[symbols == 2 * self.max_abs + 1]
                bits += sum(2 * (int(value) - self.max_abs).bit_length() for value in escaped)
            previous = z
        return bits


class LatentCoder:
    """Codes one stream of latents frame by frame; encoder and decoder are two instances that see the same frames.

    After an error the state is as it was before: the caller waits for a key packet and calls `reset`.
    """

    def __init__(self, tables: LatentTables) -> None:
        self.tables = tables
        self._previous: I16 | None = None

    def reset(self) -> None:
        """Forget the frame before: what a key packet begins with."""
        self._previous = None

    def encode(self, z: I16) -> bytes:
        """z int16 [C, h, w] -> payload; b"" if all of it is zero."""
        _check_shape(z.shape, self.tables)
        if z.dtype != np.int16:
            raise EntropyError("latents must be 16-bit integers", got=z.dtype, allowed="int16")
        previous = self._matching_previous(z.shape)
        opened = z.any(axis=(1, 2))
        self._previous = z.copy()
        active = np.flatnonzero(opened)
        if not active.size:
            return b""
        tables, max_abs = self.tables, self.tables.max_abs
        values = z[active]
        symbols = _symbols_of(values, max_abs)
        encoder = RansEncoder()
        encoder.push(opened.astype(np.int64), _gate_rows(previous, tables.channels), tables.gates)
        encoder.push(symbols, _value_rows(previous, active, z.shape), tables.symbols)
        escaped = values.reshape(-1)[symbols == 2 * max_abs + 1].tolist()
        if escaped:
            encoder.push([bit for value in escaped for bit in _escape_bits(value, max_abs)], 0, _COIN)
        return encoder.finish()

    def decode(self, payload: bytes, shape: tuple[int, int, int]) -> I16:
        """Payload -> int16 [C, h, w]. Raises EntropyError if the payload is damaged or does not fit the shape."""
        _check_shape(shape, self.tables)
        previous = self._matching_previous(shape)
        tables, max_abs = self.tables, self.tables.max_abs
        z: I16 = np.zeros(shape, np.int16)
        if payload:
            decoder = RansDecoder(payload)
            active = np.flatnonzero(decoder.read(_gate_rows(previous, tables.channels), tables.gates))
            escaped = []
            # Channel by channel, so that a few bytes that open every channel of a large picture are found out early.
            for channel in active:
                rows = _value_rows(previous, np.asarray([channel]), shape)
                symbols = as_array(decoder.read(rows, tables.symbols))
                if not symbols.any():
                    raise EntropyError("payload is damaged: it opens a channel in which there is nothing")
                escaped += [(channel, place) for place in np.flatnonzero(symbols == 2 * max_abs + 1).tolist()]
                z[channel] = _values_of(symbols).reshape(shape[1:])
            for channel, place in escaped:
                z[channel].reshape(-1)[place] = _read_escape(decoder, max_abs)
            decoder.finish()
            if not active.size:
                raise EntropyError("payload is damaged: there are bytes, but no channel is open")
        self._previous = z.copy()
        return z

    def _matching_previous(self, shape: tuple[int, ...]) -> I16 | None:
        if self._previous is not None and self._previous.shape != shape:
            raise EntropyError(
                "latents change their shape within a GOP", got=shape, allowed=self._previous.shape, hint="Send a key."
            )
        return self._previous


def _check_shape(shape: tuple[int, ...], tables: LatentTables) -> None:
    if len(shape) != 3 or shape[0] != tables.channels or not all(1 <= side <= MAX_GRID for side in shape[1:]):
        raise EntropyError(
            "latents of the wrong shape", got=shape, allowed=f"[{tables.channels}, 1..{MAX_GRID}, 1..{MAX_GRID}]"
        )
    if shape[0] * shape[1] * shape[2] > MAX_SYMBOLS // 2:
        raise EntropyError("too many latents in one frame", got=shape, allowed=f"{MAX_SYMBOLS // 2} values")


def _checked_gop(sample: ArrayLike) -> I16:
    gop = np.asarray(sample)
    if gop.ndim != 4 or gop.dtype.kind not in "iu" or 0 in gop.shape:
        raise EntropyError("a GOP of latents must be integers [T, C, h, w]", got=f"{gop.dtype} {gop.shape}")
    narrow = gop.astype(np.int16)
    if (narrow != gop).any():
        raise EntropyError("latents do not fit 16 bits", got=f"{gop.min()}..{gop.max()}")
    return narrow


def _gate_rows(previous: I16 | None, channels: int) -> NDArray[np.int64]:
    """Table of each channel's gate."""
    first = np.arange(channels, dtype=np.int64) * GATE_CONTEXTS
    return first if previous is None else first + 1 + previous.any(axis=(1, 2))


def _value_rows(previous: I16 | None, active: NDArray[np.intp], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Table of each value of the open channels, in raster order."""
    first = active.astype(np.int64) * CONTEXTS
    if previous is None:
        return np.repeat(first, shape[1] * shape[2])
    before = previous[active]
    # Not abs(): that of -32768 does not fit 16 bits.
    context = 1 + (before != 0) + ((before > 1) | (before < -1))
    rows: NDArray[np.int64] = (first[:, None, None] + context).reshape(-1)
    return rows


def _symbols_of(values: I16, max_abs: int) -> NDArray[np.int64]:
    """0, -1, 1, -2, 2 .. -> 0, 1, 2, 3, 4 ..; whatever lies beyond max_abs -> the escape symbol."""
    wide = values.reshape(-1).astype(np.int64)
    symbols: NDArray[np.int64] = np.minimum((wide << 1) ^ (wide >> 63), 2 * max_abs + 1)
    return symbols


def _values_of(symbols: NDArray[np.int64]) -> NDArray[np.int64]:
    values: NDArray[np.int64] = (symbols >> 1) ^ -(symbols & 1)
    return values


def _escape_bits(value: int, max_abs: int) -> list[int]:
    """Sign, then the excess over max_abs in Elias-gamma form."""
    excess = abs(value) - max_abs
    length = excess.bit_length()
    return [int(value < 0), *[0] * (length - 1), *((excess >> place) & 1 for place in range(length - 1, -1, -1))]


def _read_escape(decoder: RansDecoder, max_abs: int) -> int:
    (negative,) = decoder.read(0, _COIN, 1)
    length = 1
    while decoder.read(0, _COIN, 1) == [0]:
        length += 1
        if length > _ESCAPE_BITS:
            raise EntropyError("payload is damaged: an escaped value is too large")
    excess = 1
    for bit in decoder.read(0, _COIN, length - 1):
        excess = excess << 1 | bit
    magnitude = max_abs + excess
    if magnitude > 32767 + negative:
        raise EntropyError("payload is damaged: an escaped value is too large", got=magnitude)
    return -magnitude if negative else magnitude


def _smoothed(counts: NDArray[np.int64], strength: int) -> NDArray[np.uint32]:
    """Counts [C, contexts, A] -> frequencies, by integers throughout.

    Each context takes `strength` pseudo-counts spread as its channel is, the channel 16 spread as all channels are.
    """
    scale = 1 << 12
    everywhere = counts.sum(axis=(0, 1)) * scale
    everywhere = everywhere // max(1, int(counts.sum())) + 1
    channel = counts.sum(axis=1) * scale + everywhere * 16
    channel = channel * scale // channel.sum(axis=-1, keepdims=True) + 1
    return quantise(counts * scale + channel[:, None, :] * strength)


def _cumulative(frequencies: NDArray[np.generic]) -> NDArray[np.uint32]:
    cdf = np.zeros((*frequencies.shape[:-1], frequencies.shape[-1] + 1), np.uint32)
    np.cumsum(frequencies, axis=-1, dtype=np.uint32, out=cdf[..., 1:])
    return cdf
