"""FastestDet as a second judge of boxes. It is no stranger to SMC, whose Sem-Net is its body; DeepLab's masks are.

Output of the ONNX file, [1, 5 + 80, 22, 22]: objectness, then offsets (tanh, in cells) and sizes (sigmoid, in parts of
the picture), then class probabilities. Inputs are BGR / 255, stretched to 352 x 352. Upstream: dog-qiuqiu, BSD-3.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from scene_edge.codec.errors import FormatError, SourceError
from scene_edge.codec.planes import Planes
from scene_edge.server.analytics.coco import COCO
from scene_edge.server.analytics.detections import Detections, nms
from scene_edge.server.analytics.detector import merge_tiles
from scene_edge.server.analytics.tiles import Tile, bgr_of, crop, square_tiles

CONFIDENT = 0.65
"""Upstream's own threshold, for a score that is objectness ** 0.6 * class ** 0.4."""

WEAKEST = 0.3
NMS_IOU = 0.45


def decode_fastestdet(output: NDArray[np.float32], tile: Tile, score: float, names: tuple[str, ...]) -> Detections:
    """Raw [5 + classes, rows, columns] of a tile -> detections in the picture's samples, overlaps still in."""
    if output.ndim != 3 or len(output) != 5 + len(names):
        raise FormatError("this is no FastestDet output", got=output.shape, allowed=f"[{5 + len(names)}, h, w]")
    height, width = output.shape[1:]
    rows, columns = np.mgrid[0:height, 0:width]
    scores = output[0] ** 0.6 * output[5:].max(axis=0) ** 0.4
    size = np.array([tile.width, tile.height], np.float64)
    centre = np.stack([(columns + np.tanh(output[1])) / width, (rows + np.tanh(output[2])) / height], -1)
    half = 0.5 / (1 + np.exp(-np.stack([output[3], output[4]], -1).astype(np.float64)))
    boxes = np.concatenate([(centre - half) * size, (centre + half) * size], -1) + [tile.left, tile.top] * 2
    kept = scores >= score
    classes = output[5:].argmax(axis=0)[kept].astype(np.int64)
    return Detections(boxes[kept].astype(np.float32), np.clip(scores[kept], 0, 1).astype(np.float32), classes, names)


class FastestDet:
    """The detector on its ONNX file; a wide picture is cut into two overlapping square tiles, as for YOLOX."""

    def __init__(self, path: Path, *, score: float = WEAKEST, threads: int = 1) -> None:
        import onnxruntime

        if not path.is_file():
            raise SourceError(f"no such detector: {path}", hint="It is part of the data's models/ folder.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (spec,) = self._session.get_inputs()
        self._input, self._side, self._score = spec.name, int(spec.shape[-1]), score

    def detect(self, planes: Planes) -> Detections:
        tiles = square_tiles(planes.width, planes.height)
        return merge_tiles([self._tile(planes, tile) for tile in tiles], tiles, planes.width, planes.height, NMS_IOU)

    def _tile(self, planes: Planes, tile: Tile) -> Detections:
        picture = cv2.resize(bgr_of(crop(planes, tile)), (self._side, self._side), interpolation=cv2.INTER_AREA)
        feed = np.ascontiguousarray(picture.transpose(2, 0, 1)[None], np.float32) / 255
        output = np.asarray(self._session.run(None, {self._input: feed})[0], np.float32)[0]
        return nms(decode_fastestdet(output, tile, self._score, COCO), NMS_IOU)
