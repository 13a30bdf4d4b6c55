"""Integer latents of SMC as bytes: the frames of one packet are one rANS message, with 16-bit tables from a bundle.

No float takes part: which table applies follows from integers that both ends have (contexts.py). A message knows no
frames: rANS is last in, first out, and a packet waits for its last frame anyway, so that one message's end is paid for
once instead of thirty times. What comes first in its table does not move the coder while its state is 0: silence at
the end of a packet is free, and a packet of silence alone is b"".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scene_edge.codec.contexts import (
    FLAG_CONTEXTS,
    I16,
    I64,
    PASSES,
    PLACE_CONTEXTS,
    VALUE_CONTEXTS,
    Memory,
    flag_row,
    place_groups,
    place_rows,
    symbolise,
    value_rows,
    values_of,
)
from scene_edge.codec.errors import EntropyError
from scene_edge.codec.packet import MAX_FRAMES
from scene_edge.codec.rans import MAX_SYMBOLS, TOTAL, RansDecoder, RansEncoder, Tables, as_array, quantise

__all__ = ["I16", "FrameCode", "LatentDecoder", "LatentEncoder", "LatentTables", "message"]

MAX_CHANNELS = 256
MAX_GRID = 1024
"""Largest height or width of a latent: 16384 luma samples at stride 16."""
MAX_ABS = 127
"""Largest magnitude with a symbol of its own; beyond it comes an escape."""
MAX_FITTED_ABS = 15

_ESCAPE_BITS = 17
"""Elias-gamma prefix of at most 16 zeros: int16 reaches 32768."""
_COIN = Tables.from_frequencies([[TOTAL // 2, TOTAL // 2]])

_Run: TypeAlias = tuple[I64, I64, Tables]
"""Symbols, the row of each, their tables."""


@dataclass(frozen=True, slots=True, eq=False)
class LatentTables:
    """Frequencies u16 that sum to 65536: flags [3, 2], places [244, 2], values [C, 40, A] with A = 2 max_abs + 2.

    The last value symbol is the escape.
    """

    flags: Tables
    places: Tables
    values: Tables
    channels: int = field(init=False)
    max_abs: int = field(init=False)

    def __post_init__(self) -> None:
        for name, tables, count in (("flags", self.flags, FLAG_CONTEXTS), ("places", self.places, PLACE_CONTEXTS)):
            if (tables.count, tables.alphabet) != (count, 2):
                raise EntropyError(
                    f"latent tables of the wrong shape: {name}", got=(tables.count, tables.alphabet), allowed=(count, 2)
                )
        channels, rest = divmod(self.values.count, VALUE_CONTEXTS)
        if rest or not 1 <= channels <= MAX_CHANNELS:
            raise EntropyError(
                "latent tables of the wrong shape: values",
                got=self.values.count,
                allowed=f"{VALUE_CONTEXTS} for each of 1..{MAX_CHANNELS} channels",
            )
        alphabet = self.values.alphabet
        if alphabet % 2 or not 4 <= alphabet <= 2 * MAX_ABS + 2:
            raise EntropyError("latent alphabet out of range", got=alphabet, allowed=f"even, 4..{2 * MAX_ABS + 2}")
        object.__setattr__(self, "channels", channels)
        object.__setattr__(self, "max_abs", alphabet // 2 - 1)

    @classmethod
    def fit(cls, samples: Iterable[ArrayLike], max_abs: int | None = None) -> LatentTables:
        """Tables from the statistics of GOPs of latents, each an integer array [T, C, h, w] whose first frame is a key.

        Contexts that were seen little lean on the like contexts of all channels, so that no table is overconfident.
        """
        gops = [_checked_gop(sample) for sample in samples]
        if not gops or len({gop.shape[1] for gop in gops}) != 1:
            raise EntropyError("latents to fit tables to must exist and agree in channels", got=len(gops))
        if max_abs is None:
            largest = max(int(np.abs(gop.astype(np.int32)).max(initial=0)) for gop in gops)
            max_abs = min(max(1, largest), MAX_FITTED_ABS)
        channels, alphabet = gops[0].shape[1], 2 * max_abs + 2
        flags = np.ones((1, FLAG_CONTEXTS, 2), np.int64)  # silence may come even where no sample has it
        places = np.zeros((1, PLACE_CONTEXTS, 2), np.int64)
        values = np.zeros((channels, VALUE_CONTEXTS, alphabet), np.int64)
        for gop in gops:
            memory: Memory | None = None
            for z in gop:
                frame = symbolise(memory, z, max_abs)
                flags[0, frame.flag_row, frame.flag] += 1
                places += _counted(frame.place_rows, frame.places, places.shape)
                values += _counted(frame.value_rows, frame.values, values.shape)
                memory = Memory.after(memory, z)
        return cls(*(Tables.from_frequencies(_smoothed(counts)) for counts in (flags, places, values)))

    def to_tensors(self, prefix: str = "") -> dict[str, NDArray[np.uint16]]:
        """As a bundle stores them: u16 "flags" [3, 2], "places" [244, 2] and "values" [C, 40, A]."""
        shaped = {
            "flags": self.flags.frequencies,
            "places": self.places.frequencies,
            "values": self.values.frequencies.reshape(self.channels, VALUE_CONTEXTS, -1),
        }
        return {prefix + name: frequencies.astype(np.uint16) for name, frequencies in shaped.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[np.generic]], prefix: str = "") -> LatentTables:
        """The inverse of `to_tensors`. Raises EntropyError for anything else."""
        found = []
        for name, rank in (("flags", 2), ("places", 2), ("values", 3)):
            tensor = tensors.get(prefix + name)
            if tensor is None or tensor.dtype != np.uint16 or tensor.ndim != rank or not tensor.size:
                got = "nothing" if tensor is None else f"{tensor.dtype} {tensor.shape}"
                raise EntropyError(
                    f"table tensor {prefix}{name} is missing or of the wrong kind", got=got, allowed=f"uint16, {rank}-d"
                )
            if rank == 3 and tensor.shape[1] != VALUE_CONTEXTS:
                raise EntropyError("latent tables of the wrong shape: values", got=tensor.shape, allowed="[C, 40, A]")
            found.append(Tables.from_frequencies(tensor.reshape(-1, tensor.shape[-1])))
        return cls(*found)

    def estimate_bits(self, gop: ArrayLike) -> float:
        """Ideal code length in bits of a GOP [T, C, h, w] whose first frame is a key."""
        encoder = LatentEncoder(self)
        return sum(encoder.encode(z).bits for z in _checked_gop(gop))


@dataclass(frozen=True, slots=True, eq=False)
class FrameCode:
    """One frame, ready to be joined with others to a `message`. `bits`: its ideal code length."""

    runs: tuple[_Run, ...]
    bits: float
    symbols: int


def message(frames: Sequence[FrameCode]) -> bytes:
    """The frames of one packet as bytes. Raises EntropyError for more than MAX_SYMBOLS symbols in all."""
    encoder = RansEncoder()
    for frame in frames:
        for symbols, rows, tables in frame.runs:
            encoder.push(symbols, rows, tables)
    return encoder.finish()


class LatentEncoder:
    """Turns one GOP's frames into codes one by one. A frame's code does not depend on how they are put into packets."""

    def __init__(self, tables: LatentTables) -> None:
        self.tables = tables
        self._memory: Memory | None = None

    def encode(self, z: I16) -> FrameCode:
        """z int16 [C, h, w]."""
        tables, memory = self.tables, _matching(self._memory, z.shape, self.tables)
        if z.dtype != np.int16:
            raise EntropyError("latents must be 16-bit integers", got=z.dtype, allowed="int16")
        frame = symbolise(memory, z, tables.max_abs)
        self._memory = Memory.after(memory, z)
        runs: list[_Run] = [(np.array([frame.flag]), np.array([frame.flag_row]), tables.flags)]
        if frame.flag:
            runs.append((frame.places, frame.place_rows, tables.places))
            runs.append((frame.values, frame.value_rows, tables.values))
        if frame.escaped:
            coins = np.array([bit for value in frame.escaped for bit in _escape_bits(value, tables.max_abs)])
            runs.append((coins, np.zeros_like(coins), _COIN))
        return FrameCode(tuple(runs), sum(_bits(*run) for run in runs), sum(run[0].size for run in runs))


class LatentDecoder:
    """Gives back one GOP's latents message by message. After an error the state is as it was before."""

    def __init__(self, tables: LatentTables) -> None:
        self.tables = tables
        self._memory: Memory | None = None

    def decode(self, payload: bytes, frames: int, shape: tuple[int, int, int]) -> list[I16]:
        """Message -> `frames` arrays int16 [C, h, w], not to be written to: silent frames are one and the same.

        Raises EntropyError if it is not exactly such a message. The time that it takes is bounded by MAX_SYMBOLS,
        whatever the message says.
        """
        if not 1 <= frames <= MAX_FRAMES:
            raise EntropyError("number of frames out of range", got=frames, allowed=f"1..{MAX_FRAMES}")
        memory = _matching(self._memory, shape, self.tables)
        decoder = RansDecoder(payload)
        out, silent = [], np.zeros(shape, np.int16)
        for _ in range(frames):
            z = self._read_frame(decoder, memory, shape)
            memory = Memory.after_silence(memory, silent) if z is None else Memory.after(memory, z)
            out.append(silent if z is None else z)
        decoder.finish()
        self._memory = memory
        return out

    def _read_frame(self, decoder: RansDecoder, memory: Memory | None, shape: tuple[int, int, int]) -> I16 | None:
        """None for a frame of zeros."""
        tables = self.tables
        if decoder.read([flag_row(memory)], tables.flags) == [0]:
            return None
        groups, occupied = place_groups(memory, shape[1:]), np.zeros(shape[1:], np.bool_)
        for quarters in PASSES:
            rows = place_rows(groups, occupied)
            for quarter in quarters:
                found = as_array(decoder.read(rows[quarter], tables.places))
                occupied[quarter] = found.reshape(rows[quarter].shape)
        where = np.flatnonzero(occupied)
        if not where.size:
            raise EntropyError("message is damaged: a frame that is not silent has nothing anywhere")
        first_rows, turned = value_rows(memory, where, shape[0])
        earlier = np.zeros(where.size, np.int64)
        values = np.empty((shape[0], where.size), np.int64)
        escape, escaped = 2 * tables.max_abs + 1, []
        for channel, rows in enumerate(first_rows):
            symbols = as_array(decoder.read(rows + earlier, tables.values))
            earlier |= symbols != 0
            values[channel] = values_of(symbols)
            escaped += [(channel, place) for place in np.flatnonzero(symbols == escape).tolist()]
        if not earlier.all():
            raise EntropyError("message is damaged: there is nothing where it says that there is something")
        for channel, place in escaped:
            values[channel, place] = _read_escape(decoder, tables.max_abs)
        np.negative(values, out=values, where=turned)
        if escaped and not -32768 <= values.min() <= values.max() <= 32767:
            raise EntropyError("message is damaged: an escaped value is too large", got=int(np.abs(values).max()))
        z: I16 = np.zeros(shape, np.int16)
        z.reshape(shape[0], -1)[:, where] = values
        return z


