"""Range variant of asymmetric numeral systems (Duda 2013) in integer Python over 16-bit tables. It knows no pictures.

A scalar coder: one state x, frequencies that sum to 2**16, renormalised 16 bits at a time, so L = 2**16 <= x < 2**32.
Two departures from the textbook make short messages short. The encoder starts at x = 0 instead of L: until the first
word leaves, x merely grows with the information in it, and the decoder, out of words, lets it shrink again; it must end
at 0 with no word left, which detects most damage. And the final x takes as many bytes as it needs (0 to 4).

Message: x, big endian, then 16-bit little endian words in the order in which the decoder wants them. Words follow only
where x >= L, so x then has 3 or 4 bytes and the parity of the length says which. Nothing coded gives b"".

Any change of coded output is a change of major version.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scene_edge.codec.errors import EntropyError

PRECISION = 16
TOTAL = 1 << PRECISION
MAX_ALPHABET = 256
MAX_TABLES = 16384
MAX_SYMBOLS = 1 << 22
"""Symbols in one message; a 4K picture's latents at stride 16 in 64 channels are half of it."""

MAX_MESSAGE_BYTES = 1 << 23

_CELL_BITS = 8
_Cell: TypeAlias = tuple[int, int, int]
_Row: TypeAlias = tuple[int, list[_Cell | None], list[int], list[_Cell]]
"""One table for the decoder: frequency of the first symbol, which is by far the most frequent one of latents, cells,
cumulative, cell of each symbol. A cell covers 256 slots and holds (symbol,
frequency, low) where one symbol has them all, else None; then a binary search decides. 2 KiB a table, against 512 for
every slot. Plain tuples: taking apart a named one is slower."""


class _Rows(dict[int, _Row]):
    """Tables as the decoder wants them, each made on first use."""

    def __init__(self, cdf: NDArray[np.uint32]) -> None:
        super().__init__()
        self._cdf = cdf

    def __missing__(self, index: int) -> _Row:
        if not 0 <= index < len(self._cdf):
            raise EntropyError("table index out of range", got=index, allowed=f"0..{len(self._cdf) - 1}")
        cumulative = self._cdf[index].tolist()
        by_symbol = [(symbol, high - low, low) for symbol, (low, high) in enumerate(pairwise(cumulative))]
        cells: list[_Cell | None] = [None] * (TOTAL >> _CELL_BITS)
        for cell in by_symbol:
            first, end = -(-cell[2] >> _CELL_BITS), (cell[1] + cell[2]) >> _CELL_BITS
            if first < end:
                cells[first:end] = [cell] * (end - first)
        found = self[index] = (cumulative[1], cells, cumulative, by_symbol)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """Cumulative frequencies [tables, alphabet + 1], strictly rising from 0 to 65536, so that every symbol can come."""

    cdf: NDArray[np.uint32]
    _low: NDArray[np.uint32] = field(init=False, repr=False)
    _frequency: NDArray[np.uint32] = field(init=False, repr=False)
    costs: NDArray[np.float64] = field(init=False, repr=False)
    """Ideal bits of each symbol [tables, alphabet]: for estimates, never for coding."""
    rows: Mapping[int, _Row] = field(init=False, repr=False)
    """As the decoder wants them; an index beyond them is an EntropyError."""

    def __post_init__(self) -> None:
        cdf = np.asarray(self.cdf)
        if cdf.ndim != 2 or not 1 <= cdf.shape[0] <= MAX_TABLES or not 3 <= cdf.shape[1] <= MAX_ALPHABET + 1:
            raise EntropyError(
                "table of the wrong shape", got=cdf.shape, allowed=f"[1..{MAX_TABLES}, 3..{MAX_ALPHABET + 1}]"
            )
        if cdf.dtype.kind not in "iu":
            raise EntropyError("table must hold integers", got=cdf.dtype)
        wide = cdf.astype(np.int64)
        if (wide[:, 0] != 0).any() or (wide[:, -1] != TOTAL).any() or (np.diff(wide, axis=1) < 1).any():
            raise EntropyError("table must rise strictly from 0 to 65536", hint="Every symbol needs a frequency >= 1.")
        frozen = wide.astype(np.uint32)
        frozen.setflags(write=False)
        set_field = object.__setattr__
        set_field(self, "cdf", frozen)
        set_field(self, "_low", np.ascontiguousarray(frozen[:, :-1]).ravel())
        set_field(self, "_frequency", np.diff(wide, axis=1).astype(np.uint32).ravel())
        set_field(self, "costs", PRECISION - np.log2(np.diff(wide, axis=1)))
        set_field(self, "rows", _Rows(frozen))

    @classmethod
    def from_frequencies(cls, frequencies: ArrayLike) -> Tables:
        """Integer frequencies [tables, alphabet] that sum to 65536 in each row."""
        counts = np.asarray(frequencies)
        if counts.ndim != 2 or counts.dtype.kind not in "iu":
            raise EntropyError("frequencies must be integers [tables, alphabet]", got=f"{counts.dtype} {counts.shape}")
        cdf = np.zeros((counts.shape[0], counts.shape[1] + 1), np.int64)
        np.cumsum(counts.astype(np.int64), axis=1, out=cdf[:, 1:])
        return cls(cdf)

    @property
    def frequencies(self) -> NDArray[np.uint32]:
        """[tables, alphabet]."""
        return self._frequency.reshape(self.cdf.shape[0], self.alphabet)

    @property
    def count(self) -> int:
        return int(self.cdf.shape[0])

    @property
    def alphabet(self) -> int:
        return int(self.cdf.shape[1]) - 1


