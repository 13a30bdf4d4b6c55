"""Detections in one picture: boxes, scores and classes in one validated dataclass, with the box arithmetic on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from scene_edge.codec.errors import FormatError
from scene_edge.server.analytics.coco import ROAD_USERS

F32: TypeAlias = NDArray[np.float32]
I64: TypeAlias = NDArray[np.int64]


MAX_CANDIDATES = 400


@dataclass(frozen=True, slots=True)
class Detections:
    """N detections: boxes f32 [N, 4] as x1, y1, x2, y2 in luma samples, scores f32 [N] in 0..1, classes int [N].

    `names[classes[i]]` is the class of detection i. Raises FormatError where the arrays do not fit one another.

    >>> found = Detections.of([[10, 20, 30, 60]], [0.9], [0], ("person", "vehicle"))
    >>> len(found), found.names[found.classes[0]]
    (1, 'person')
    """

    boxes: F32
    scores: F32
    classes: I64
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.boxes.ndim != 2 or self.boxes.shape[1] != 4 or self.boxes.dtype != np.float32:
            raise FormatError("boxes have the wrong form", got=_form(self.boxes), allowed="float32 [N, 4]")
        count = len(self.boxes)
        if self.scores.shape != (count,) or self.scores.dtype != np.float32:
            raise FormatError("scores do not fit the boxes", got=_form(self.scores), allowed=f"float32 [{count}]")
        if self.classes.shape != (count,) or self.classes.dtype != np.int64:
            raise FormatError("classes do not fit the boxes", got=_form(self.classes), allowed=f"int64 [{count}]")
        if not count:
            return
        if not np.isfinite(self.boxes).all() or (self.boxes[:, 2:] < self.boxes[:, :2]).any():
            raise FormatError("a box is not finite or ends before it starts", allowed="x1 <= x2 and y1 <= y2")
        if not ((self.scores >= 0) & (self.scores <= 1)).all():
            raise FormatError("a score is out of range", got=float(self.scores.max()), allowed="0..1")
        if self.classes.min() < 0 or self.classes.max() >= len(self.names):
            raise FormatError("a class has no name", got=int(self.classes.max()), allowed=f"0..{len(self.names) - 1}")

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def of(
        cls, boxes: Sequence[Sequence[float]], scores: Sequence[float], classes: Sequence[int], names: Sequence[str]
    ) -> Detections:
        """From plain lists."""
        return cls(
            np.asarray(boxes, np.float32).reshape(-1, 4),
            np.asarray(scores, np.float32),
            np.asarray(classes, np.int64),
            tuple(names),
        )

    @classmethod
    def none(cls, names: Sequence[str]) -> Detections:
        return cls.of([], [], [], names)

    def take(self, index: NDArray[np.bool_] | I64) -> Detections:
        """Those at `index` (mask or positions), in its order."""
        return Detections(self.boxes[index], self.scores[index], self.classes[index], self.names)

    def above(self, score: float) -> Detections:
        """Those with at least this score."""
        return self.take(self.scores >= score)

    def named(self, *names: str) -> Detections:
        """Those of the given classes; a name that this detector does not know selects nothing."""
        return self.take(np.isin(self.classes, [i for i, name in enumerate(self.names) if name in names]))

    def folded(self, groups: Mapping[str, Sequence[str]] = ROAD_USERS) -> Detections:
        """Classes replaced by the group that holds them, others dropped; already folded detections pass unchanged."""
        names = tuple(groups)
        if self.names == names:
            return self
        target = np.full(len(self.names), -1, np.int64)
        for position, members in enumerate(groups.values()):
            target[[i for i, name in enumerate(self.names) if name in members]] = position
        classes = target[self.classes]
        kept = classes >= 0
        return Detections(self.boxes[kept], self.scores[kept], classes[kept], names)


def iou_matrix(first: F32, second: F32) -> F32:
    """Intersection over union of each of [N, 4] with each of [M, 4] -> [N, M]; boxes without area give 0."""
    overlap = _overlap(first, second, 0)
    overlap *= _overlap(first, second, 1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None, :]
    union -= overlap
    return np.asarray(overlap / np.maximum(union, 1e-9, out=union), np.float32)


def _overlap(first: F32, second: F32, axis: int) -> F32:
    """By how much the boxes overlap along x (0) or y (1): [N, M], at least 0. One axis at a time stays in the cache."""
    ends = np.minimum(first[:, None, axis + 2], second[None, :, axis + 2])
    ends -= np.maximum(first[:, None, axis], second[None, :, axis])
    return np.maximum(ends, 0, out=ends)


def nms(detections: Detections, iou: float, limit: int = 300) -> Detections:
    """Greedy non-maximum suppression within each class: best score first, at most `limit` are kept.

    Only the best MAX_CANDIDATES compete: the cost grows with their square.
    """
    if len(detections) == 0:
        return detections
    order = np.argsort(-detections.scores, kind="stable")[:MAX_CANDIDATES]
    boxes = detections.boxes[order]
    same_class = detections.classes[order][:, None] == detections.classes[order][None, :]
    suppresses = (iou_matrix(boxes, boxes) > iou) & same_class
    alive = np.ones(len(order), np.bool_)
    kept: list[int] = []
    for position in range(len(order)):
        if not alive[position]:
            continue
        kept.append(position)
        if len(kept) == limit:
            break
        alive[position + 1 :] &= ~suppresses[position, position + 1 :]
    return detections.take(order[kept])


def _form(array: NDArray[np.generic]) -> str:
    return f"{array.dtype} {list(array.shape)}"
