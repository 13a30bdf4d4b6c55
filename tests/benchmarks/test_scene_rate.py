"""SCENE's rate at equal quality, on one clip."""

from __future__ import annotations

import pytest

from benchmarks.clips import find_clips
from benchmarks.scene_rate import ratio
from scene_edge.codec.bundle import Bundle
from scene_edge.codec.media import read_video
from tests.data import dev_clip


def test_the_shipped_filter_keeps_within_its_bound_by_itself_and_is_weakened_within_a_tighter_one() -> None:
    pytest.importorskip("onnxruntime")
    clip = find_clips([f"*/{dev_clip('carphone_pristine.mp4').stem}"])[0]
    pictures = [planes for planes, _ in read_video(clip.path, width=176, limit=64)]
    bundle = Bundle.open("scene-s")
    for crf in (18, 27):
        free, full = ratio(clip, pictures, bundle, crf, "human", None)
        assert (free <= 1.02, full) == (True, 1.0)
    held, strength = ratio(clip, pictures, bundle, 18, "human", 0.001)
    assert strength < 1.0
    assert held != free