def quantise(weights: ArrayLike) -> NDArray[np.uint32]:
    """Non-negative weights [..., alphabet] -> frequencies >= 1 that sum to 65536, by integer arithmetic alone.

    The weights are integers below 2**40; the same weights give the same table on every machine. All zero is uniform.
    """
    counts = np.asarray(weights)
    if counts.dtype.kind not in "iu" or counts.ndim < 1 or not 2 <= counts.shape[-1] <= MAX_ALPHABET:
        raise EntropyError("weights must be integers over an alphabet", got=f"{counts.dtype} {counts.shape}")
    counts = counts.astype(np.int64)
    if (counts < 0).any() or (counts >= 1 << 40).any():
        raise EntropyError("weights out of range", allowed="0..2**40 - 1")
    alphabet = counts.shape[-1]
    total = counts.sum(axis=-1, keepdims=True)
    counts, total = np.where(total == 0, 1, counts), np.where(total == 0, alphabet, total)
    frequencies = 1 + counts * (TOTAL - alphabet) // total
    spare = TOTAL - frequencies.sum(axis=-1, keepdims=True)
    largest = counts.argmax(axis=-1)[..., None]
    np.put_along_axis(frequencies, largest, np.take_along_axis(frequencies, largest, -1) + spare, -1)
    quantised: NDArray[np.uint32] = frequencies.astype(np.uint32)
    return quantised


