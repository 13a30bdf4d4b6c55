"""One measurement of rate against accuracy: a clip through one system at one quality, scored; runs in a worker process.

The original pictures are a system of their own (`ORIGINAL`): its verdicts are the reference that agreement is with, and
its scores are the ceiling that no bitrate can lift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks import second_judge
from benchmarks.clips import Clip, has_masks, mask_truth, mot_truth, object_mask
from benchmarks.metrics import IOU, Boxes, Counts, average_precision, count_matches, iou_matrix, score_tracks
from benchmarks.quality import picture_quality
from benchmarks.second_judge import FastestDet
from benchmarks.segmentation import Labels, Segmenter, score_labels
from benchmarks.systems import Coding, run_system
from scene_edge.codec.media import read_video
from scene_edge.codec.planes import Planes
from scene_edge.server.analytics.action import ClipRecogniser, open_recogniser
from scene_edge.server.analytics.detections import Detections
from scene_edge.server.analytics.detector import open_detector
from scene_edge.server.analytics.seams import Detector
from scene_edge.server.analytics.tracker import ByteTracker

_Labelled: TypeAlias = tuple[dict[int, Labels], dict[int, NDArray[np.bool_]]]

ORIGINAL = "original"

CONFIDENT = 0.5
"""Boxes from this score on count for F1 and agreement, on both sides; AP50 and the tracker see the weak ones too."""

STRONG, ACTIVATE = 0.6, 0.7
"""ByteTrack's published thresholds (Zhang et al. 2022): matched first, and enough for a new track."""

PERSON = 0
"""Index of `person` in the folded classes."""


@dataclass(frozen=True)
class Settings:
    """What all measurements of one run share. Strides are in frames: 5 looks at every fifth."""

    coding: Coding
    limit: int | None
    detect_width: int
    action_width: int
    detect_stride: int
    track_stride: int
    quality_stride: int
    detector: Path
    second_judge: Path
    """Another detector than the one that F-Net is taught by, see `second_judge`."""
    segmenter: Path
    action_bundles: Mapping[str, str]
    """Category of action clips -> name or folder of the bundle that recognises them."""
    confident: tuple[float, ...] = (CONFIDENT,)
    """From which score on the detector's boxes on *coded* pictures agree: what an operator could set lower.

    Counts of several are added up: a box then counts for as many as its score passes, and not all or nothing.
    """
    confident_second: tuple[float, ...] = (second_judge.CONFIDENT,)

    def width(self, clip: Clip) -> int:
        """Width at which a clip is coded and looked at: never enlarged."""
        return min(clip.width, self.action_width if clip.is_action else self.detect_width) // 2 * 2

    def frames(self, clip: Clip) -> int:
        return min(clip.frames, self.limit or clip.frames)

    def stride(self, clip: Clip) -> int:
        """Every how many frames boxes are looked for; tracking needs more of them than agreement does."""
        return self.track_stride if clip.category == "mot" else self.detect_stride


@dataclass(frozen=True)
class Job:
    """One line of the record file. `crf` is None for the originals; `key` names clip, system and all that shaped it."""

    key: str
    clip: Clip
    system: str
    crf: int | None
    settings: Settings


def measure(job: Job, reference: Mapping[str, Any] | None) -> dict[str, Any]:
    """The record of a job; `reference` is that of the same clip's originals (None for these themselves)."""
    clip, settings = job.clip, job.settings
    originals, fps = _load(clip, settings.width(clip), settings.frames(clip))
    record: dict[str, Any] = {
        "key": job.key,
        "clip": clip.name,
        "category": clip.category,
        "system": job.system,
        "crf": job.crf,
        "size": [originals[0].width, originals[0].height],
        "frames": len(originals),
        "seconds": len(originals) / fps,
    }
    pictures = originals
    if job.crf is not None:
        output = run_system(job.system, originals, fps, replace(settings.coding, crf=job.crf))
        pictures = output.pictures
        record |= {"bytes": output.bytes, "ms": output.ms}
    if clip.has_boxes:
        record |= _score_boxes(clip, settings, pictures, reference, fps)
        record |= _score_second(settings, clip, pictures, reference)
    if has_masks(clip):
        record["segmentation"] = _segment(clip, settings, pictures)
    if clip.is_action:
        record["action"] = _recognise(clip, settings, pictures)
        record["action"]["reference"] = (reference or record)["action"]["predicted"]
    elif job.crf is not None:
        record["quality"] = asdict(picture_quality(originals, pictures, every=settings.quality_stride))
    return record


