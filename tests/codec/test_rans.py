"""The entropy coder: exact for every table and message, within a hair of the ideal length, and calm under damage."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from scene_edge.codec import rans
from scene_edge.codec.errors import EntropyError
from scene_edge.codec.rans import TOTAL, RansDecoder, RansEncoder, Tables, decode, encode, quantise


def table(*frequencies: int) -> Tables:
    return Tables.from_frequencies([frequencies])


@st.composite
def tables(draw: st.DrawFn) -> Tables:
    count, alphabet = draw(st.integers(1, 6)), draw(st.sampled_from((2, 3, 5, 33, 256)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    weights = (rng.pareto(draw(st.floats(0.05, 4.0)), (count, alphabet)) * 1000).clip(0, 2**39).astype(np.int64)
    return Tables.from_frequencies(quantise(weights))


@given(tables(), st.integers(0, 600), st.integers(0, 2**32))
def test_round_trip(model: Tables, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    symbols, rows = rng.integers(0, model.alphabet, count), rng.integers(0, model.count, count)
    assert np.array_equal(decode(encode(symbols, rows, model), rows, model), symbols)


@pytest.mark.parametrize(
    "frequencies",
    [(1, 65535), (65535, 1), (32768, 32768), (1, 1, 65534), (65534, 1, 1), (1, 65534, 1), (3, 60000, 5533)],
)
def test_every_short_message_of_small_alphabets(frequencies: tuple[int, ...]) -> None:
    model = table(*frequencies)
    for length in range(8):
        seen = set()
        for symbols in itertools.product(range(len(frequencies)), repeat=length):
            data = encode(symbols, 0, model)
            assert decode(data, np.zeros(length, int), model).tolist() == list(symbols)
            seen.add(data)
        assert len(seen) == len(frequencies) ** length, "two messages share their bytes"


def test_extreme_tables_in_long_messages() -> None:
    for frequencies in ((1, 65535), (65535, 1), (1, 65534, 1)):
        model = table(*frequencies)
        for symbol in range(model.alphabet):
            data = encode([symbol] * 3000, 0, model)
            assert decode(data, np.zeros(3000, int), model).tolist() == [symbol] * 3000


def ideal_bits(symbols: NDArray[np.int64], rows: NDArray[np.int64], model: Tables) -> float:
    return float(-np.log2(model.frequencies[rows, symbols] / TOTAL).sum())


@pytest.mark.parametrize("scale", [0.2, 1.0, 6.0])
def test_written_bits_are_within_one_percent_of_the_ideal(scale: float) -> None:
    rng = np.random.default_rng(4)
    spread = np.abs(np.arange(40) - 20)
    weights = np.stack([(1e6 * np.exp(-spread / (scale * (1 + row)))).astype(np.int64) for row in range(4)])
    model = Tables.from_frequencies(quantise(weights))
    rows = rng.integers(0, 4, 20_000)
    draws = rng.integers(0, TOTAL, rows.size)
    symbols = (model.cdf[rows][:, 1:] <= draws[:, None]).sum(axis=1)
    written = 8 * len(encode(symbols, rows, model))
    assert 1.0 <= written / ideal_bits(symbols, rows, model) < 1.005


def test_ending_a_message_costs_at_most_three_bytes() -> None:
    rng = np.random.default_rng(2)
    model = Tables.from_frequencies(quantise(np.asarray([[900, 50, 30, 15, 5]])))
    for count in range(1, 60):
        symbols = (rng.random(count) < 0.3).astype(np.int64) * rng.integers(0, 5, count)
        written = 8 * len(encode(symbols, 0, model))
        assert written - ideal_bits(symbols, np.zeros(count, int), model) <= 24


def test_symbols_that_begin_at_zero_are_free_at_the_end() -> None:
    model = table(40000, 20000, 5536)
    assert encode([0] * 1000, 0, model) == b""
    assert encode([2, *[0] * 1000], 0, model) == encode([2], 0, model)


def test_runs_with_tables_that_depend_on_what_was_read() -> None:
    first, second = table(30000, 35536), Tables.from_frequencies([[1, 65535, 0 + 0][:2], [60000, 5536]])
    encoder = RansEncoder()
    encoder.push([1, 0, 1], 0, first)
    encoder.push([0, 1, 0], [1, 0, 1], second)
    encoder.push([], [], second)
    decoder = RansDecoder(encoder.finish())
    rows = decoder.read([0, 0, 0], first)
    assert rows == [1, 0, 1]
    assert decoder.read(rows, second) == [0, 1, 0]
    decoder.finish()


def test_damage_raises_the_error_tree_or_other_symbols_but_nothing_else() -> None:
    rng = random.Random(3)
    model = Tables.from_frequencies(quantise(np.random.default_rng(3).integers(0, 1000, (4, 9))))
    symbols = np.random.default_rng(5).integers(0, 9, 200)
    rows = np.arange(200) % 4
    good, refused = encode(symbols, rows, model), 0
    for _ in range(1500):
        data = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        try:
            assert not np.array_equal(decode(bytes(data), rows, model), symbols) or bytes(data) == good
        except EntropyError:
            refused += 1
    assert refused > 1450, "the end of a message should betray nearly all damage"


@given(st.binary(max_size=80))
def test_random_bytes_raise_nothing_else(data: bytes) -> None:
    model = table(50000, 10000, 5536)
    try:
        symbols = decode(data, np.zeros(50, int), model)
    except EntropyError:
        return
    assert encode(symbols, 0, model) == data, "a message that is accepted is the only form of its symbols"


@given(st.lists(st.integers(0, 2**40 - 1), min_size=2, max_size=256))
def test_quantised_weights_are_a_table(weights: list[int]) -> None:
    frequencies = quantise(np.asarray(weights, np.int64))
    assert frequencies.sum() == TOTAL
    assert frequencies.min() >= 1
    order = np.lexsort((frequencies, weights))
    assert (np.diff(frequencies[order].astype(np.int64)) >= 0).all(), "a larger weight never gets a smaller frequency"
    assert quantise([0, 0, 0, 0]).tolist() == [TOTAL // 4] * 4


@pytest.mark.parametrize(
    "cdf",
    [
        [[0, TOTAL]],
        [[0, 5, 5, TOTAL]],
        [[0, 9, 5, TOTAL]],
        [[1, 5, TOTAL]],
        [[0, 5, TOTAL - 1]],
        [[0, 5, TOTAL + 1]],
        [[0.0, 5.0, 65536.0]],
        [0, 5, TOTAL],
        [list(range(259))],
        np.zeros((0, 3), int),
    ],
)
def test_bad_tables_are_refused(cdf: object) -> None:
    with pytest.raises(EntropyError):
        Tables(np.asarray(cdf))  # type: ignore[arg-type]


def test_bad_frequencies_and_weights_are_refused() -> None:
    for frequencies in ([[0, TOTAL]], [[TOTAL + 1, -1]], [[1.5, 2.5]], [5, 6]):
        with pytest.raises(EntropyError):
            Tables.from_frequencies(frequencies)
    for weights in ([[-1, 5]], [[2**40, 1]], [[0.5, 1]], [[7]], [[1] * 257]):
        with pytest.raises(EntropyError):
            quantise(weights)


@pytest.mark.parametrize(
    ("symbols", "rows"), [([2], 0), ([-1], 0), ([0], 1), ([0], -1), ([0, 1], [0]), ([0.0], 0), ([True], 0)]
)
def test_bad_symbols_and_rows_are_refused(symbols: list[int], rows: object) -> None:
    with pytest.raises(EntropyError):
        encode(symbols, rows, table(5, TOTAL - 5))  # type: ignore[arg-type]


def test_limits_are_checked_before_work_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    model = table(5, TOTAL - 5)
    with pytest.raises(EntropyError, match="too many symbols"):
        RansDecoder(b"").read(0, model, rans.MAX_SYMBOLS + 1)
    with pytest.raises(EntropyError, match="too long"):
        RansDecoder(bytes(rans.MAX_MESSAGE_BYTES + 1))
    monkeypatch.setattr(rans, "MAX_SYMBOLS", 10)
    with pytest.raises(EntropyError, match="too many symbols"):
        encode([0] * 11, 0, model)
