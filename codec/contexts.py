"""What SMC's latents look like to the entropy coder: a frame's symbols, and which table codes each. No coder here.

Everything follows from integers that both ends have: the frames of this GOP so far, and what of this frame was read
before. A frame has a **flag** (is any value not 0?), then **places** (where is any channel not 0?), then the **values**
at these places. Objects hold still or move slowly, so a place's table follows from how often and how lately something
was there and around it; of this frame, from neighbours that were read before it: places come in four quarters of a
lattice, each read as a whole. A value's table follows from its channel's recent values there, or else around there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

I16: TypeAlias = NDArray[np.int16]
I64: TypeAlias = NDArray[np.int64]
Mask: TypeAlias = NDArray[np.bool_]
_Integer = TypeVar("_Integer", np.int16, np.int64)

FLAG_CONTEXTS = 3
"""The frame before: there is none, it was silent, it was not."""

_AROUND = np.array([0, 1, 2, 2, 3, 3, 3, 4, 4], np.int64)
"""Class of the number of the 8 neighbours at which the frame before had something."""
_HEAT_EDGES = (1, 8, 24, 48, 80)
_GROUPS = 1 + 2 * 5 * (len(_HEAT_EDGES) + 1)
_NEAR = 4
PLACE_CONTEXTS = _GROUPS * _NEAR

_TRACE_EDGES = (8, 32, 64, 96, 128, 160)
_TRACE_AROUND_EDGES = (1, 64, 128)
_LEVELS = 1 + len(_TRACE_EDGES) + len(_TRACE_AROUND_EDGES)
VALUE_CONTEXTS = _LEVELS * 4

QUARTERS = tuple((slice(row, None, 2), slice(column, None, 2)) for row, column in ((0, 0), (1, 1), (0, 1), (1, 0)))
"""The places in the order in which they are read: each quarter [rows, columns] in raster order."""

PASSES = (QUARTERS[:1], QUARTERS[1:2], QUARTERS[2:])
"""The quarters whose rows follow from those of the passes before."""

_TRACE_CLIP = 4


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """What a coder keeps of a GOP's frames: occupied bool [h, w], heat int16 [h, w], trace int16 [C, h, w].

    Occupied is where the frame before had something. Heat is 32 for each frame with something there, a quarter of it
    lost with each frame; the last 3 never go, which tells places of this GOP from all others. Trace is 64 times the
    value, cut to 4, and half of the trace before. `faded`: another silent frame would change nothing.
    """

    occupied: Mask
    heat: I16
    trace: I16
    faded: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.trace.shape

    @classmethod
    def after(cls, before: Memory | None, z: I16) -> Memory:
        """With the frame z int16 [C, h, w] added."""
        occupied: Mask = np.asarray(z.any(axis=0))
        heat: I16 = occupied.astype(np.int16) * np.int16(32)
        trace: I16 = np.clip(z, -_TRACE_CLIP, _TRACE_CLIP) * np.int16(64)
        if before is not None:
            heat += before.heat - (before.heat >> 2)
            # Towards 0 from both sides: a shift of a negative number alone would round away from it.
            trace += (before.trace - (before.trace >> 15)) >> 1
        return cls(occupied, heat, trace)

    @classmethod
    def after_silence(cls, before: Memory | None, silent: I16) -> Memory:
        """As `after` with `silent`, a frame of zeros; for nothing once it has faded.

        An empty packet may stand for hundreds of silent frames of a large picture: that must not take seconds.
        """
        if before is not None and before.faded:
            return before
        now = cls.after(before, silent)
        kept = now.heat if before is None else before.heat
        return cls(now.occupied, now.heat, now.trace, faded=not now.trace.any() and np.array_equal(now.heat, kept))


@dataclass(frozen=True, slots=True)
class FrameSymbols:
    """A frame as symbols with their tables' rows, in the order of coding; all but the flag is empty in a silent one.

    `values` [C * places], channel by channel; `escaped`: what lies beyond the largest symbol, signs turned as there.
    """

    flag: int
    flag_row: int
    places: I64
    place_rows: I64
    values: I64
    value_rows: I64
    escaped: list[int]


def symbolise(memory: Memory | None, z: I16, max_abs: int) -> FrameSymbols:
    """The symbols of z int16 [C, h, w] after the frames in `memory`."""
    occupied: Mask = np.asarray(z.any(axis=0))
    if not occupied.any():
        nothing = np.zeros(0, np.int64)
        return FrameSymbols(0, flag_row(memory), nothing, nothing, nothing, nothing, [])
    rows = place_rows(place_groups(memory, occupied.shape), occupied)
    where = np.flatnonzero(occupied)
    values = z.reshape(z.shape[0], -1)[:, where].astype(np.int64)
    first_rows, turned = value_rows(memory, where, z.shape[0])
    earlier = np.zeros(values.shape, np.int64)
    earlier[1:] = np.logical_or.accumulate(values != 0, axis=0)[:-1]
    np.negative(values, out=values, where=turned)
    symbols = np.minimum((values << 1) ^ (values >> 63), 2 * max_abs + 1)
    return FrameSymbols(
        flag=1,
        flag_row=flag_row(memory),
        places=np.concatenate([occupied[quarter].ravel() for quarter in QUARTERS]).astype(np.int64),
        place_rows=np.concatenate([rows[quarter].ravel() for quarter in QUARTERS]),
        values=symbols.ravel(),
        value_rows=(first_rows + earlier).ravel(),
        escaped=values[symbols == 2 * max_abs + 1].tolist(),
    )


def flag_row(memory: Memory | None) -> int:
    return 0 if memory is None else 1 + int(memory.occupied.any())


def place_groups(memory: Memory | None, shape: tuple[int, ...]) -> I64:
    """What the frames before say of each place [h, w]: 0 at the start of a GOP, else 1 to 60."""
    if memory is None:
        return np.zeros(shape, np.int64)
    occupied = memory.occupied.astype(np.int64)
    around = _AROUND[_sum_3x3(occupied) - occupied]
    groups: I64 = 1 + (occupied * 5 + around) * (len(_HEAT_EDGES) + 1)
    return groups + np.searchsorted(_HEAT_EDGES, memory.heat, side="right")


def place_rows(groups: I64, occupied: Mask) -> I64:
    """Table row of each place [h, w]. Only the quarters before a place's own need to be in `occupied`."""
    padded = _padded(occupied.astype(np.int64))
    upper, middle, lower = padded[:-2], padded[1:-1], padded[2:]
    diagonal = upper[:, :-2] + upper[:, 2:] + lower[:, :-2] + lower[:, 2:]
    direct = upper[:, 1:-1] + lower[:, 1:-1] + middle[:, :-2] + middle[:, 2:]
    rows = groups * _NEAR
    for quarter, near in zip(QUARTERS[1:], (diagonal, direct, direct), strict=True):
        rows[quarter] += 1 + np.minimum(near[quarter], 2)
    return rows


