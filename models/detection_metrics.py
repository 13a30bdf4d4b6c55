"""Average precision of boxes against MOT ground truth, as PASCAL VOC counts it (all-point interpolation)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float32]


def read_mot(path: Path) -> dict[int, Boxes]:
    """Frame number (from 1) -> kept boxes x1, y1, x2, y2 [N, 4] of a MOT ground-truth file."""
    rows: dict[int, list[list[float]]] = {}
    for line in path.read_text().splitlines():
        fields = [float(field) for field in line.split(",")]
        if fields[6]:
            left, top, width, height = fields[2:6]
            rows.setdefault(int(fields[0]), []).append([left, top, left + width, top + height])
    return {frame: np.array(boxes, np.float32) for frame, boxes in rows.items()}


def average_precision(
    found: Mapping[int, tuple[Boxes, NDArray[np.float32]]], truth: Mapping[int, Boxes], iou: float = 0.5
) -> float:
    """`found` holds (boxes, scores) of each frame judged; frames not in it are left out on both sides."""
    verdicts: list[tuple[float, bool]] = []
    total = 0
    for frame, (boxes, scores) in found.items():
        real = truth.get(frame, np.zeros((0, 4), np.float32))
        total += len(real)
        free = np.ones(len(real), bool)
        for index in np.argsort(-scores, kind="stable"):
            sides = np.minimum(boxes[index, 2:], real[:, 2:]) - np.maximum(boxes[index, :2], real[:, :2])
            overlap = sides.clip(0).prod(1)
            areas = (boxes[index, 2:] - boxes[index, :2]).prod() + (real[:, 2:] - real[:, :2]).prod(1)
            ratio = np.where(free, overlap / np.maximum(areas - overlap, 1e-9), -1.0)
            hit = bool(len(real)) and float(ratio.max()) >= iou
            if hit:
                free[int(ratio.argmax())] = False
            verdicts.append((float(scores[index]), hit))
    if not verdicts or not total:
        return 0.0
    verdicts.sort(key=lambda verdict: -verdict[0])
    hits = np.cumsum([hit for _, hit in verdicts])
    recall, precision = hits / total, hits / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(np.concatenate([[0.0], recall])) * envelope).sum())