@lru_cache(maxsize=1)
def _load(clip: Clip, width: int, frames: int) -> tuple[list[Planes], float]:
    """The pictures of a clip and their rate. Jobs come clip by clip, so one is enough to keep."""
    pictures = read_video(clip.path, width=width, limit=clip.first + frames)
    return [planes for planes, _ in islice(pictures, clip.first, None)], clip.fps


@lru_cache(maxsize=1)
def _detector(path: Path) -> Detector:
    return open_detector(path, threads=1)


@lru_cache(maxsize=2)
def _recogniser(bundle: str) -> ClipRecogniser:
    return open_recogniser(bundle, threads=1)


@lru_cache(maxsize=1)
def _second(path: Path) -> FastestDet:
    return FastestDet(path)


@lru_cache(maxsize=1)
def _segmenter(path: Path) -> Segmenter:
    return Segmenter(path)


def boxes_of(found: Detections) -> Boxes:
    """A detector's answer in the form that the metrics take."""
    return Boxes(found.boxes.astype(np.float64), found.classes, found.scores.astype(np.float64))


def _score_boxes(
    clip: Clip, settings: Settings, pictures: Sequence[Planes], reference: Mapping[str, Any] | None, fps: float
) -> dict[str, Any]:
    detector, stride = _detector(settings.detector), settings.stride(clip)
    looked = range(0, len(pictures), stride)
    found = {clip.first + frame: detector.detect(pictures[frame]).folded() for frame in looked}
    boxes = {frame: boxes_of(detections) for frame, detections in found.items()}
    record = _agree("", boxes, reference, CONFIDENT, settings.confident)
    truth = mot_truth(clip, pictures[0].width)
    if truth is not None:
        record["truth"] = _score_people(truth, boxes)
        record["tracking"] = _track(truth, found, fps / stride)
    masks = mask_truth(clip, pictures[0].width)
    if masks is not None:
        record["masks"] = asdict(_recall_of_masks(boxes, masks))
    return record


