"""SCENE's rate at equal quality, on one clip."""

from __future__ import annotations

import pytest

from benchmarks.clips import find_clips
from benchmarks.scene_rate import ratio
from scene_edge.codec.bundle import Bundle
from scene_edge.codec.media import read_video
from tests.data import dev_clip


def test_a_held_filter_keeps_within_its_bound() -> None:
    pytest.importorskip("onnxruntime")
    clip = find_clips([f"*/{dev_clip('carphone_pristine.mp4').stem}"])[0]
    pictures = [planes for planes, _ in read_video(clip.path, width=176, limit=8)]
    bundle = Bundle.open("scene-s")
    free, full = ratio(clip, pictures, bundle, 20, None)
    held, strength = ratio(clip, pictures, bundle, 20, 0.02)
    assert free > 1.02, "else there is nothing to hold"
    assert held <= 1.02
    assert strength < full == 1.0
