"""IoU with masks and between label maps, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.clips import Clip, has_masks, object_mask
from benchmarks.segmentation import Segmenter, mask_iou, mean_iou, score_labels
from scene_edge.codec.errors import SourceError


def labels(*rows: str) -> np.ndarray:
    """Digits as classes."""
    return np.array([[int(sample) for sample in row] for row in rows], np.uint8)


def test_any_class_counts_as_foreground() -> None:
    mask = np.array([[1, 1, 0, 0], [1, 1, 0, 0]], bool)
    assert mask_iou(labels("2200", "7700"), mask) == 1
    assert mask_iou(labels("2220", "2220"), mask) == pytest.approx(4 / 6)
    assert mask_iou(labels("0000", "0000"), mask) == 0
    assert mask_iou(labels("2200", "7700"), ~(mask | True)) is None


def test_mean_iou_is_over_the_classes_of_the_reference() -> None:
    reference = {0: labels("0011"), 5: labels("0011")}
    assert mean_iou(reference, reference) == 1
    # background: 3 of 4 kept, nothing added; class 1: all kept. A class that only the other sees is in no mean.
    assert mean_iou({0: labels("0311"), 5: labels("0011")}, reference) == pytest.approx((3 / 4 + 1) / 2)
    # class 1 took one sample of the background
    assert mean_iou({0: labels("0111"), 5: labels("0011")}, reference) == pytest.approx((3 / 4 + 4 / 5) / 2)


def test_a_speck_of_the_reference_is_no_class() -> None:
    reference = np.zeros((100, 100), np.uint8)
    reference[0, 0] = 4
    assert mean_iou({0: np.zeros((100, 100), np.uint8)}, {0: reference}) == pytest.approx(0.9999)


def test_the_record_takes_frames_without_an_object_as_they_are() -> None:
    mask = np.array([[True, False]])
    found = {0: labels("10"), 5: labels("10"), 9: labels("00")}
    record = score_labels(found, found, {0: mask, 5: ~mask, 9: mask & False})
    assert record == {"frames": 3, "mask_iou": 0.5, "mean_iou": 1.0}


def test_masks_are_read_at_the_size_of_the_labels(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    clip = Clip("vos/street", tmp_path / "street.mp4", "vos", None, 192, 108, 24.0, 2)
    assert not has_masks(clip)
    folder = tmp_path / "street.masks"
    folder.mkdir()
    mask = np.zeros((108, 192), np.uint8)
    mask[:54] = 255
    image.fromarray(mask).save(folder / "00000.png")
    assert has_masks(clip)
    found = object_mask(clip, 0, 64, 36)
    assert found.shape == (36, 64)
    assert found[:18].all()
    assert not found[18:].any()
    with pytest.raises(SourceError, match="no mask of this frame"):
        object_mask(clip, 1, 64, 36)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such segmentation model"):
        Segmenter(tmp_path / "none.tflite")
