"""The sceptic's recognisers on features that are made up; nothing is decoded or recognised here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.sceptic import Labelled, answers, compare, evaluate_set, listed, points_of, random_crfs, small_clip
from scene_edge.codec.errors import UsageError
from scene_edge.models.action_clips import CACHE_HEIGHT, CACHE_WIDTH
from tests.benchmarks.test_systems import pictures


def test_crfs_are_drawn_from_the_whole_range_and_repeat() -> None:
    drawn = random_crfs(200, 2, 31, 51, seed=3)
    assert drawn.shape == (200, 2)
    assert (drawn.min(), drawn.max()) == (31, 51)
    assert (drawn == random_crfs(200, 2, 31, 51, seed=3)).all()


def test_views_vote_by_their_mean() -> None:
    features = np.array([[[1.0, 0.0], [0.0, 3.0]], [[2.0, 0.0], [0.0, 1.0]]], np.float32)
    assert answers(features, np.eye(2, dtype=np.float32), np.zeros(2, np.float32)).tolist() == [1, 0]


def test_a_gain_is_counted_on_the_same_clips() -> None:
    first = np.array([True, False, False, True] * 10)
    second = np.array([True, True, False, True] * 10)
    report = compare({"originals": first, "compressed": second}, seed=0)
    assert report["originals"]["top1"] == 50
    assert report["originals"]["gain_interval95"] == [0, 0]
    assert report["compressed"]["gain"] == 25
    low, high = report["compressed"]["gain_interval95"]
    assert 0 < low < 25 < high
    low, high = report["compressed"]["interval95"]
    assert low < 75 < high


def test_small_clips_are_as_training_takes_them() -> None:
    clip = small_clip(pictures(8), 30.0, Labelled("a.mp4", "run", "g"), 1)
    assert clip.fps == 15
    assert clip.y.shape == (4, CACHE_HEIGHT, CACHE_WIDTH)
    assert clip.u.shape == clip.v.shape == (4, CACHE_HEIGHT // 2, CACHE_WIDTH // 2)


def test_a_limit_is_for_each_label(tmp_path: Path) -> None:
    entries = [
        {"category": category, "split": split, "file": f"{index}.mp4", "label": label, "group": 1}
        for index, (category, split, label) in enumerate(
            [("action-fight", "train", "fight")] * 3
            + [("action-fight", "train", "nofight")] * 2
            + [("action-fight", "dev", "fight"), ("action-ARID", "train", "run")]
        )
    ]
    (tmp_path / "index.json").write_text(json.dumps(entries))
    assert [clip.label for clip in listed(tmp_path, "fight", "train", 1)] == ["fight", "nofight"]
    assert len(listed(tmp_path, "fight", "train", None)) == 5
    with pytest.raises(UsageError, match="no such action set"):
        listed(tmp_path, "chess", "train", None)


class Known:
    """Features by clip: two views that both say the label, or its opposite once the video is coded."""

    def of(self, clip: Labelled, system: str | None, crf: int | None) -> tuple[Any, float]:
        sign = 1.0 if (clip.label == "run") != (crf is not None) else -1.0
        return np.full((2, 1), sign, np.float32), 0.0 if crf is None else 100.0


def test_each_point_is_judged_by_each_recogniser() -> None:
    clips = [Labelled(f"{i}.mp4", "run" if i % 2 else "walk", "g") for i in range(6)]
    weight, none = np.array([[1.0], [-1.0]], np.float32), np.zeros(2, np.float32)
    fitted: Any = {"originals": (weight, none), "compressed": (-weight, none)}
    known: Any = Known()
    rows = evaluate_set(known, clips, fitted, list(points_of(["x264"], [43])), ["run", "walk"], seed=0)
    assert [(row["system"], row["crf"], row["kbps"]) for row in rows] == [("original", None, 0.0), ("x264", 43, 100.0)]
    assert [row["top1"]["originals"]["top1"] for row in rows] == [100, 0]
    assert [row["top1"]["compressed"]["top1"] for row in rows] == [0, 100]