def _score_second(
    settings: Settings, clip: Clip, pictures: Sequence[Planes], reference: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Agreement alone, on the frames where agreement is scored without tracks."""
    detector = _second(settings.second_judge)
    frames = range(0, len(pictures), settings.detect_stride)
    boxes = {frame: boxes_of(detector.detect(pictures[frame]).folded()) for frame in frames}
    return _agree("_second", boxes, reference, second_judge.CONFIDENT, settings.confident_second)


def _agree(
    judge: str,
    boxes: Mapping[int, Boxes],
    reference: Mapping[str, Any] | None,
    confident: float,
    claimed: Sequence[float] = (),
) -> dict[str, Any]:
    """The boxes themselves for an original, else the agreement with those of the ones that are as sure as `claimed`."""
    if reference is None:
        return {f"detections{judge}": {frame: _to_json(seen) for frame, seen in boxes.items()}}
    theirs = {int(frame): _from_json(seen) for frame, seen in reference[f"detections{judge}"].items()}
    counts = [total_of(boxes, theirs, confident, least) for least in claimed or (confident,)]
    return {f"agreement{judge}": asdict(sum(counts, Counts()))}


@lru_cache(maxsize=1)
def _reference_labels(clip: Clip, width: int, frames: int, stride: int, network: Path) -> _Labelled:
    """Label maps of the originals and the annotated masks at their size; cheaper to make again than to store."""
    labels = _labels(network, clip, _load(clip, width, frames)[0], stride)
    return labels, {frame: object_mask(clip, frame, *seen.shape[::-1]) for frame, seen in labels.items()}


def _labels(network: Path, clip: Clip, pictures: Sequence[Planes], stride: int) -> dict[int, Labels]:
    looked = range(0, len(pictures), stride)
    return {clip.first + frame: _segmenter(network).labels(pictures[frame]) for frame in looked}


def _segment(clip: Clip, settings: Settings, pictures: Sequence[Planes]) -> dict[str, Any]:
    network, stride = settings.segmenter, settings.detect_stride
    reference, masks = _reference_labels(clip, settings.width(clip), settings.frames(clip), stride, network)
    return score_labels(_labels(network, clip, pictures, stride), reference, masks)


def total_of(
    found: Mapping[int, Boxes], truth: Mapping[int, Boxes], confident: float = CONFIDENT, claimed: float | None = None
) -> Counts:
    """Confident boxes of all pictures (of those found: `claimed`, where it is given) against confident truth.

    A picture without truth has nothing in it.
    """
    none, least = Boxes.of([]), confident if claimed is None else claimed
    pairs = [(boxes.above(least), truth.get(frame, none).above(confident)) for frame, boxes in found.items()]
    return sum((count_matches(*pair) for pair in pairs), Counts())


def _people(boxes: Boxes) -> Boxes:
    return boxes.where(boxes.labels == PERSON)


def _score_people(truth: Mapping[int, Boxes], found: Mapping[int, Boxes]) -> dict[str, Any]:
    """F1 and AP50 of people against ground truth; its labels are identities and play no part here."""
    none = Boxes.of([])
    people = {frame: _people(boxes) for frame, boxes in found.items()}
    unnamed = {frame: Boxes.of(truth.get(frame, none).xyxy.tolist()) for frame in found}
    return {**asdict(total_of(people, unnamed)), "ap50": average_precision((people[f], unnamed[f]) for f in people)}


def _track(truth: Mapping[int, Boxes], found: Mapping[int, Detections], rate: float) -> dict[str, Any]:
    tracker = ByteTracker(rate, activate=ACTIVATE, strong=STRONG)
    tracks = {}
    for frame, detections in found.items():
        seen = tracker.update(detections.named("person"), frame)
        tracks[frame] = Boxes.of([track.box for track in seen], [track.track_id for track in seen])
    score = score_tracks(truth, tracks, found)
    return {**asdict(score), "mota": score.mota, "idf1": score.idf1}


def _recall_of_masks(found: Mapping[int, Boxes], truth: Mapping[int, Boxes]) -> Counts:
    """How many annotated objects any confident box covers, of whatever class; false positives cannot be known."""
    total = Counts()
    for frame, boxes in found.items():
        if frame in truth:
            overlap = iou_matrix(truth[frame].xyxy, boxes.above(CONFIDENT).xyxy)
            hit = int(overlap.size > 0 and overlap.max() >= IOU)
            total += Counts(hit, 0, 1 - hit)
    return total


def _recognise(clip: Clip, settings: Settings, pictures: Sequence[Planes]) -> dict[str, Any]:
    """The class of the whole, trimmed clip."""
    scores = _recogniser(settings.action_bundles[clip.category]).classify(pictures)
    return {"label": clip.label, "predicted": max(scores, key=lambda label: scores[label]).casefold()}


def _to_json(boxes: Boxes) -> dict[str, Any]:
    return {
        "xyxy": boxes.xyxy.round(2).tolist(),
        "labels": boxes.labels.tolist(),
        "scores": boxes.scores.round(4).tolist(),
    }


def _from_json(record: Mapping[str, Any]) -> Boxes:
    return Boxes.of(record["xyxy"], record["labels"], record["scores"])
