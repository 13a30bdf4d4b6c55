"""Detectors: decoding against plain loops, merging of tiles, both kinds behind the seam, the real instrument."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import BundleError, FormatError, SourceError
from scene_edge.codec.media import read_video
from scene_edge.codec.planes import Planes
from scene_edge.server.analytics import detector as module
from scene_edge.server.analytics.detections import Detections, iou_matrix
from scene_edge.server.analytics.detector import (
    BundleDetector,
    decode_levels,
    decode_yolox,
    grid_cells,
    merge_tiles,
    open_detector,
)
from scene_edge.server.analytics.tiles import Tile, square_tiles
from tests.data import data_file, dev_clip

NAMES = ("person", "vehicle")


def grey(width: int, height: int) -> Planes:
    half = np.full((height // 2, width // 2), 128, np.uint8)
    return Planes(np.full((height, width), 90, np.uint8), half, half)


def test_grid_is_row_major_finest_level_first() -> None:
    cells, steps = grid_cells(64, 32, (8, 16, 32))
    plain = [(x, y, stride) for stride in (8, 16, 32) for y in range(32 // stride) for x in range(64 // stride)]
    assert [(int(x), int(y), int(s)) for (x, y), (s,) in zip(cells, steps, strict=True)] == plain


def test_yolox_decoding_equals_a_plain_loop() -> None:
    random = np.random.default_rng(1)
    cells, steps = grid_cells(64, 64)
    output = random.normal(0, 0.5, (len(cells), 7)).astype(np.float32)
    output[:, 4:] = random.uniform(0, 1, (len(cells), 3))
    found = decode_yolox(output, cells, steps, 0.3, NAMES)
    wanted = []
    for row, (x, y), (stride,) in zip(output, cells, steps, strict=True):
        score = row[4] * max(row[5], row[6])
        if score >= 0.3:
            cx, cy = (row[0] + x) * stride, (row[1] + y) * stride
            w, h = np.exp(row[2]) * stride, np.exp(row[3]) * stride
            wanted.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2, score, int(row[6] > row[5])])
    got = np.column_stack([found.boxes, found.scores, found.classes])
    np.testing.assert_allclose(got, np.array(wanted), rtol=1e-4, atol=1e-3)


def test_logits_decode_to_the_same_boxes_as_scores() -> None:
    random = np.random.default_rng(2)
    cells, steps = grid_cells(64, 64)
    raw = random.normal(0, 0.5, (len(cells), 4)).astype(np.float32)
    logits = random.normal(-1, 1.5, (len(cells), 2)).astype(np.float32)
    scores = 1 / (1 + np.exp(-logits))
    as_yolox = np.concatenate([raw, np.ones((len(cells), 1), np.float32), scores], axis=1).astype(np.float32)
    ours, theirs = (
        decode_levels(logits, raw, cells, steps, 0.4, NAMES),
        decode_yolox(as_yolox, cells, steps, 0.4, NAMES),
    )
    assert ours.classes.tolist() == theirs.classes.tolist()
    np.testing.assert_allclose(ours.boxes, theirs.boxes, rtol=1e-5)
    np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-5)


def test_output_of_another_grid_is_refused() -> None:
    cells, steps = grid_cells(64, 64)
    with pytest.raises(FormatError, match="does not fit its grid"):
        decode_yolox(np.zeros((3, 7), np.float32), cells, steps, 0.3, NAMES)
    with pytest.raises(FormatError, match="does not fit its grid"):
        decode_levels(np.zeros((3, 2), np.float32), np.zeros((3, 4), np.float32), cells, steps, 0.3, NAMES)


def test_wild_sizes_do_not_overflow() -> None:
    cells, steps = grid_cells(32, 32, (32,))
    found = decode_yolox(np.array([[0, 0, 1e9, 1e9, 1, 1, 0]], np.float32), cells, steps, 0.3, NAMES)
    assert np.isfinite(found.boxes).all()


def test_a_box_cut_by_a_tile_is_dropped_where_the_other_tile_shows_it_whole() -> None:
    tiles = square_tiles(1920, 1080)
    whole = Detections.of([[1000, 100, 1150, 500]], [0.8], [0], NAMES)
    cut = Detections.of([[1000, 100, 1079, 500]], [0.9], [0], NAMES)
    merged = merge_tiles([cut, whole], tiles, 1920, 1080, 0.5)
    assert merged.boxes.tolist() == [[1000, 100, 1150, 500]]
    wide = Detections.of([[600, 100, 1079, 500]], [0.9], [0], NAMES)  # no tile shows all of it: kept
    assert len(merge_tiles([wide, Detections.none(NAMES)], tiles, 1920, 1080, 0.5)) == 1


def test_boxes_are_clipped_to_the_picture_and_doubles_suppressed() -> None:
    tiles = (Tile(0, 0, 100, 80),)
    found = Detections.of([[-9, -9, 50, 50], [-8, -9, 50, 51]], [0.8, 0.7], [0, 0], NAMES)
    merged = merge_tiles([found], tiles, 100, 80, 0.5)
    assert merged.boxes.tolist() == [[0, 0, 50, 50]]


class FakeSession:
    """Answers every picture with one sure person of 64x96 samples at the cell (5, 2) of stride 16."""

    engine, precision, device, fallbacks = "fake", "fp32", "none", ()

    def __init__(self) -> None:
        self.inputs: list[np.ndarray] = []
        self.closed = False

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.inputs.append(inputs["x"])
        outputs = {}
        for stride in (8, 16, 32):
            rows, columns = 288 // stride, 512 // stride
            outputs[f"score{stride}"] = np.full((1, 2, rows, columns), -9, np.float32)
            outputs[f"box{stride}"] = np.zeros((1, 4, rows, columns), np.float32)
        outputs["score16"][0, 0, 2, 5] = 4.0
        outputs["box16"][0, :, 2, 5] = [0.5, 0.5, np.log(4), np.log(6)]
        return outputs

    def close(self) -> None:
        self.closed = True


class FakeBundle:
    name, kind = "toy", "detector"

    def __init__(self, **changes: object) -> None:
        self.parameters = {"size": [288, 512], "strides": [8, 16, 32], "classes": list(NAMES), **changes}


def bundle_detector(monkeypatch: pytest.MonkeyPatch, bundle: FakeBundle) -> tuple[BundleDetector, FakeSession]:
    session = FakeSession()
    monkeypatch.setattr(module, "open_session", lambda *_, **__: session)
    return BundleDetector(bundle), session  # type: ignore[arg-type]


def test_bundle_detector_packs_the_letterbox_and_gives_boxes_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, session = bundle_detector(monkeypatch, FakeBundle())
    found = detector.detect(grey(1024, 576))
    assert session.inputs[0].shape == (1, 72, 128, 24)
    assert found.boxes[0].tolist() == pytest.approx([112, 0, 240, 176], abs=1e-3)
    assert found.scores[0] == pytest.approx(1 / (1 + np.exp(-4)), rel=1e-5)
    assert (detector.name, detector.names) == ("toy/fake-fp32", NAMES)
    detector.close()
    assert session.closed


@pytest.mark.parametrize(
    "changes", [{"size": [288]}, {"size": [290, 512]}, {"strides": []}, {"classes": []}, {"strides": ["a"]}]
)
def test_unusable_parameters_are_refused(monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]) -> None:
    with pytest.raises(BundleError, match="parameters"):
        bundle_detector(monkeypatch, FakeBundle(**changes))


def test_a_bundle_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = FakeBundle()
    bundle.kind = "action"
    with pytest.raises(BundleError, match="no detector"):
        bundle_detector(monkeypatch, bundle)


def test_missing_and_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such detector"):
        open_detector(tmp_path / "none.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(FormatError, match="not an ONNX model"):
        open_detector(broken)
    with pytest.raises(BundleError, match="no such bundle"):
        open_detector("no-such-bundle")


def test_the_instrument_finds_the_persons_of_the_street_clip() -> None:
    detector = open_detector(data_file("models/yolox_nano.onnx"), threads=1)
    planes, _ = next(iter(read_video(dev_clip("adl_rundle6.mp4"), limit=1)))
    persons = detector.detect(planes).named("person").above(0.3)
    truth = []
    for line in data_file("dev/mot/adl_rundle6.gt.txt").read_text().splitlines():
        frame, _, left, top, width, height = (float(field) for field in line.split(",")[:6])
        if frame == 1:
            truth.append([left, top, left + width, top + height])
    found = iou_matrix(np.array(truth, np.float32), persons.boxes).max(axis=1) > 0.5
    assert found.mean() >= 0.5
    detector.close()


def test_the_shipped_detector_finds_most_persons_that_the_instrument_is_sure_of() -> None:
    shipped = open_detector("detector-s", threads=1)
    assert shipped.name.startswith("detector-s/")
    instrument = open_detector(data_file("models/yolox_nano.onnx"), threads=1)
    hits = []
    for index, (planes, _) in enumerate(read_video(dev_clip("adl_rundle6.mp4"), limit=41)):
        if index % 20 == 0:
            sure = instrument.detect(planes).named("person").above(0.6)
            ours = shipped.detect(planes).named("person").above(0.2)
            if len(sure):
                hits += list(iou_matrix(sure.boxes, ours.boxes).max(axis=1, initial=0.0) > 0.5)
    assert np.mean(hits) >= 0.5
    assert isinstance(Bundle.open("detector-s").parameters["classes"], list | tuple)
