"""SCENE for machines: detail stays where something is, and nothing else changes; the map fades, looks and refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import BundleError, EngineError
from scene_edge.codec.planes import Planes, within
from scene_edge.edge.attention import CELL, KEPT, AttentionFilter, blend, coarsened, enlarged
from scene_edge.edge.config import CameraConfig
from scene_edge.edge.networks import open_networks
from scene_edge.edge.scene_guard import PROBE_FRAMES, GuardSettings, RateGuard
from tests.edge.bundles import where_bundle
from tests.edge.conftest import Configure
from tests.edge.test_networks import SECOND_NS, flat, onnx_session, pictures
from tests.waiting import wait_until

SIZE = (192, 128)
SAMPLES = arrays(np.uint8, (3, 5))


def textured(bright_half: bool = True, seed: int = 3) -> Planes:
    """Noise around 60, in the right half around 200 where something is to be."""
    width, height = SIZE
    random = np.random.default_rng(seed)
    level = np.where(np.arange(width) < width // 2, 60, 200 if bright_half else 60)
    luma = (level + random.integers(-30, 31, (height, width))).astype(np.uint8)
    chroma = np.broadcast_to(level[::2].astype(np.uint8), (height // 2, width // 2)).copy()
    return Planes(luma, chroma, chroma)


def opened(zoo: Path, **options: object) -> AttentionFilter:
    return AttentionFilter(Bundle.open("where-tiny", zoo=zoo), *SIZE, onnx_session, **options)  # type: ignore[arg-type]


def detail(luma: np.ndarray) -> float:
    return float(np.abs(np.diff(luma.astype(int), axis=1)).mean())


@given(SAMPLES, SAMPLES, arrays(np.int16, (3, 5), elements=st.integers(0, KEPT)))
def test_a_blend_lies_between_its_two_pictures(fine: np.ndarray, coarse: np.ndarray, kept: np.ndarray) -> None:
    out = blend(fine, coarse, kept)
    exact = coarse + (fine.astype(float) - coarse) * kept / KEPT
    assert np.abs(out - exact).max() <= 0.5
    assert np.array_equal(blend(fine, coarse, np.full_like(kept, KEPT)), fine)
    assert np.array_equal(blend(fine, coarse, np.zeros_like(kept)), coarse)


def test_a_blend_has_golden_values() -> None:
    fine, coarse = np.array([[0, 255, 100, 7]], np.uint8), np.array([[255, 0, 101, 200]], np.uint8)
    kept = np.array([[64, 1, 127, 100]], np.int16)
    assert blend(fine, coarse, kept).tolist() == [[128, 2, 100, 49]]


def test_a_map_is_enlarged_between_the_middles_of_its_cells() -> None:
    full = enlarged(np.array([[0.0, 1.0]], np.float32), 32, 16, (32, 16))
    assert full.shape == (16, 32)
    assert (full[:, :8] == 0).all()
    assert (full[:, 24:] == KEPT).all()
    assert (np.diff(full[0, 8:24]) == 8).all(), "a straight line from one middle to the next"
    padded = enlarged(np.array([[0.0, 1.0, 9.0]], np.float32), 32, 16, (32, 16))
    assert np.array_equal(padded[:, :24], full[:, :24]), "cells of the padding touch the picture's border alone"


@given(st.floats(0, 1), st.integers(1, 9), st.integers(1, 9))
def test_an_even_map_stays_even(share: float, rows: int, columns: int) -> None:
    full = enlarged(np.full((rows, columns), share, np.float32), 50, 34, (16 * columns, 16 * rows))
    assert (full == round(float(np.float32(share) * KEPT))).all()


@pytest.mark.parametrize(
    ("size", "seen"),
    [((1920, 1080), (640, 360)), ((1080, 1920), (360, 640)), ((320, 240), (320, 240)), ((4096, 34), (640, 16))],
)
def test_the_picture_that_is_looked_at_is_never_enlarged(size: tuple[int, int], seen: tuple[int, int]) -> None:
    assert within(*size, 640, CELL) == seen


def test_detail_stays_where_something_is(zoo: Path) -> None:
    scene, picture = opened(zoo), textured()
    out = scene.apply(picture, 0)
    assert np.array_equal(out.y[:, 112:], picture.y[:, 112:])
    assert detail(out.y[:, :80]) < 0.2 * detail(picture.y[:, :80])
    assert abs(float(out.y[:, :80].mean()) - float(picture.y[:, :80].mean())) < 0.5, "coarse, not dark"
    assert np.array_equal(out.y[:, :80], coarsened(picture, 4).y[:, :80])
    assert scene.engine.startswith("onnx fp32")
    scene.close()


@pytest.mark.parametrize("floor", [0.25, 1.0])
def test_a_floor_keeps_its_part_everywhere(zoo: Path, floor: float) -> None:
    scene, picture = opened(zoo, floor=floor), textured(bright_half=False)
    out, coarse = scene.apply(picture, 0), coarsened(picture, 4)
    wanted = coarse.y + (picture.y.astype(float) - coarse.y) * floor
    assert np.abs(out.y - wanted).max() <= 0.5
    scene.close()


def test_good_pictures_pass_and_coarse_ones_follow_the_map_alone(zoo: Path) -> None:
    picture = textured(bright_half=False)
    coarse = coarsened(picture, 4)
    for crf, kept in ((20.0, 1.0), (27.0, 1.0), (32.0, 0.5), (37.0, 0.0), (51.0, 0.0)):
        scene = opened(zoo, crf=crf)
        wanted = coarse.y + (picture.y.astype(float) - coarse.y) * kept
        scene.coded_with(51.0 if crf < 37 else 20.0)
        assert np.abs(scene.apply(picture, 0).y - wanted).max() <= 0.5, "what the settings say stands"
        scene.close()
    scene = opened(zoo, floor=0.25)
    assert detail(scene.apply(picture, 0).y) < 0.5 * detail(picture.y), "not known yet"
    scene.coded_with(20.0)
    assert np.array_equal(scene.apply(picture, SECOND_NS).y, picture.y)
    scene.coded_with(45.0)
    assert detail(scene.apply(picture, 2 * SECOND_NS).y) < 0.5 * detail(picture.y)
    scene.close()


def test_pictures_that_are_good_enough_cost_no_network_and_the_page_can_tell(zoo: Path) -> None:
    scene, looks = opened(zoo, crf=26.0), []
    run = scene._where.run
    scene._where.run = lambda inputs: looks.append(1) or run(inputs)  # type: ignore[method-assign,func-returns-value]
    picture = textured()
    assert scene.apply(picture, 0) is picture
    assert (looks, scene.strength) == ([], 0.0)
    scene.close()
    scene = opened(zoo, crf=28.0)
    assert scene.strength == 1.0
    scene.close()


def test_what_was_there_fades_and_a_cut_forgets_it(zoo: Path, tmp_path: Path) -> None:
    bundle = where_bundle(tmp_path / "where-tiny", high=0.45, fade=0.8)
    scene, kept = AttentionFilter(bundle, *SIZE, onnx_session), []
    there, gone = (Planes(textured(False).y, *[np.full((64, 96), level, np.uint8)] * 2) for level in (255, 60))
    assert np.array_equal(scene.apply(there, 0).y, there.y)
    for step in range(1, 5):
        kept.append(detail(scene.apply(gone, step * SECOND_NS // 8).y))
    assert kept[0] > kept[1] > kept[2] == kept[3], "less from look to look, until nothing is left"
    scene.apply(there, SECOND_NS)
    scene.apply(flat(255, *SIZE), 2 * SECOND_NS)
    cut = scene.apply(gone, 2 * SECOND_NS + 1)
    assert detail(cut.y) == kept[3], "another scene, looked at before it is due"
    scene.close()


def test_it_looks_when_it_is_due_and_not_before(zoo: Path) -> None:
    looks = []
    scene = opened(zoo)
    run = scene._where.run
    scene._where.run = lambda inputs: looks.append(1) or run(inputs)  # type: ignore[method-assign,func-returns-value]
    for millisecond in (0, 40, 80, 120, 130, 170, 300, 10):
        scene.apply(textured(), millisecond * 1_000_000)
    assert len(looks) == 4, "at 0, 130, 300 and where the clock went back"
    scene.reset()
    scene.apply(textured(), 20_000_000)
    assert len(looks) == 5
    scene.close()


def test_other_sizes_and_maps_that_are_none_are_refused(zoo: Path) -> None:
    scene = opened(zoo)
    with pytest.raises(EngineError, match="another size"):
        scene.apply(flat(100, 96, 64), 0)
    scene._where.run = lambda inputs: {"there": np.full((1, 1, 8, 12), np.nan, np.float32)}  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="no map"):
        scene.apply(textured(), 0)
    scene.close()


@pytest.mark.parametrize(
    "use",
    [
        {"on_crf": 27},
        {"off_crf": -1},
        {"low": 0.6},
        {"coarse": 4.5},
        {"coarse": 1},
        {"fade": -0.1},
        {"width": True},
        {"period_ms": "125"},
        {"x": 1},
    ],
)
def test_a_bundle_that_uses_its_map_wrongly_is_refused(tmp_path: Path, use: dict[str, object]) -> None:
    pytest.importorskip("onnx")
    bundle = where_bundle(tmp_path / "where-tiny", **use)
    with pytest.raises(BundleError):
        AttentionFilter(bundle, *SIZE, onnx_session)


class Refusing(RateGuard):
    """A guard whose probes always cost too much."""

    def judged(self, pairs: object, strength: float) -> float:
        return 0.0


@pytest.mark.parametrize("live", [False, True])
def test_a_filter_that_costs_bits_is_switched_off_at_a_keyframe(zoo: Path, live: bool) -> None:
    guard = Refusing(GuardSettings(max_rise=0.02, crf=27, preset="superfast", gop=8))
    scene, picture = opened(zoo, guard=guard, live=live), textured()
    for frame in range(PROBE_FRAMES):
        assert not np.array_equal(scene.apply(picture, frame).y, picture.y)
    if scene._beside is not None:
        beside = scene._beside
        wait_until(lambda: beside._thread is not None and not beside._thread.is_alive())
    for frame in range(PROBE_FRAMES, 8):
        assert not np.array_equal(scene.apply(picture, frame).y, picture.y), "not within a GOP"
    assert scene.strength == 1.0
    assert np.array_equal(scene.apply(picture, 8).y, picture.y)
    assert scene.strength == 0.0
    scene.reset()
    assert scene.strength == 1.0
    scene.close()


def test_weights_choose_the_bundle_and_a_camera_opens_either_kind(zoo: Path, configure: Configure) -> None:
    assert CameraConfig.model_validate({"scene": {"weights": "machine"}}).scene.bundle == "scene-machine"
    assert CameraConfig.model_validate({"scene": {"weights": "machine", "bundle": "own"}}).scene.bundle == "own"
    assert CameraConfig().scene.bundle == "scene-s"
    config = configure("scene.bundle=where-tiny", "scene.floor=1", "semantics.enabled=false")
    networks = open_networks(config, 96, 64, strict=True)
    assert isinstance(networks.scene, AttentionFilter)
    (picture,) = pictures(1)
    assert np.array_equal(networks.scene.apply(picture, 0).y, picture.y), "a floor of 1 filters nothing"
    networks.close()
