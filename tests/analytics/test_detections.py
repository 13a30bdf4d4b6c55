"""Detections: what they refuse, selection and folding, IoU and NMS against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scene_edge.codec.errors import FormatError
from scene_edge.server.analytics.coco import COCO
from scene_edge.server.analytics.detections import Detections, iou_matrix, nms

NAMES = ("person", "vehicle")

boxes_strategy = st.lists(
    st.tuples(
        st.integers(0, 40),
        st.integers(0, 40),
        st.integers(0, 30),
        st.integers(0, 30),
        st.integers(0, 100),
        st.integers(0, 1),
    ),
    max_size=14,
)


def make(rows: list[tuple[int, int, int, int, int, int]]) -> Detections:
    boxes = [[x, y, x + w, y + h] for x, y, w, h, _, _ in rows]
    return Detections.of(boxes, [row[4] / 100 for row in rows], [row[5] for row in rows], NAMES)


def plain_iou(a: np.ndarray, b: np.ndarray) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(0.0, float(width)) * max(0.0, float(height))
    union = float((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])) - overlap
    return overlap / union if union > 0 else 0.0


@settings(max_examples=60, deadline=None)
@given(boxes_strategy)
def test_iou_is_that_of_each_pair(rows: list[tuple[int, int, int, int, int, int]]) -> None:
    boxes = make(rows).boxes
    matrix = iou_matrix(boxes, boxes)
    for i, first in enumerate(boxes):
        for j, second in enumerate(boxes):
            assert matrix[i, j] == pytest.approx(plain_iou(first, second), abs=1e-5)


@settings(max_examples=120, deadline=None)
@given(boxes_strategy, st.sampled_from([0.3, 0.5, 0.7]))
def test_nms_keeps_what_brute_force_keeps(rows: list[tuple[int, int, int, int, int, int]], limit: float) -> None:
    found = make(rows)
    order = sorted(range(len(found)), key=lambda i: -found.scores[i])
    kept: list[int] = []
    for i in order:
        rivals = [j for j in kept if found.classes[j] == found.classes[i]]
        if all(iou_matrix(found.boxes[[i]], found.boxes[[j]])[0, 0] <= limit for j in rivals):
            kept.append(i)
    result = nms(found, limit)
    assert result.boxes.tolist() == found.boxes[kept].tolist()
    assert result.scores.tolist() == found.scores[kept].tolist()


def test_nms_stops_at_its_limit() -> None:
    found = Detections.of([[i * 10, 0, i * 10 + 5, 5] for i in range(9)], [0.5] * 9, [0] * 9, NAMES)
    assert len(nms(found, 0.5, limit=4)) == 4
    assert len(nms(Detections.none(NAMES), 0.5)) == 0


@pytest.mark.parametrize(
    ("boxes", "scores", "classes", "says"),
    [
        ([[0, 0, 1]], [0.5], [0], "boxes have the wrong form"),
        ([[0, 0, 1, 1]], [0.5, 0.5], [0], "scores do not fit"),
        ([[0, 0, 1, 1]], [0.5], [0, 1], "classes do not fit"),
        ([[5, 0, 1, 1]], [0.5], [0], "ends before it starts"),
        ([[0, 0, float("nan"), 1]], [0.5], [0], "not finite"),
        ([[0, 0, 1, 1]], [1.5], [0], "score is out of range"),
        ([[0, 0, 1, 1]], [0.5], [2], "class has no name"),
        ([[0, 0, 1, 1]], [0.5], [-1], "class has no name"),
    ],
)
def test_misfits_are_refused(boxes: list, scores: list, classes: list, says: str) -> None:
    with pytest.raises(FormatError, match=says):
        Detections(np.array(boxes, np.float32), np.array(scores, np.float32), np.array(classes, np.int64), NAMES)


def test_double_precision_boxes_are_refused() -> None:
    with pytest.raises(FormatError, match="float32"):
        Detections(np.zeros((0, 4)), np.zeros(0, np.float32), np.zeros(0, np.int64), NAMES)


def test_selection_by_name_and_score() -> None:
    found = Detections.of([[0, 0, 1, 1]] * 3, [0.9, 0.4, 0.6], [0, 1, 1], NAMES)
    assert found.named("vehicle").scores.tolist() == pytest.approx([0.4, 0.6])
    assert len(found.named("zebra")) == 0
    assert found.above(0.5).classes.tolist() == [0, 1]


def test_coco_folds_into_persons_and_vehicles() -> None:
    wanted = {"person": 0, "car": 1, "motorcycle": 1, "bus": 1, "truck": 1}
    found = Detections.of([[i, 0, i + 1, 1] for i in range(80)], [0.5] * 80, list(range(80)), COCO)
    folded = found.folded()
    assert folded.names == NAMES
    assert {COCO[int(box[0])]: int(cls) for box, cls in zip(folded.boxes, folded.classes, strict=True)} == wanted
    assert folded.folded() is folded


def test_coco_has_eighty_different_names() -> None:
    assert len(set(COCO)) == 80
    assert (COCO[0], COCO[2], COCO[79]) == ("person", "car", "toothbrush")
