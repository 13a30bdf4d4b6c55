"""Latents: any int16 comes back exactly, silence is free, lengths follow the estimate, damage is survived."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from scene_edge.codec.errors import EntropyError
from scene_edge.codec.latents import END_BITS, MAX_GRID, LatentCoder, LatentTables
from tests.golden import recipes


def laplace_gop(seed: int, frames: int = 6, scale: float = 1.0) -> NDArray[np.int16]:
    """[T, 12, 18, 32]: half of the channels silent, the others correlated in time."""
    rng = np.random.default_rng(seed)
    gop = np.zeros((frames, 12, 18, 32), np.int16)
    for t in range(frames):
        for channel in range(6):
            fresh = np.rint(rng.laplace(0, scale * (0.3 + 0.4 * channel), (18, 32)))
            keep = rng.random((18, 32)) < 0.6 if t else np.zeros((18, 32), bool)
            gop[t, channel] = np.where(keep, gop[t - 1, channel], fresh)
    return gop


@pytest.fixture(scope="module")
def tables() -> LatentTables:
    return LatentTables.fit([laplace_gop(seed) for seed in range(4)])


def coded(gop: NDArray[np.int16], tables: LatentTables) -> list[bytes]:
    coder = LatentCoder(tables)
    return [coder.encode(z) for z in gop]


def decoded(payloads: list[bytes], shape: tuple[int, ...], tables: LatentTables) -> NDArray[np.int16]:
    coder = LatentCoder(tables)
    return np.stack([coder.decode(payload, (shape[0], shape[1], shape[2])) for payload in payloads])


@given(
    st.integers(0, 2**32),
    st.sampled_from([(1, 1, 1), (3, 2, 5), (6, 4, 4)]),
    st.sampled_from([0, 1, 3, 9, 500, 32768]),
    st.integers(1, 12),
)
def test_any_int16_comes_back(seed: int, shape: tuple[int, int, int], largest: int, max_abs: int) -> None:
    rng = np.random.default_rng(seed)
    sparse = rng.random((4, *shape)) < rng.random()
    values = rng.integers(-largest, largest + 1, (4, *shape)).clip(-32768, 32767)
    gop = np.where(sparse, values, 0).astype(np.int16)
    model = LatentTables.fit([rng.integers(-2, 3, (3, *shape))], max_abs=max_abs)
    assert np.array_equal(decoded(coded(gop, model), shape, model), gop)


def test_every_escape_length(tables: LatentTables) -> None:
    magnitudes = {2**k + d for k in range(15) for d in (-1, 0, 1)} | {32767, tables.max_abs, tables.max_abs + 1}
    values = np.zeros((12, 18, 32), np.int16)
    values.reshape(-1)[: 2 * len(magnitudes) + 1] = [*magnitudes, *(-m for m in magnitudes), -32768]
    assert np.array_equal(decoded([*coded(values[None], tables)], values.shape, tables)[0], values)


def test_silence_costs_nothing(tables: LatentTables) -> None:
    silent = np.zeros((12, 18, 32), np.int16)
    spoken = laplace_gop(9, frames=1)[0]
    payloads = coded(np.stack([silent, spoken, silent, silent, spoken]), tables)
    assert [len(payload) > 0 for payload in payloads] == [False, True, False, False, True]
    assert tables.estimate_bits(np.stack([silent, silent])) == 0.0


def test_a_silent_channel_costs_only_its_gate(tables: LatentTables) -> None:
    gop = laplace_gop(3)
    wider = LatentTables.fit([np.concatenate([gop, np.zeros((6, 20, 18, 32), np.int16)], axis=1)])
    narrow = LatentTables.fit([gop])
    extra = sum(map(len, coded(np.concatenate([gop, np.zeros((6, 20, 18, 32), np.int16)], axis=1), wider)))
    assert extra - sum(map(len, coded(gop, narrow))) < 6 * 20 // 4


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_written_bits_are_within_one_percent_of_the_estimate(scale: float) -> None:
    model = LatentTables.fit([laplace_gop(seed, scale=scale) for seed in range(3)])
    gop = laplace_gop(50, scale=scale)
    written = 8 * sum(map(len, coded(gop, model)))
    assert 1.0 <= written / model.estimate_bits(gop) < 1.01


def test_escapes_are_estimated_too(tables: LatentTables) -> None:
    gop = (laplace_gop(1) * 40).astype(np.int16)
    assert 1.0 <= 8 * sum(map(len, coded(gop, tables))) / tables.estimate_bits(gop) < 1.01


def test_context_from_the_frame_before_pays(tables: LatentTables) -> None:
    gop = laplace_gop(77)
    with_memory = sum(map(len, coded(gop, tables)))
    without = sum(len(coded(z[None], tables)[0]) for z in gop)
    assert with_memory < 0.9 * without


def test_fitted_tables_beat_tables_of_other_content() -> None:
    gop = laplace_gop(8)
    own, other = LatentTables.fit([gop], max_abs=9), LatentTables.fit([laplace_gop(8, scale=5)], max_abs=9)
    assert own.estimate_bits(gop) < other.estimate_bits(gop)


def test_reset_begins_without_context(tables: LatentTables) -> None:
    first, second = laplace_gop(5, frames=2)
    coder = LatentCoder(tables)
    alone = coder.encode(second)
    coder.reset()
    coder.encode(first)
    assert coder.encode(second) != alone
    coder.reset()
    assert coder.encode(second) == alone


def test_tensors_round_trip_and_digest(tables: LatentTables) -> None:
    tensors = tables.to_tensors()
    assert all(tensor.dtype == np.uint16 for tensor in tensors.values())
    again = LatentTables.from_tensors(tensors)
    assert again.digest == tables.digest
    assert again.max_abs == tables.max_abs
    changed = {name: tensor.copy() for name, tensor in tensors.items()}
    most = changed["symbols"][0, 0].argmax()
    changed["symbols"][0, 0, most] -= 1
    changed["symbols"][0, 0, most - 1] += 1
    assert LatentTables.from_tensors(changed).digest != tables.digest


def test_a_caller_may_reuse_its_array(tables: LatentTables) -> None:
    gop = laplace_gop(6)
    coder, buffer, payloads = LatentCoder(tables), np.empty_like(gop[0]), []
    for z in gop:
        buffer[...] = z
        payloads.append(coder.encode(buffer))
    assert payloads == coded(gop, tables)
    reader = LatentCoder(tables)
    for z, payload in zip(gop, payloads, strict=True):
        out = reader.decode(payload, (12, 18, 32))
        assert np.array_equal(out, z)
        out[...] = 99


def test_damage_raises_nothing_else_and_keeps_the_state() -> None:
    model, rng, refused = recipes.latent_tables(), random.Random(8), 0
    payloads = recipes.latent_payloads()
    for _ in range(600):
        coder = LatentCoder(model)
        coder.decode(payloads[0], (6, 8, 10))
        data = bytearray(payloads[1] if rng.random() < 0.5 else payloads[3])
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        try:
            coder.decode(bytes(data), (6, 8, 10))
        except EntropyError:
            refused += 1
            assert np.array_equal(coder.decode(payloads[1], (6, 8, 10)), recipes.latent_gop()[1])
    assert refused > 500


@given(st.binary(max_size=120))
def test_random_payloads_raise_nothing_else(data: bytes) -> None:
    try:
        z = LatentCoder(recipes.latent_tables()).decode(data, (6, 8, 10))
    except EntropyError:
        return
    assert LatentCoder(recipes.latent_tables()).encode(z) == data


@pytest.mark.parametrize(
    "shape", [(11, 18, 32), (12, 0, 32), (12, 18, MAX_GRID + 1), (12, MAX_GRID, MAX_GRID), (12, 18), (12, -1, 4)]
)
def test_shapes_are_checked_before_allocation(shape: tuple[int, ...], tables: LatentTables) -> None:
    with pytest.raises(EntropyError):
        LatentCoder(tables).decode(b"", shape)  # type: ignore[arg-type]


def test_a_change_of_shape_needs_a_reset(tables: LatentTables) -> None:
    coder = LatentCoder(tables)
    coder.encode(np.ones((12, 4, 4), np.int16))
    with pytest.raises(EntropyError, match="Send a key"):
        coder.encode(np.ones((12, 4, 6), np.int16))
    coder.reset()
    coder.encode(np.ones((12, 4, 6), np.int16))


def test_bad_input_is_refused(tables: LatentTables) -> None:
    with pytest.raises(EntropyError, match="16-bit"):
        LatentCoder(tables).encode(np.zeros((12, 4, 4), np.float32))  # type: ignore[arg-type]
    for samples in ([], [np.zeros((2, 3, 4), int)], [np.zeros((1, 2, 3, 4))], [np.full((1, 1, 1, 1), 40000)]):
        with pytest.raises(EntropyError):
            LatentTables.fit(samples)
    good = tables.to_tensors()
    for tensors in (
        {},
        {"symbols": good["symbols"]},
        {**good, "gates": good["gates"].astype(np.int32)},
        {**good, "gates": good["gates"][:-1]},
        {**good, "symbols": good["symbols"][:, :3]},
        {**good, "symbols": good["symbols"][:, :, :-1]},
        {**good, "symbols": good["symbols"] * 0},
        {**good, "symbols": np.zeros((600, 4, 8), np.uint16)},
    ):
        with pytest.raises(EntropyError):
            LatentTables.from_tensors(tensors)


def test_small_frames_cost_about_their_end_more_than_the_estimate() -> None:
    model = LatentTables.fit([laplace_gop(seed, scale=0.08) for seed in range(3)])
    gop = laplace_gop(60, frames=40, scale=0.08)
    written, spoken = 8 * sum(map(len, coded(gop, model))), sum(z.any() for z in gop)
    assert written / spoken < 900, "the frames should be small, or this test shows nothing"
    assert written == pytest.approx(model.estimate_bits(gop) + spoken * END_BITS, rel=0.01)
