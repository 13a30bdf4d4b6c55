"""Object detectors behind one seam: any YOLOX-style ONNX file by path, or one of our bundles by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import BundleError, EngineError, FormatError, SourceError
from scene_edge.codec.planes import ALIGN, U8, Planes, pack
from scene_edge.inference.session import DEFAULT_ENGINES, open_session
from scene_edge.server.analytics.coco import COCO
from scene_edge.server.analytics.detections import F32, Detections, nms
from scene_edge.server.analytics.seams import Detector
from scene_edge.server.analytics.tiles import (
    PAD_BGR,
    Letterbox,
    Tile,
    bgr_of,
    crop,
    letterboxed,
    scaled,
    square_tiles,
)

STRIDES = (8, 16, 32)
NMS_IOU = 0.5
SCORE = 0.05
"""Weak detections are kept: ByteTrack uses them, and who wants fewer calls `Detections.above`."""

MAX_LOG_SIZE = 10.0


def grid_cells(width: int, height: int, strides: Sequence[int] = STRIDES) -> tuple[F32, F32]:
    """Cell positions [N, 2] as (column, row) and strides [N, 1] of a YOLOX-style output, finest level first."""
    cells: list[F32] = []
    steps: list[F32] = []
    for stride in strides:
        columns, rows = np.meshgrid(np.arange(width // stride), np.arange(height // stride))
        level = np.stack([columns.reshape(-1), rows.reshape(-1)], axis=1).astype(np.float32)
        cells.append(level)
        steps.append(np.full((len(level), 1), stride, np.float32))
    return np.concatenate(cells), np.concatenate(steps)


def decode_boxes(raw: F32, cells: F32, steps: F32) -> F32:
    """YOLOX's box code [N, 4] -> x1, y1, x2, y2 in input samples: xy = (o + cell) * stride, wh = exp(o) * stride."""
    centre = (raw[:, :2] + cells) * steps
    half = np.exp(np.minimum(raw[:, 2:4], MAX_LOG_SIZE)) * steps / 2
    return np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)


def decode_yolox(output: F32, cells: F32, steps: F32, score: float, names: tuple[str, ...]) -> Detections:
    """Raw [N, 5 + classes] -> detections in input samples; scores are objectness times the best class.

    N must be that of the grid. Raises FormatError otherwise.
    """
    if output.shape != (len(cells), 5 + len(names)):
        expected = (len(cells), 5 + len(names))
        raise FormatError("detector output does not fit its grid", got=output.shape, allowed=expected)
    classes = output[:, 5:].argmax(axis=1).astype(np.int64)
    scores = output[:, 4] * output[np.arange(len(output)), 5 + classes]
    kept = np.flatnonzero(scores >= score)
    boxes = decode_boxes(output[kept], cells[kept], steps[kept])
    return Detections(boxes, np.clip(scores[kept], 0, 1).astype(np.float32), classes[kept], names)


def decode_levels(logits: F32, raw: F32, cells: F32, steps: F32, score: float, names: tuple[str, ...]) -> Detections:
    """Class logits [N, classes] and raw boxes [N, 4] of our own network -> detections in input samples."""
    if logits.shape != (len(cells), len(names)) or raw.shape != (len(cells), 4):
        got, allowed = (logits.shape, raw.shape), ((len(cells), len(names)), (len(cells), 4))
        raise FormatError("detector output does not fit its grid", got=got, allowed=allowed)
    classes = logits.argmax(axis=1).astype(np.int64)
    best = logits[np.arange(len(logits)), classes]
    kept = np.flatnonzero(best >= -np.log(1 / score - 1))  # the logit of the least score
    scores = 1 / (1 + np.exp(-best[kept].astype(np.float64)))
    boxes = decode_boxes(raw[kept], cells[kept], steps[kept])
    return Detections(boxes, scores.astype(np.float32), classes[kept], names)


