"""SCENE's kernels, clip by clip: what is measured and drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.clips import find_clips
from benchmarks.scene_kernels import coefficients_of, draw, errors_of
from scene_edge.codec.bundle import Bundle
from scene_edge.codec.kernels import KernelBank
from scene_edge.inference.session import open_session
from tests.data import dev_clip


def test_a_clip_gets_kernels_of_its_own() -> None:
    pytest.importorskip("onnxruntime")
    clip = find_clips([f"*/{dev_clip('carphone_pristine.mp4').stem}"])[0]
    bundle = Bundle.open("scene-s")
    prior = open_session(bundle, "prior", height=18, width=32, prefer=("onnx",), threads=1)
    found = coefficients_of(clip, bundle, prior)
    bank = KernelBank(bundle)
    assert found.shape[1] == bank.coefficients
    errors = errors_of(clip, bundle, bank.assemble(found[0]), ["onnx"])
    assert errors["onnx folded"] < min(0.3, errors["filter moves"])


def test_coefficients_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(np.random.default_rng(1).random((3, 16), np.float32), ["a", "b", "c"], tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 2000
