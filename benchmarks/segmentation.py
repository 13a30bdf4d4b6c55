"""Segmentation as a task: DeepLabV3 (MobileNetV2, Pascal VOC) label maps, scored against masks and against themselves.

The network: 513 x 513 RGB, u8, letterboxed; out comes one Pascal class for each sample, 0 is background.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from scene_edge.codec.errors import FormatError, SourceError
from scene_edge.codec.planes import Planes
from scene_edge.inference import litert
from scene_edge.server.analytics.tiles import Letterbox, bgr_of

Labels: TypeAlias = NDArray[np.uint8]
"""One class for each sample, [rows, columns]."""

CLASSES = 21
PAD = 128

SEEN = 0.002
"""A class must cover this part of what the original's verdicts show, or a speck would weigh as much as a person."""


class Segmenter:
    """The network on its TFLite file, through the LiteRT that the product uses."""

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        if not path.is_file():
            raise SourceError(f"no such segmentation model: {path}", hint="It is part of the data's models/ folder.")
        module, _ = litert.load()
        self._network = module.Interpreter(str(path), num_threads=threads)
        self._network.allocate_tensors()
        (given,), (taken,) = self._network.get_input_details(), self._network.get_output_details()
        if given["dtype"] != np.uint8 or given["shape"][3] != 3:
            raise FormatError(f"{path} is no segmentation model", got=given["shape"], allowed="u8 [1, H, W, 3]")
        self._input, self._output, self._side = given["index"], taken["index"], int(given["shape"][1])

    def labels(self, planes: Planes) -> Labels:
        """The classes of the picture, at the size at which the network saw it."""
        box = Letterbox.fit(planes.width, planes.height, self._side, self._side)
        rgb = cv2.cvtColor(np.ascontiguousarray(bgr_of(planes)), cv2.COLOR_BGR2RGB)
        feed = np.full((1, self._side, self._side, 3), PAD, np.uint8)
        feed[0, : box.height, : box.width] = cv2.resize(rgb, (box.width, box.height), interpolation=cv2.INTER_AREA)
        self._network.set_tensor(self._input, feed)
        self._network.invoke()
        found = self._network.get_tensor(self._output).reshape(self._side, self._side)
        return np.ascontiguousarray(found[: box.height, : box.width], np.uint8)


def mask_iou(labels: Labels, mask: NDArray[np.bool_]) -> float | None:
    """IoU of everything that is not background with the one annotated object; None for an empty mask.

    Other objects that stand around it count against the score, the same for all systems.
    """
    if not mask.any():
        return None
    found = labels > 0
    return float((found & mask).sum() / (found | mask).sum())


def mean_iou(found: Mapping[int, Labels], reference: Mapping[int, Labels]) -> float:
    """Mean over the classes that the reference shows of their IoU over all frames; both have the same frames."""
    confusion = np.zeros((CLASSES, CLASSES), np.int64)
    for frame, labels in found.items():
        pairs = reference[frame].astype(np.int64) * CLASSES + labels
        confusion += np.bincount(pairs.ravel(), minlength=CLASSES * CLASSES).reshape(CLASSES, CLASSES)
    shown = confusion.sum(axis=1)
    common, union = confusion.diagonal(), shown + confusion.sum(axis=0) - confusion.diagonal()
    kept = shown >= max(1, SEEN * shown.sum())
    return float((common[kept] / union[kept]).mean())


def score_labels(
    found: Mapping[int, Labels], reference: Mapping[int, Labels], masks: Mapping[int, NDArray[np.bool_]]
) -> dict[str, Any]:
    """The record of a clip: mean `mask_iou` over annotated frames, `mean_iou` with the verdict on the originals."""
    ious = [mask_iou(labels, masks[frame]) for frame, labels in found.items() if frame in masks]
    known = [iou for iou in ious if iou is not None]
    return {
        "frames": len(found),
        "mask_iou": sum(known) / len(known) if known else None,
        "mean_iou": mean_iou(found, reference),
    }
