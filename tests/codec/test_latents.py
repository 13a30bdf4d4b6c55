"""Latents: any int16 comes back exactly, silence is free, lengths follow the estimate, damage is survived."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from scene_edge.codec import rans
from scene_edge.codec.errors import EntropyError
from scene_edge.codec.latents import MAX_GRID, LatentDecoder, LatentEncoder, LatentTables, message
from tests.golden import recipes

END_BITS = 40
"""What a message may take beyond 1.01 of its ideal length: the coder's last state, and whole bytes."""

Gop = NDArray[np.int16]


def laplace_gop(seed: int, frames: int = 6, scale: float = 1.0) -> Gop:
    """[T, 12, 18, 32]: half of the channels silent, the others correlated in time."""
    rng = np.random.default_rng(seed)
    gop = np.zeros((frames, 12, 18, 32), np.int16)
    for t in range(frames):
        for channel in range(6):
            fresh = np.rint(rng.laplace(0, scale * (0.3 + 0.4 * channel), (18, 32)))
            keep = rng.random((18, 32)) < 0.6 if t else np.zeros((18, 32), bool)
            gop[t, channel] = np.where(keep, gop[t - 1, channel], fresh)
    return gop


def object_gop(seed: int, objects: int = 4, frames: int = 8) -> Gop:
    """[T, 8, 18, 32]: objects of a few places that move, each with channels of its own, and a little noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:18, 0:32]
    gop = np.zeros((frames, 8, 18, 32), np.float64)
    for _ in range(objects):
        at, speed = rng.random(2) * (18, 32), rng.normal(0, 0.2, 2)
        marks = rng.normal(0, 1.4, 8) * (rng.random(8) < 0.4)
        for t in range(frames):
            near = np.exp(-((y - at[0] - speed[0] * t) ** 2 + (x - at[1] - speed[1] * t) ** 2) / 3)
            gop[t] += marks[:, None, None] * near
    return np.rint(gop + rng.normal(0, 0.14, gop.shape)).astype(np.int16)


@pytest.fixture(scope="module")
def tables() -> LatentTables:
    return LatentTables.fit([laplace_gop(seed) for seed in range(4)])


def coded(gop: Gop, tables: LatentTables, sizes: Sequence[int] = ()) -> list[bytes]:
    """The messages of a GOP; `sizes` are frames of each, one message without."""
    encoder = LatentEncoder(tables)
    codes = [encoder.encode(z) for z in gop]
    ends = np.cumsum(sizes or [len(gop)])
    return [message(codes[end - size : end]) for end, size in zip(ends, sizes or [len(gop)], strict=True)]


def decoded(messages: list[bytes], gop: Gop, tables: LatentTables, sizes: Sequence[int] = ()) -> Gop:
    decoder, (_, *shape) = LatentDecoder(tables), gop.shape
    pairs = zip(messages, sizes or [len(gop)], strict=True)
    return np.stack([z for data, size in pairs for z in decoder.decode(data, size, (shape[0], shape[1], shape[2]))])


@given(
    st.integers(0, 2**32),
    st.sampled_from([(1, 1, 1), (3, 2, 5), (6, 4, 4), (2, 1, 7)]),
    st.sampled_from([0, 1, 3, 9, 500, 32768]),
    st.integers(1, 12),
    st.sampled_from([(4,), (1, 3), (2, 2), (1, 1, 1, 1)]),
)
def test_any_int16_comes_back_however_it_is_cut(
    seed: int, shape: tuple[int, int, int], largest: int, max_abs: int, sizes: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(seed)
    sparse = rng.random((4, *shape)) < rng.random()
    values = rng.integers(-largest, largest + 1, (4, *shape)).clip(-32768, 32767)
    gop = np.where(sparse, values, 0).astype(np.int16)
    model = LatentTables.fit([rng.integers(-2, 3, (3, *shape))], max_abs=max_abs)
    messages = coded(gop, model, sizes)
    assert np.array_equal(decoded(messages, gop, model, sizes), gop)
    written, ideal = 8 * sum(map(len, messages)), model.estimate_bits(gop)
    assert written <= 1.01 * ideal + END_BITS * len(sizes)


def test_every_escape_length(tables: LatentTables) -> None:
    magnitudes = {2**k + d for k in range(15) for d in (-1, 0, 1)} | {32767, tables.max_abs, tables.max_abs + 1}
    values = np.zeros((12, 18, 32), np.int16)
    values.reshape(-1)[: 2 * len(magnitudes) + 1] = [*magnitudes, *(-m for m in magnitudes), -32768]
    gop = np.stack([values, -values, values])
    assert np.array_equal(decoded(coded(gop, tables), gop, tables), gop)


def test_silence_costs_nothing(tables: LatentTables) -> None:
    silent = np.zeros((30, 12, 18, 32), np.int16)
    assert coded(silent, tables) == [b""]
    spoken = laplace_gop(9, frames=1)
    (alone,), (followed,) = coded(spoken, tables), coded(np.concatenate([spoken, silent]), tables)
    assert len(followed) == len(alone), "what is silent at a packet's end is free"
    assert tables.estimate_bits(silent) < 30 * 4, "not even where no frame that the tables were fitted to was silent"


def test_a_silent_channel_costs_next_to_nothing() -> None:
    gop, nothing = laplace_gop(3), np.zeros((6, 20, 18, 32), np.int16)
    wide = np.concatenate([gop, nothing], axis=1)
    wider, narrow = LatentTables.fit([wide]), LatentTables.fit([gop])
    (long,), (short,) = coded(wide, wider), coded(gop, narrow)
    assert len(long) < 1.01 * len(short)


@pytest.mark.parametrize("scale", [0.08, 0.3, 0.5, 1.0, 4.0])
def test_written_bits_are_within_one_percent_of_the_estimate(scale: float) -> None:
    model = LatentTables.fit([laplace_gop(seed, scale=scale) for seed in range(3)])
    for seed in range(50, 54):
        gop = laplace_gop(seed, scale=scale)
        written, ideal = 8 * len(coded(gop, model)[0]), model.estimate_bits(gop)
        assert ideal - 8 <= written <= 1.01 * ideal + END_BITS


@given(st.integers(0, 2**32), st.integers(0, 12), st.integers(0, 8))
def test_sparse_objects_are_written_within_one_percent(seed: int, objects: int, cut: int) -> None:
    gop = object_gop(seed, objects)
    sizes = [size for size in (cut, len(gop) - cut) if size]
    model = object_tables()
    messages = coded(gop, model, sizes)
    assert 8 * sum(map(len, messages)) <= 1.01 * model.estimate_bits(gop) + END_BITS * len(sizes)
    assert np.array_equal(decoded(messages, gop, model, sizes), gop)


def object_tables(cache: list[LatentTables] = []) -> LatentTables:  # noqa: B006
    if not cache:
        cache.append(LatentTables.fit([object_gop(seed) for seed in range(30)]))
    return cache[0]


def test_escapes_are_estimated_too(tables: LatentTables) -> None:
    gop = (laplace_gop(1) * 40).astype(np.int16)
    assert 1.0 <= 8 * len(coded(gop, tables)[0]) / tables.estimate_bits(gop) < 1.01


def test_context_from_the_frames_before_pays(tables: LatentTables) -> None:
    gop = laplace_gop(77)
    (with_memory,), without = coded(gop, tables), sum(len(coded(z[None], tables)[0]) for z in gop)
    assert len(with_memory) < 0.9 * without


def test_context_from_neighbours_pays() -> None:
    """Objects hang together: the same values thrown about at random take more."""
    gop = np.stack([object_gop(seed, frames=1)[0] for seed in range(40)])
    order = np.random.default_rng(0).permutation(18 * 32)
    loose = gop.reshape(40, 8, -1)[:, :, order].reshape(gop.shape)
    together, scattered = (LatentTables.fit(list(z[:, None]), max_abs=5) for z in (gop, loose))
    bits = [sum(model.estimate_bits(z[None]) for z in z_all) for model, z_all in ((together, gop), (scattered, loose))]
    assert bits[0] < 0.9 * bits[1]


def test_what_moves_slowly_costs_less_than_what_jumps() -> None:
    gop = object_gop(3)
    jumping = np.stack([np.roll(z, 7 * t, axis=-1) for t, z in enumerate(gop)])
    assert object_tables().estimate_bits(gop) < 0.8 * object_tables().estimate_bits(jumping)


def test_fitted_tables_beat_tables_of_other_content() -> None:
    gop = laplace_gop(8)
    own, other = LatentTables.fit([gop], max_abs=9), LatentTables.fit([laplace_gop(8, scale=5)], max_abs=9)
    assert own.estimate_bits(gop) < other.estimate_bits(gop)


def test_a_frame_s_code_does_not_depend_on_its_packet(tables: LatentTables) -> None:
    gop = laplace_gop(5)
    encoder = LatentEncoder(tables)
    bits = sum(encoder.encode(z).bits for z in gop)
    assert bits == pytest.approx(tables.estimate_bits(gop))
    whole, parts = coded(gop, tables)[0], coded(gop, tables, [2, 4])
    assert 0 <= sum(map(len, parts)) - len(whole) <= 4


def test_tensors_round_trip(tables: LatentTables) -> None:
    tensors = tables.to_tensors("q3.")
    assert set(tensors) == {"q3.flags", "q3.places", "q3.values"}
    assert all(tensor.dtype == np.uint16 for tensor in tensors.values())
    again = LatentTables.from_tensors(tensors, "q3.")
    assert (again.channels, again.max_abs) == (tables.channels, tables.max_abs)
    gop = laplace_gop(11)
    assert coded(gop, again) == coded(gop, tables)


def test_a_caller_may_reuse_its_array(tables: LatentTables) -> None:
    gop = laplace_gop(6)
    encoder, buffer, codes = LatentEncoder(tables), np.empty_like(gop[0]), []
    for z in gop:
        buffer[...] = z
        codes.append(encoder.encode(buffer))
    assert [message(codes)] == coded(gop, tables)
    decoder = LatentDecoder(tables)
    for z, data in zip(gop, coded(gop, tables, [1] * 6), strict=True):
        (out,) = decoder.decode(data, 1, (12, 18, 32))
        assert np.array_equal(out, z)
        out[...] = 99


def golden_cut() -> tuple[LatentTables, list[bytes]]:
    gop, model = recipes.latent_gop(), recipes.latent_tables()
    return model, coded(gop, model, [1, 3])


def test_damage_raises_nothing_else_and_keeps_the_state() -> None:
    model, (first, rest) = golden_cut()
    rng, refused = random.Random(8), 0
    gop = recipes.latent_gop()
    for _ in range(300):
        decoder = LatentDecoder(model)
        decoder.decode(first, 1, (6, 8, 10))
        data = bytearray(rest)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        try:
            decoder.decode(bytes(data), 3, (6, 8, 10))
        except EntropyError:
            refused += 1
            assert np.array_equal(np.stack(decoder.decode(rest, 3, (6, 8, 10))), gop[1:])
    assert refused > 250


def test_every_prefix_and_every_flip_is_refused_or_says_something_else() -> None:
    model, (whole,) = recipes.latent_tables(), recipes.latent_messages()
    wrong = [(whole, 3), (whole, 5)] + [(whole[:end], 4) for end in range(len(whole))]
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        wrong.append((bytes(data), 4))
    for data, frames in wrong:
        try:
            found = LatentDecoder(model).decode(data, frames, (6, 8, 10))
        except EntropyError:
            continue
        assert coded(np.stack(found), model) == [data], "what is accepted must be the only form of what it says"


@given(st.binary(max_size=120), st.integers(1, 4))
def test_random_messages_raise_nothing_else(data: bytes, frames: int) -> None:
    model = recipes.latent_tables()
    try:
        found = LatentDecoder(model).decode(data, frames, (6, 8, 10))
    except EntropyError:
        return
    assert coded(np.stack(found), model) == [data]


def test_a_small_message_cannot_ask_for_endless_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where everything is likely, a few bytes open every place of many large frames: the count of symbols ends it."""
    ones = np.ones((20, 4, 50, 50), np.int16)
    model = LatentTables.fit([ones])
    (data,) = coded(ones, model)
    assert len(data) < 200
    monkeypatch.setattr(rans, "MAX_SYMBOLS", 1 << 16)
    with pytest.raises(EntropyError, match="too many symbols"):
        coded(ones, model)
    with pytest.raises(EntropyError, match="too many symbols"):
        LatentDecoder(model).decode(data, 20, (4, 50, 50))


