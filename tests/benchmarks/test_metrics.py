"""Boxes and tracks against hand-computed scores and against trackeval as an oracle."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.measure import total_of
from benchmarks.metrics import Boxes, Counts, average_precision, count_matches, iou_matrix, score_tracks
from scene_edge.codec.errors import FormatError


def box(x: float, y: float = 0, side: float = 10) -> tuple[float, float, float, float]:
    return x, y, x + side, y + side


def test_iou_of_half_shifted_boxes_is_one_third() -> None:
    got = iou_matrix(np.array([box(0), box(100)]), np.array([box(5), box(0)]))
    assert got == pytest.approx(np.array([[1 / 3, 1], [0, 0]]))


def test_iou_of_empty_boxes_is_zero() -> None:
    assert iou_matrix(np.array([[5.0, 5, 5, 5]]), np.array([[5.0, 5, 5, 5]])).tolist() == [[0.0]]


def test_f1_counts_each_truth_once_and_classes_apart() -> None:
    truth = Boxes.of([box(0), box(100)], [0, 1])
    found = Boxes.of([box(0), box(1), box(100)], [0, 0, 0], [0.9, 0.8, 0.7])
    counts = count_matches(found, truth)
    assert (counts.tp, counts.fp, counts.fn) == (1, 2, 1)
    assert counts.f1 == pytest.approx(2 / 5)


def test_f1_of_nothing_against_nothing_is_undefined() -> None:
    assert count_matches(Boxes.of([]), Boxes.of([])).f1 is None
    assert Counts(0, 0, 3).f1 == 0
    assert (Counts(1, 2, 3) + Counts(1, 0, 0)) == Counts(2, 2, 3)


def test_ap50_by_hand() -> None:
    # By score: hit, miss, hit of 3 truths: precision 1, 1/2, 2/3 -> envelope 1, 2/3, 2/3 -> (1 + 2/3) / 3.
    first = Boxes.of([box(0), box(50)], scores=[0.9, 0.8]), Boxes.of([box(0), box(200)])
    second = Boxes.of([box(0)], scores=[0.7]), Boxes.of([box(1)])
    assert average_precision([first, second]) == pytest.approx((1 + 2 / 3) / 3)


def test_ap50_bounds() -> None:
    truth = Boxes.of([box(0), box(30)])
    assert average_precision([(truth, truth)]) == 1
    assert average_precision([(Boxes.of([]), truth)]) == 0
    assert average_precision([(truth, Boxes.of([]))]) is None


def test_misfitting_arrays_are_refused() -> None:
    with pytest.raises(FormatError, match="differ in length"):
        Boxes.of([box(0)], [1, 2])


def test_mota_and_idf1_by_hand() -> None:
    # One person over 4 frames: track 1, 1, missed, then track 2; a false positive in frame 0.
    truth = {frame: Boxes.of([box(frame)], [7]) for frame in range(4)}
    found = {
        0: Boxes.of([box(0), box(80)], [1, 9]),
        1: Boxes.of([box(1)], [1]),
        3: Boxes.of([box(3)], [2]),
    }
    score = score_tracks(truth, found, range(4))
    assert (score.tp, score.fp, score.fn, score.switches) == (3, 1, 1, 1)
    assert score.mota == pytest.approx(1 - 3 / 4)
    assert score.identity_tp == 2
    assert score.idf1 == pytest.approx(2 * 2 / (4 + 4))


def test_a_held_pair_survives_a_better_overlap_elsewhere() -> None:
    truth = {0: Boxes.of([box(0)], [7]), 1: Boxes.of([box(0)], [7])}
    found = {0: Boxes.of([box(0)], [1]), 1: Boxes.of([box(2), box(0)], [1, 2])}
    assert score_tracks(truth, found, range(2)).switches == 0


def test_empty_sequences_have_no_score() -> None:
    score = score_tracks({}, {}, range(3))
    assert score.mota is None
    assert score.idf1 is None


Sequence_ = Mapping[int, Boxes]


@st.composite
def sequences(draw: st.DrawFn) -> tuple[Sequence_, Sequence_]:
    """Two sets of tracks that wander along one line, so that overlaps, switches and gaps all happen."""
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    frames, sides = int(generator.integers(1, 12)), []
    starts = generator.uniform(0, 60, 5)
    for spread in (0.0, 4.0):
        side = {}
        for frame in range(frames):
            present = np.flatnonzero(generator.random(5) < 0.8)
            ids = present if spread == 0 else generator.permutation(5)[: len(present)] if frame % 4 == 3 else present
            xs = starts[present] + frame + generator.normal(0, spread, len(present))
            side[frame] = Boxes.of([box(x) for x in xs], ids.tolist())
        sides.append(side)
    return sides[0], sides[1]


def trackeval_data(truth: Sequence_, found: Sequence_) -> dict[str, object]:
    """The same sequences as trackeval wants them: identities numbered without gaps."""
    frames = sorted(truth)
    names = [
        {int(name): index for index, name in enumerate(sorted({int(i) for f in frames for i in side[f].labels}))}
        for side in (truth, found)
    ]
    ids = [
        [np.array([name[int(i)] for i in side[f].labels], int) for f in frames]
        for side, name in zip((truth, found), names, strict=True)
    ]
    return {
        "num_timesteps": len(frames),
        "num_gt_ids": len(names[0]),
        "num_tracker_ids": len(names[1]),
        "num_gt_dets": sum(map(len, ids[0])),
        "num_tracker_dets": sum(map(len, ids[1])),
        "gt_ids": ids[0],
        "tracker_ids": ids[1],
        "similarity_scores": [iou_matrix(truth[f].xyxy, found[f].xyxy) for f in frames],
    }


@settings(max_examples=60, deadline=None)
@given(sequences())
def test_tracking_agrees_with_trackeval(pair: tuple[Sequence_, Sequence_]) -> None:
    metrics = pytest.importorskip("trackeval.metrics")
    truth, found = pair
    ours = score_tracks(truth, found, sorted(truth))
    if not ours.truths or not ours.found:
        return
    data = trackeval_data(truth, found)
    clear = metrics.CLEAR({"PRINT_CONFIG": False}).eval_sequence(data)
    identity = metrics.Identity({"PRINT_CONFIG": False}).eval_sequence(data)
    assert (ours.tp, ours.fp, ours.fn, ours.switches) == tuple(
        int(clear[name]) for name in ("CLR_TP", "CLR_FP", "CLR_FN", "IDSW")
    )
    assert ours.mota == pytest.approx(float(clear["MOTA"]))
    assert ours.idf1 == pytest.approx(float(identity["IDF1"]))


def test_boxes_of_coded_pictures_may_be_less_sure_than_those_of_the_original() -> None:
    box, other = [0.0, 0.0, 9.0, 9.0], [50.0, 0.0, 60.0, 9.0]
    truth = {0: Boxes.of([box, other], [0, 0], [0.9, 0.4])}
    found = {0: Boxes.of([box, other], [0, 0], [0.45, 0.2])}
    assert total_of(found, truth) == Counts(0, 0, 1)
    assert total_of(found, truth, claimed=0.4) == Counts(1, 0, 0), "the other is no truth"
    assert total_of(found, truth, claimed=0.1) == Counts(1, 1, 0)
