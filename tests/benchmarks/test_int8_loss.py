"""What INT8 loses is told against float32 of the same system, engine by engine, on clips that both have whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.clips import Clip, parts_of_clip
from benchmarks.int8_loss import FLOAT, losses, variants_of
from scene_edge.codec.errors import ConfigError


def record(clip: str, system: str, variant: str, crf: int, factor: float) -> dict[str, Any]:
    """VMAF falls with the rate; `factor` times the bytes are needed for the same."""
    total = round(factor * 200_000 / 2 ** ((crf - 35) / 6))
    return {
        "clip": clip,
        "category": "natural",
        "system": system,
        "variant": variant,
        "crf": crf,
        "seconds": 2.0,
        "frames": 60,
        "bytes": {"video": total, "semantic": 0, "sei": 0, "overhead": 0, "total": total},
        "quality": {
            "vmaf": 95.0 - 1.5 * (crf - 35),
            "vmaf_neg": 90.0 - crf,
            "ms_ssim": 1 - crf / 1000,
            "ssim": 1 - crf / 900,
            "psnr_db": 70.0 - crf,
            "frames": 12,
        },
    }


def test_bd_rate_against_float_of_the_same_system() -> None:
    crfs = (35, 39, 43, 47)
    records = [record("a", "scene", FLOAT, crf, 1.0) for crf in crfs]
    records += [record("a", "scene", "openvino int8", crf, 1.02) for crf in crfs]
    records += [record("a", "smc", FLOAT, crf, 3.0) for crf in crfs]
    records += [record("b", "scene", FLOAT, crf, 1.0) for crf in crfs]
    records += [record("b", "scene", "openvino int8", crf, 5.0) for crf in crfs[:2]]
    found = losses(records, "scene", ["openvino", "onnx"], seed=0)
    vmaf = [row for row in found if row["metric"] == "vmaf"]
    assert {(row["system"], row["engine"], row["clips"]) for row in vmaf} == {("scene", "openvino", 1)}
    assert all(row["bd_rate_percent"]["value"] == pytest.approx(2.0, abs=0.01) for row in vmaf)


def test_float_comes_first_and_a_system_without_a_network_is_refused() -> None:
    found = variants_of(["smc"], ["openvino", "litert"])
    assert [variant.name for variant in found] == [FLOAT, "openvino int8", "litert int8"]
    for system in ("x264", "x265"):
        with pytest.raises(ConfigError, match="no INT8"):
            variants_of([system], ["onnx"])


@pytest.mark.parametrize(
    ("frames", "count", "starts"),
    [(100, 3, [0, 35, 70]), (100, 1, [0]), (61, 3, [0, 31]), (30, 3, [0]), (12, 3, [0])],
)
def test_parts_of_a_clip_lie_apart_and_within_it(frames: int, count: int, starts: list[int]) -> None:
    clip = Clip("vos/a", Path("a.mp4"), "vos", None, 64, 48, 25.0, frames)
    parts = parts_of_clip(clip, count, 30)
    assert [part.first for part in parts] == starts
    assert all(part.first + part.frames <= frames for part in parts)
    assert len({part.name for part in parts}) == len(parts)
