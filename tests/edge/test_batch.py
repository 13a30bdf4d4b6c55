"""Which access units share a message: by time, by keyframe, by size, and never across what a message cannot say."""

from __future__ import annotations

import pytest

from scene_edge.codec.identity import AccessUnit
from scene_edge.codec.videomessage import MAX_UNITS, split_video
from scene_edge.edge.batch import MAX_BATCH_BYTES, VideoBatch, Waiting

PERIOD_NS = 33_333_333


def unit(seq: int, *, size: int = 100, capture_ns: int | None = None, key: bool = False, utc_ns: int = 0) -> AccessUnit:
    return AccessUnit(bytes(size), seq, seq * PERIOD_NS if capture_ns is None else capture_ns, key, utc_ns)


def batches(units: list[AccessUnit], max_ms: int | None) -> list[list[int]]:
    batch, out = VideoBatch(max_ms, PERIOD_NS), []
    for item in units:
        if not batch.fits(item):
            out.append(batch.take())
        batch.add(Waiting(item), 0)
        if batch.full:
            out.append(batch.take())
    out.append(batch.take())
    for items in out:
        if items:
            assert len(split_video([item.unit for item in items], session_id=1, width=64, height=48)) == 1
    return [[item.unit.frame_seq for item in items] for items in out if items]


@pytest.mark.parametrize(("max_ms", "count"), [(0, 1), (30, 1), (66, 2), (200, 6), (1000, 30), (None, 31)])
def test_time_closes_a_message(max_ms: int | None, count: int) -> None:
    assert batches([unit(seq) for seq in range(31)], max_ms)[0] == list(range(count))


def test_irregular_capture_times_do_not_change_the_number() -> None:
    jittered = [unit(seq, capture_ns=seq * PERIOD_NS + (-1) ** seq * 2_000_000) for seq in range(18)]
    assert [len(seqs) for seqs in batches(jittered, 200)] == [6, 6, 6]


def test_a_keyframe_begins_a_message() -> None:
    units = [unit(seq, key=seq % 4 == 0) for seq in range(10)]
    assert batches(units, None) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize(
    "after",
    [unit(3), unit(2, capture_ns=0), unit(2, capture_ns=2**40), unit(2, utc_ns=7)],
    ids=["gap", "time runs back", "time jumps", "UTC becomes known"],
)
def test_what_a_message_cannot_say_begins_another(after: AccessUnit) -> None:
    assert batches([unit(0), unit(1), after], None) == [[0, 1], [after.frame_seq]]


def test_size_and_number_close_a_message() -> None:
    assert batches([unit(seq, size=MAX_BATCH_BYTES // 3) for seq in range(5)], None) == [[0, 1, 2], [3, 4]]
    assert [len(seqs) for seqs in batches([unit(seq, size=9) for seq in range(300)], None)] == [MAX_UNITS, 45]


def test_the_utc_offset_stands_still_while_it_only_trembles() -> None:
    batch = VideoBatch(None, PERIOD_NS)
    for seq, utc_ns in enumerate((10**18, 10**18 + 800, 10**18 - 900_000, 10**18 + 2_000_000)):
        batch.add(Waiting(unit(seq, utc_ns=utc_ns)), 0)
    assert [item.unit.utc_offset_ns - 10**18 for item in batch.take()] == [0, 0, 0, 2_000_000]


def test_the_clock_starts_with_the_first_access_unit() -> None:
    batch = VideoBatch(200, PERIOD_NS)
    assert batch.left_s(5) is None
    batch.add(Waiting(unit(0)), 1_000_000_000)
    batch.add(Waiting(unit(1)), 1_050_000_000)
    assert batch.left_s(1_050_000_000) == pytest.approx(0.15)
    assert batch.left_s(9_000_000_000) == 0
    assert len(batch) == len(batch.take()) == 2
    assert batch.left_s(9_000_000_000) is None