def value_rows(memory: Memory | None, where: NDArray[np.intp], channels: int) -> tuple[I64, Mask]:
    """Of each value [C, places] at the flat places `where`: its row, and whether its sign is turned.

    To a row comes 1 where a channel before this one has a value at the same place. Signs are turned where the trace is
    negative, so that what goes on as it was is always the positive symbol.
    """
    row = np.arange(channels, dtype=np.int64)[:, None] * VALUE_CONTEXTS
    if memory is None:
        return np.repeat(row, where.size, axis=1), np.zeros((channels, where.size), np.bool_)
    own = memory.trace.reshape(channels, -1)[:, where].astype(np.int64)
    around = _sum_3x3(memory.trace).reshape(channels, -1)[:, where].astype(np.int64)
    level = np.searchsorted(_TRACE_EDGES, np.abs(own), side="right")
    level_around = np.searchsorted(_TRACE_AROUND_EDGES, np.abs(around), side="right")
    quiet = level == 0
    context = np.where(quiet, level_around, level + len(_TRACE_AROUND_EDGES))
    was_occupied = memory.occupied.ravel()[where].astype(np.int64)
    return row + context * 4 + was_occupied * 2, np.where(quiet, around, own) < 0


def values_of(symbols: I64) -> I64:
    """0, 1, 2, 3, 4 .. -> 0, -1, 1, -2, 2 .."""
    values: I64 = (symbols >> 1) ^ -(symbols & 1)
    return values


def _sum_3x3(planes: NDArray[_Integer]) -> NDArray[_Integer]:
    """Of each place [..., h, w] and its 8 neighbours."""
    padded = _padded(planes)
    rows = padded[..., :-2, :] + padded[..., 1:-1, :] + padded[..., 2:, :]
    sums: NDArray[_Integer] = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    return sums


def _padded(planes: NDArray[_Integer]) -> NDArray[_Integer]:
    """With zeros around each [..., h, w]; `np.pad` takes five times as long for planes as small as these."""
    *head, rows, columns = planes.shape
    padded = np.zeros((*head, rows + 2, columns + 2), planes.dtype)
    padded[..., 1:-1, 1:-1] = planes
    return padded