@pytest.mark.parametrize(
    "shape", [(11, 18, 32), (12, 0, 32), (12, 18, MAX_GRID + 1), (12, MAX_GRID, MAX_GRID), (12, 18), (12, -1, 4)]
)
def test_shapes_are_checked_before_allocation(shape: tuple[int, ...], tables: LatentTables) -> None:
    with pytest.raises(EntropyError):
        LatentDecoder(tables).decode(b"", 1, shape)  # type: ignore[arg-type]


def test_a_change_of_shape_or_no_frames_are_refused(tables: LatentTables) -> None:
    encoder = LatentEncoder(tables)
    encoder.encode(np.ones((12, 4, 4), np.int16))
    with pytest.raises(EntropyError, match="Send a key"):
        encoder.encode(np.ones((12, 4, 6), np.int16))
    for frames in (0, 513):
        with pytest.raises(EntropyError, match="number of frames"):
            LatentDecoder(tables).decode(b"", frames, (12, 4, 4))


def test_bad_input_is_refused(tables: LatentTables) -> None:
    with pytest.raises(EntropyError, match="16-bit"):
        LatentEncoder(tables).encode(np.zeros((12, 4, 4), np.float32))  # type: ignore[arg-type]
    for samples in ([], [np.zeros((2, 3, 4), int)], [np.zeros((1, 2, 3, 4))], [np.full((1, 1, 1, 1), 40000)]):
        with pytest.raises(EntropyError):
            LatentTables.fit(samples)
    good = tables.to_tensors()
    for tensors in (
        {},
        {"flags": good["flags"], "values": good["values"]},
        {**good, "places": good["places"].astype(np.int32)},
        {**good, "places": good["places"][:-1]},
        {**good, "flags": good["flags"][None]},
        {**good, "values": good["values"][:, :3]},
        {**good, "values": good["values"][:, :, :-1]},
        {**good, "values": good["values"] * 0},
        {**good, "values": np.full((300, 40, 4), 16384, np.uint16)},
        {**good, "values": np.full((3, 40, 2), 32768, np.uint16)},
    ):
        with pytest.raises(EntropyError):
            LatentTables.from_tensors(tensors)


def test_silence_of_a_large_picture_costs_next_to_nothing() -> None:
    """An empty message of 512 frames, 4 MB each: they are one and the same, and what fades has soon faded."""
    tables = LatentTables.fit([laplace_gop(1)[:, :12]])
    decoder, shape = LatentDecoder(tables), (12, 320, 500)
    tracemalloc.start()
    try:
        frames = decoder.decode(b"", 512, shape)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(frames) == 512
    assert not frames[-1].any()
    assert peak_bytes < 32 << 20


@pytest.mark.parametrize("silent", [1, 7, 40])
def test_what_comes_after_silence_is_coded_as_if_every_frame_were_worked_out(silent: int) -> None:
    gop = laplace_gop(3)
    whole = np.concatenate([gop[:3], np.zeros((silent, *gop.shape[1:]), np.int16), gop[3:]])
    tables = LatentTables.fit([whole])
    encoder = LatentEncoder(tables)
    coded = message([encoder.encode(z) for z in whole])
    assert np.array_equal(np.stack(LatentDecoder(tables).decode(coded, len(whole), gop.shape[1:])), whole)