def merge_tiles(found: Sequence[Detections], tiles: Sequence[Tile], width: int, height: int, iou: float) -> Detections:
    """Per-tile detections (already in picture samples) -> one set.

    A box cut off by a tile's inner edge is dropped where the neighbouring tile shows the whole of it.
    """
    overlap_x = tiles[0].left + tiles[0].width - tiles[-1].left
    overlap_y = tiles[0].top + tiles[0].height - tiles[-1].top
    parts: list[Detections] = []
    for detections, tile in zip(found, tiles, strict=True):
        boxes, slack = detections.boxes, 0.01 * max(tile.width, tile.height)
        cut_x = ((boxes[:, 0] <= tile.left + slack) & (tile.left > 0)) | (
            (boxes[:, 2] >= tile.left + tile.width - slack) & (tile.left + tile.width < width)
        )
        cut_y = ((boxes[:, 1] <= tile.top + slack) & (tile.top > 0)) | (
            (boxes[:, 3] >= tile.top + tile.height - slack) & (tile.top + tile.height < height)
        )
        seen_whole_beside = (cut_x & (boxes[:, 2] - boxes[:, 0] < overlap_x)) | (
            cut_y & (boxes[:, 3] - boxes[:, 1] < overlap_y)
        )
        parts.append(detections.take(~seen_whole_beside))
    boxes = np.concatenate([part.boxes for part in parts])
    boxes = np.clip(boxes, 0, np.array([width, height] * 2, np.float32))
    scores = np.concatenate([part.scores for part in parts])
    classes = np.concatenate([part.classes for part in parts])
    return nms(Detections(boxes, scores, classes, found[0].names), iou)


class YoloxDetector:
    """A YOLOX-style ONNX file through ONNX Runtime: square BGR 0-255 input, output [1, N, 5 + classes].

    A wide picture is cut into two overlapping square tiles. Classes carry COCO's names where there are 80.
    """

    def __init__(self, path: Path, *, score: float = SCORE, iou: float = NMS_IOU, threads: int | None = None) -> None:
        self._session = _onnx_session(path, threads)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape = inputs[0].shape
        if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3 or not all(isinstance(side, int) for side in shape[2:]):
            raise FormatError(f"{path} is not a YOLOX-style detector", got=shape, allowed="one input [1, 3, H, W]")
        self._input, self._height, self._width = inputs[0].name, int(shape[2]), int(shape[3])
        values = outputs[0].shape[-1]
        if not isinstance(values, int) or values < 6:
            raise FormatError(
                f"{path} is not a YOLOX-style detector", got=outputs[0].shape, allowed="[1, N, 5 + classes]"
            )
        self.name = f"{path.stem}/onnx"
        self.names = COCO if values == 85 else tuple(f"class{index}" for index in range(values - 5))
        self._cells, self._steps = grid_cells(self._width, self._height)
        self._score, self._iou = score, iou

    def detect(self, planes: Planes) -> Detections:
        tiles = square_tiles(planes.width, planes.height)
        found = [self._detect_tile(crop(planes, tile), tile) for tile in tiles]
        return merge_tiles(found, tiles, planes.width, planes.height, self._iou)

    def _detect_tile(self, planes: Planes, tile: Tile) -> Detections:
        box = Letterbox.fit(planes.width, planes.height, self._width, self._height)
        picture: U8 = np.full((self._height, self._width, 3), PAD_BGR, np.uint8)
        picture[: box.height, : box.width] = bgr_of(scaled(planes, box.width, box.height))
        feed = np.ascontiguousarray(picture.transpose(2, 0, 1)[None], np.float32)
        output = np.asarray(self._session.run(None, {self._input: feed})[0], np.float32)[0]
        found = nms(decode_yolox(output, self._cells, self._steps, self._score, self.names), self._iou)
        boxes = box.to_picture(found.boxes) + np.array([tile.left, tile.top] * 2, np.float32)
        return Detections(boxes, found.scores, found.classes, self.names)

    def close(self) -> None:
        del self._session


