"""Task metrics on plain arrays: F1 and AP50 of boxes, CLEAR MOT and identity F1 of tracks. Rates are in `curves`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from scene_edge.codec.errors import FormatError

F64: TypeAlias = NDArray[np.float64]
I64: TypeAlias = NDArray[np.int64]

IOU = 0.5
"""Two boxes are the same object from this intersection over union on; every metric here uses it."""


@dataclass(frozen=True)
class Boxes:
    """What one picture shows: xyxy [N, 4] in samples, labels [N] (class, or identity for tracks), scores [N]."""

    xyxy: F64
    labels: I64
    scores: F64

    def __post_init__(self) -> None:
        count = len(self.xyxy)
        if self.xyxy.shape != (count, 4) or self.labels.shape != (count,) or self.scores.shape != (count,):
            raise FormatError(
                "boxes, labels and scores differ in length",
                got=(self.xyxy.shape, self.labels.shape, self.scores.shape),
                allowed="[N, 4], [N], [N]",
            )

    @classmethod
    def of(
        cls, xyxy: Iterable[Sequence[float]], labels: Iterable[int] | None = None, scores: Iterable[float] | None = None
    ) -> Boxes:
        """From plain lists; labels default to 0 and scores to 1."""
        boxes = np.asarray(list(xyxy), np.float64).reshape(-1, 4)
        count = len(boxes)
        names = np.zeros(count, np.int64) if labels is None else np.asarray(list(labels), np.int64)
        return cls(boxes, names, np.ones(count) if scores is None else np.asarray(list(scores), np.float64))

    def __len__(self) -> int:
        return len(self.xyxy)

    def where(self, keep: NDArray[np.bool_]) -> Boxes:
        return Boxes(self.xyxy[keep], self.labels[keep], self.scores[keep])

    def above(self, score: float) -> Boxes:
        return self.where(self.scores >= score)


def iou_matrix(first: F64, second: F64) -> F64:
    """Intersection over union of every pair: xyxy [N, 4] and [M, 4] -> [N, M]. Empty boxes give 0."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common: F64 = np.clip(high - low, 0, None).prod(axis=2)
    area = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (first, second)]
    union = area[0][:, None] + area[1][None, :] - common
    iou: F64 = np.divide(common, union, out=np.zeros(common.shape), where=union > 0)
    return iou


@dataclass
class Counts:
    """True positives, false positives and misses, added up over pictures and clips."""

    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    @property
    def f1(self) -> float | None:
        """2 TP / (2 TP + FP + FN); None where neither side saw anything, for then there is nothing to agree on."""
        total = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / total if total else None

    @property
    def recall(self) -> float | None:
        return self.tp / (self.tp + self.fn) if self.tp + self.fn else None


def match_greedy(found: Boxes, truth: Boxes) -> NDArray[np.bool_]:
    """Which of `found` are true positives, best score first, each truth used once, classes equal: bool [N]."""
    hits = np.zeros(len(found), bool)
    overlap = iou_matrix(found.xyxy, truth.xyxy)
    overlap[found.labels[:, None] != truth.labels[None, :]] = 0
    free = np.ones(len(truth), bool)
    for index in np.argsort(-found.scores, kind="stable"):
        candidates = np.where(free, overlap[index], 0)
        if len(candidates) and candidates.max() >= IOU:
            free[candidates.argmax()] = False
            hits[index] = True
    return hits


def count_matches(found: Boxes, truth: Boxes) -> Counts:
    """Counts of one picture."""
    tp = int(match_greedy(found, truth).sum())
    return Counts(tp, len(found) - tp, len(truth) - tp)


def average_precision(pictures: Iterable[tuple[Boxes, Boxes]]) -> float | None:
    """AP50 over the (found, truth) of each picture: area under the precision envelope; None without any truth."""
    hits: list[NDArray[np.bool_]] = []
    scores: list[F64] = []
    truths = 0
    for found, truth in pictures:
        hits.append(match_greedy(found, truth))
        scores.append(found.scores)
        truths += len(truth)
    if not truths:
        return None
    order = np.argsort(-np.concatenate(scores), kind="stable")
    tp = np.concatenate(hits)[order].cumsum()
    precision = tp / np.arange(1, len(tp) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.diff(np.concatenate([[0], tp])) / truths
    return float((envelope * steps).sum())


@dataclass
class TrackingScore:
    """CLEAR MOT and identity counts. `mota` and `idf1` are fractions; MOTA may be negative."""

    truths: int = 0
    tp: int = 0
    fp: int = 0
    fn: int = 0
    switches: int = 0
    found: int = 0
    identity_tp: int = 0

    @property
    def mota(self) -> float | None:
        return 1 - (self.fp + self.fn + self.switches) / self.truths if self.truths else None

    @property
    def idf1(self) -> float | None:
        total = self.truths + self.found
        return 2 * self.identity_tp / total if total else None


@dataclass
class _Clear:
    """State of the CLEAR matching: a pair that held in the last picture is kept while it still overlaps."""

    held: dict[int, int] = field(default_factory=dict)
    last_seen: dict[int, int] = field(default_factory=dict)

    def step(self, truth: Boxes, found: Boxes, overlap: F64, score: TrackingScore) -> None:
        gain = np.where(overlap >= IOU, overlap, 0)
        for row, identity in enumerate(truth.labels):
            kept = self.held.get(int(identity))
            if kept is not None:
                gain[row, (found.labels == kept) & (gain[row] > 0)] += 1000
        rows, columns = linear_sum_assignment(-gain)
        pairs = [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if gain[r, c] > 0]
        self.held = {int(truth.labels[r]): int(found.labels[c]) for r, c in pairs}
        for identity, track in self.held.items():
            score.switches += self.last_seen.get(identity, track) != track
        self.last_seen.update(self.held)
        score.tp += len(pairs)
        score.fp += len(found) - len(pairs)
        score.fn += len(truth) - len(pairs)


def score_tracks(truth: Mapping[int, Boxes], found: Mapping[int, Boxes], frames: Iterable[int]) -> TrackingScore:
    """Tracks against ground truth on the given frames; `labels` are identities, unique within a picture.

    MOTA: Bernardin and Stiefelhagen 2008. IDF1: Ristani et al. 2016, one global assignment of identities.
    """
    score, clear = TrackingScore(), _Clear()
    empty = Boxes.of([])
    together: dict[tuple[int, int], int] = {}
    for frame in frames:
        here, seen = truth.get(frame, empty), found.get(frame, empty)
        overlap = iou_matrix(here.xyxy, seen.xyxy)
        score.truths += len(here)
        score.found += len(seen)
        for row, column in zip(*np.nonzero(overlap >= IOU), strict=True):
            pair = int(here.labels[row]), int(seen.labels[column])
            together[pair] = together.get(pair, 0) + 1
        clear.step(here, seen, overlap, score)
    score.identity_tp = _best_identities(together)
    return score


def _best_identities(together: Mapping[tuple[int, int], int]) -> int:
    """Most pictures explained by a one-to-one assignment of truth identities to track identities."""
    truths = {identity: row for row, identity in enumerate(sorted({pair[0] for pair in together}))}
    tracks = {identity: column for column, identity in enumerate(sorted({pair[1] for pair in together}))}
    table = np.zeros((len(truths), len(tracks)), np.int64)
    for (truth, track), count in together.items():
        table[truths[truth], tracks[track]] = count
    rows, columns = linear_sum_assignment(-table)
    return int(table[rows, columns].sum())