class RansEncoder:
    """Collects runs of symbols in the order in which the decoder will read them; `finish` gives the message."""

    def __init__(self) -> None:
        self._frequencies: list[NDArray[np.uint32]] = []
        self._lows: list[NDArray[np.uint32]] = []
        self._count = 0

    def push(self, symbols: ArrayLike, table_index: ArrayLike, tables: Tables) -> None:
        """`symbols[i]` is coded with table `table_index[i]` (or all with one). Raises EntropyError if out of range."""
        values = _integers(symbols, "symbol", tables.alphabet)
        rows = _integers(table_index, "table index", tables.count)
        if rows.shape not in ((), values.shape):
            raise EntropyError("symbols and table indexes do not pair up", got=f"{values.shape} and {rows.shape}")
        self._count += values.size
        if self._count > MAX_SYMBOLS:
            raise EntropyError("too many symbols for one message", got=self._count, allowed=MAX_SYMBOLS)
        at = rows * tables.alphabet + values
        self._frequencies.append(tables._frequency[at])
        self._lows.append(tables._low[at])

    def finish(self) -> bytes:
        """The message. The encoder is used up."""
        state = 0
        words: list[int] = []
        emit = words.append
        for frequencies, lows in zip(reversed(self._frequencies), reversed(self._lows), strict=True):
            for frequency, low in zip(frequencies[::-1].tolist(), lows[::-1].tolist(), strict=True):
                if state >= frequency << 16:
                    emit(state & 0xFFFF)
                    state >>= 16
                # The textbook's (x // f) * 2**16 + x % f + low, with one division.
                state += state // frequency * (65536 - frequency) + low
        words.reverse()
        head = state.to_bytes((state.bit_length() + 7) // 8, "big")
        return head + np.asarray(words, "<u2").tobytes()


class RansDecoder:
    """Reads runs of symbols from one message. Table indexes may depend on what was read in earlier runs."""

    def __init__(self, data: bytes) -> None:
        if len(data) > MAX_MESSAGE_BYTES:
            raise EntropyError("message is too long", got=f"{len(data)} bytes", allowed=MAX_MESSAGE_BYTES)
        head = len(data) if len(data) <= 4 else 4 - len(data) % 2
        if head and data[0] == 0:
            raise EntropyError("message is damaged: it begins with a zero byte")
        self._state = int.from_bytes(data[:head], "big")
        self._words: list[int] = np.frombuffer(data, "<u2", offset=head).tolist()
        self._words.reverse()
        self._left = MAX_SYMBOLS

    def read(self, table_index: ArrayLike, tables: Tables, count: int | None = None) -> list[int]:
        """One symbol for each table index; or `count` symbols that all use the one `table_index`."""
        rows = np.asarray(table_index)
        if rows.size and rows.dtype.kind not in "iu":
            raise EntropyError("table index must be an integer", got=rows.dtype)
        indexes = rows.ravel().tolist() if count is None else rows.ravel().tolist()[:1] * count
        if not 0 <= len(indexes) <= self._left:
            raise EntropyError("too many symbols for one message", got=len(indexes), allowed=self._left)
        self._left -= len(indexes)
        if not self._state and not self._words:
            return [0] * len(indexes)
        if tables.alphabet == 2:
            return self._run_of_two(tables.cdf[_integers(indexes, "table index", tables.count), 1].tolist())
        return self._run([0] * len(indexes), map(tables.rows.__getitem__, indexes))

    def finish(self) -> None:
        """Raises EntropyError unless the message is used up to its last bit."""
        if self._state or self._words:
            raise EntropyError(
                "message is damaged: it does not end where its symbols do", got=f"{len(self._words)} words left"
            )

    def _run(self, out: list[int], rows: Iterable[_Row]) -> list[int]:
        """`out`, zeros, with the other symbols in it."""
        state, words = self._state, self._words
        pop = words.pop
        find, bits = bisect_right, _CELL_BITS
        for place, (first, cells, cumulative, by_symbol) in enumerate(rows):
            slot = state & 0xFFFF
            if slot < first:
                state = first * (state >> 16) + slot
            else:
                out[place], frequency, low = cells[slot >> bits] or by_symbol[find(cumulative, slot) - 1]
                state = frequency * (state >> 16) + slot - low
            if state < 65536 and words:
                state = state << 16 | pop()
        self._state = state
        return out

    def _run_of_two(self, lows: list[int]) -> list[int]:
        """As `_run` for tables of two symbols, of which only where the second begins is needed."""
        state, words = self._state, self._words
        out = [0] * len(lows)
        pop = words.pop
        for place, low in enumerate(lows):
            slot = state & 0xFFFF
            if slot < low:
                state = low * (state >> 16) + slot
            else:
                state = (65536 - low) * (state >> 16) + slot - low
                out[place] = 1
            if state < 65536 and words:
                state = state << 16 | pop()
        self._state = state
        return out


def encode(symbols: ArrayLike, table_index: ArrayLike, tables: Tables) -> bytes:
    """One run of symbols as a message.

    >>> tables = Tables.from_frequencies([[65000, 536]])
    >>> encode([0, 0, 1, 0], 0, tables).hex()
    '010218'
    >>> decode(encode([0, 0, 1, 0], 0, tables), [0, 0, 0, 0], tables).tolist()
    [0, 0, 1, 0]
    """
    encoder = RansEncoder()
    encoder.push(symbols, table_index, tables)
    return encoder.finish()


def decode(data: bytes, table_index: ArrayLike, tables: Tables) -> NDArray[np.int64]:
    """The symbols of a message, one for each table index. Raises EntropyError if it is not exactly such a message."""
    decoder = RansDecoder(data)
    symbols = decoder.read(table_index, tables)
    decoder.finish()
    return as_array(symbols)


def as_array(symbols: list[int]) -> NDArray[np.int64]:
    """Symbols as int64; by way of bytes, which is many times faster than from a list."""
    return np.frombuffer(bytes(symbols), np.uint8).astype(np.int64)


def _integers(values: ArrayLike, what: str, limit: int) -> NDArray[np.int64]:
    array: NDArray[Any] = np.asarray(values)
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise EntropyError(f"{what} must be an integer", got=array.dtype)
    if int(array.min()) < 0 or int(array.max()) >= limit:
        raise EntropyError(f"{what} out of range", got=f"{array.min()}..{array.max()}", allowed=f"0..{limit - 1}")
    return array.astype(np.int64, copy=False)