class BundleDetector:
    """A detector bundle of ours through an inference Session: the whole picture, letterboxed and packed as YUV.

    Parameters of the bundle: "size" [height, width] in luma samples, "strides", "classes".
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        score: float = SCORE,
        iou: float = NMS_IOU,
        threads: int | None = None,
        prefer: Sequence[str] = DEFAULT_ENGINES,
    ) -> None:
        if bundle.kind != "detector":
            raise BundleError(f"bundle {bundle.name} is no detector", got=bundle.kind, allowed="kind detector")
        height, width, strides, names = _parameters(bundle)
        self.session = open_session(
            bundle, "detector", height=height // 4, width=width // 4, prefer=prefer, threads=threads
        )
        self.name = f"{bundle.name}/{self.session.engine}-{self.session.precision}"
        self.fallbacks = self.session.fallbacks
        self.names = names
        self._width, self._height, self._strides = width, height, strides
        self._cells, self._steps = grid_cells(width, height, strides)
        self._score, self._iou = score, iou

    def detect(self, planes: Planes) -> Detections:
        box = Letterbox.fit(planes.width, planes.height, self._width, self._height)
        outputs = self.session.run({"x": pack(letterboxed(planes, box, self._width, self._height))[None]})
        logits = np.concatenate([_rows(outputs[f"score{stride}"]) for stride in self._strides])
        raw = np.concatenate([_rows(outputs[f"box{stride}"]) for stride in self._strides])
        found = decode_levels(logits, raw, self._cells, self._steps, self._score, self.names)
        found = nms(found, self._iou)
        edge = np.array([planes.width, planes.height] * 2, np.float32)
        return Detections(np.clip(box.to_picture(found.boxes), 0, edge), found.scores, found.classes, self.names)

    def close(self) -> None:
        self.session.close()


def _rows(output: NDArray[Any]) -> F32:
    """[1, C, h, w] -> [h * w, C]."""
    return np.ascontiguousarray(output[0].reshape(output.shape[1], -1).T, np.float32)


def _parameters(bundle: Bundle) -> tuple[int, int, tuple[int, ...], tuple[str, ...]]:
    """Height, width, strides and class names; raises BundleError where they cannot be used."""
    try:
        height, width = (int(side) for side in bundle.parameters["size"])
        strides = tuple(int(stride) for stride in bundle.parameters["strides"])
        names = tuple(str(name) for name in bundle.parameters["classes"])
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"bundle {bundle.name} lacks a detector's parameters", got=repr(error), allowed="size, strides, classes"
        ) from error
    if not (strides and names and min(strides) > 0) or height % max(*strides, ALIGN) or width % max(*strides, ALIGN):
        raise BundleError(f"bundle {bundle.name} has unusable parameters", got=(height, width, strides, names))
    return height, width, strides, names


def _onnx_session(path: Path, threads: int | None) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError("ONNX Runtime is not installed", hint="Install scene-edge[onnx].") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types for a broken file
        raise FormatError(f"{path} is not an ONNX model that loads", got=str(error).splitlines()[0]) from error


def open_detector(
    spec: str | Path,
    *,
    score: float = SCORE,
    iou: float = NMS_IOU,
    threads: int | None = None,
    prefer: Sequence[str] = DEFAULT_ENGINES,
    public_key: bytes | None = None,
) -> Detector:
    """A `.onnx` path gives a YoloxDetector; anything else is the name or folder of a detector bundle, which
    `public_key` must have signed, where there is one.

    Raises SourceError where the file is missing, FormatError where it is no detector or bears no signature,
    EngineError where none runs it.
    """
    path = Path(spec)
    if path.suffix == ".onnx":
        if public_key is not None:
            raise BundleError(
                "a file of its own bears no signature", got=str(path), allowed="signed bundles alone, with this key"
            )
        if not path.is_file():
            raise SourceError(f"no such detector: {path}", hint="Give a YOLOX-style .onnx file or a bundle name.")
        return YoloxDetector(path, score=score, iou=iou, threads=threads)
    bundle = Bundle.open(spec, public_key=public_key)
    return BundleDetector(bundle, score=score, iou=iou, threads=threads, prefer=prefer)
