"""The detector that labels training frames: a YOLOX-style ONNX file run at build time. Not what the server runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from scene_edge.codec.planes import Planes

CLASSES = ("person", "vehicle")
COCO_TO_CLASS = {0: 0, 2: 1, 3: 1, 5: 1, 7: 1}
"""COCO's person; car, motorcycle, bus and truck. Bicycles stay out: their riders are persons."""

STRIDES = (8, 16, 32)


@dataclass(frozen=True, slots=True)
class Labels:
    """boxes f32 [N, 4] as x1, y1, x2, y2 in 0..1 of the picture, classes int64 [N] into CLASSES, scores f32 [N]."""

    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    scores: NDArray[np.float32]


def suppress(boxes: NDArray[np.float32], scores: NDArray[np.float32], iou: float) -> list[int]:
    """Positions that survive greedy non-maximum suppression, best first."""
    order = list(np.argsort(-scores, kind="stable"))
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept: list[int] = []
    while order:
        best = order.pop(0)
        kept.append(int(best))
        if not order:
            break
        rest = np.array(order)
        sides = np.minimum(boxes[best, 2:], boxes[rest, 2:]) - np.maximum(boxes[best, :2], boxes[rest, :2])
        overlap = sides.clip(0).prod(1)
        order = list(rest[overlap / np.maximum(areas[best] + areas[rest] - overlap, 1e-9) <= iou])
    return kept


class Teacher:
    """Labels pictures with the weak answers kept, so that training can ignore what the teacher doubts."""

    def __init__(self, path: Path, *, score: float = 0.1, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.score = score
        self.size = int(self.session.get_inputs()[0].shape[2])
        grids = []
        for stride in STRIDES:
            columns, rows = np.meshgrid(np.arange(self.size // stride), np.arange(self.size // stride))
            grids.append(np.stack([columns.ravel(), rows.ravel(), np.full(columns.size, stride)], 1))
        self.grid = np.concatenate(grids).astype(np.float32)

    def label(self, planes: Planes) -> Labels:
        """Two overlapping square tiles where the picture is wide, whole otherwise; dark pictures are lifted first."""
        width, height = planes.width, planes.height
        lifted = lift(planes)
        lefts = (0, (width - height) // 2 * 2) if width >= 1.5 * height else (0,)
        found = []
        for left in lefts:
            right = left + height if len(lefts) == 2 else width
            boxes, classes, scores = self._tile(lifted, left, right)
            slack = 0.01 * height
            cut = ((boxes[:, 0] <= left + slack) & (left > 0)) | ((boxes[:, 2] >= right - slack) & (right < width))
            whole = ~(cut & (boxes[:, 2] - boxes[:, 0] < 2 * height - width))
            found.append((boxes[whole], classes[whole], scores[whole]))
        boxes, classes, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
        kept = suppress(boxes + classes[:, None].astype(np.float32) * 4 * width, scores, 0.5)
        relative = (boxes[kept] / np.array([width, height] * 2)).clip(0, 1).astype(np.float32)
        return Labels(relative, classes[kept], scores[kept])

    def _tile(
        self, planes: Planes, left: int, right: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
        i420 = np.concatenate(
            [
                np.ascontiguousarray(planes.y[:, left:right]).ravel(),
                np.ascontiguousarray(planes.u[:, left // 2 : right // 2]).ravel(),
                np.ascontiguousarray(planes.v[:, left // 2 : right // 2]).ravel(),
            ]
        )
        picture = cv2.cvtColor(i420.reshape(-1, right - left), cv2.COLOR_YUV2BGR_I420)
        scale = self.size / max(picture.shape[:2])
        sides = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
        feed = np.full((self.size, self.size, 3), 114, np.uint8)
        feed[: sides[1], : sides[0]] = cv2.resize(
            picture, sides, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        )
        name = self.session.get_inputs()[0].name
        raw = self.session.run(None, {name: feed.transpose(2, 0, 1)[None].astype(np.float32)})[0][0]
        every = raw[:, 4:5] * raw[:, 5:]
        coco = every.argmax(1)
        scores = every[np.arange(len(every)), coco].astype(np.float32)
        kept = np.flatnonzero((scores >= self.score) & np.isin(coco, list(COCO_TO_CLASS)))
        grid, raw = self.grid[kept], raw[kept]
        centre, half = (raw[:, :2] + grid[:, :2]) * grid[:, 2:], np.exp(raw[:, 2:4]) * grid[:, 2:] / 2
        boxes = np.concatenate([centre - half, centre + half], 1) / scale + np.array([left, 0, left, 0])
        classes = np.array([COCO_TO_CLASS[int(index)] for index in coco[kept]], np.int64)
        survivors = suppress(boxes, scores[kept], 0.5)
        return boxes[survivors].astype(np.float32), classes[survivors], scores[kept][survivors]


def lift(planes: Planes, target: float = 90.0) -> Planes:
    """Night footage brightened so that a detector trained by day sees it: gamma curve on luma, chroma spread along."""
    mean = float(planes.y.mean()) - 16
    if mean >= target / 2 or mean <= 0:
        return planes
    level = np.clip((np.arange(256) - 16) / 219, 0, 1)
    gamma = max(0.4, np.log(target / 219) / np.log(max(mean, 4) / 219))
    curve = (16 + 219 * level**gamma).astype(np.uint8)
    return Planes(curve[planes.y], planes.u, planes.v)