def _matching(memory: Memory | None, shape: tuple[int, ...], tables: LatentTables) -> Memory | None:
    """The memory, once the shape is known to be one that fits it and the tables."""
    if len(shape) != 3 or shape[0] != tables.channels or not all(1 <= side <= MAX_GRID for side in shape[1:]):
        raise EntropyError(
            "latents of the wrong shape", got=shape, allowed=f"[{tables.channels}, 1..{MAX_GRID}, 1..{MAX_GRID}]"
        )
    if (shape[0] + 1) * shape[1] * shape[2] > MAX_SYMBOLS // 2:
        raise EntropyError("too many latents in one frame", got=shape, allowed=f"{MAX_SYMBOLS // 2} values")
    if memory is not None and memory.shape != shape:
        raise EntropyError(
            "latents change their shape within a GOP", got=shape, allowed=memory.shape, hint="Send a key."
        )
    return memory


def _checked_gop(sample: ArrayLike) -> I16:
    gop = np.asarray(sample)
    if gop.ndim != 4 or gop.dtype.kind not in "iu" or 0 in gop.shape:
        raise EntropyError("a GOP of latents must be integers [T, C, h, w]", got=f"{gop.dtype} {gop.shape}")
    narrow = gop.astype(np.int16)
    if (narrow != gop).any():
        raise EntropyError("latents do not fit 16 bits", got=f"{gop.min()}..{gop.max()}")
    return narrow


def _bits(symbols: I64, rows: I64, tables: Tables) -> float:
    return float(tables.costs[rows, symbols].sum())


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
            raise EntropyError("message is damaged: an escaped value is too large")
    excess = 1
    for bit in decoder.read(0, _COIN, length - 1):
        excess = excess << 1 | bit
    return -(max_abs + excess) if negative else max_abs + excess


def _counted(rows: I64, symbols: I64, shape: tuple[int, int, int]) -> I64:
    found: I64 = np.bincount(rows * shape[2] + symbols, minlength=shape[0] * shape[1] * shape[2]).reshape(shape)
    return found


def _smoothed(counts: I64) -> NDArray[np.uint32]:
    """Counts [channels, contexts, A] -> frequencies [channels * contexts, A], by integers throughout.

    Each table takes 64 pseudo-counts spread as its context is in all channels, each context 4 spread as all are.
    """
    scale = 1 << 12
    everywhere = counts.sum(axis=(0, 1)) * scale
    everywhere = everywhere // max(1, int(counts.sum())) + 1
    context = counts.sum(axis=0) * scale + everywhere * 4
    context = context * scale // context.sum(axis=-1, keepdims=True) + 1
    return quantise(counts * scale + context * 64).reshape(-1, counts.shape[-1])
