"""Joining by frame number: order, deadlines, gaps, lateness, bounds."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from scene_edge.codec.packet import CODEC_SMC_GOP, FLAG_GOP_CUT, KEY, SemanticPacket
from scene_edge.server.join import Joiner, JoinStatus, VideoUnit

DEADLINE_S = 3.0


def unit(seq: int, *, keyframe: bool = False, size: int = 10) -> VideoUnit:
    return VideoUnit(1, seq, seq, seq, True, keyframe, 64, 64, b"x" * size)


def packet(first: int, count: int, flags: int = 0) -> SemanticPacket:
    return SemanticPacket(KEY, CODEC_SMC_GOP, b"d" * 8, 1, first, 0, 64, 64, 1, flags, 0, count, b"")


def joiner(**changes: object) -> Joiner:
    return replace(Joiner(DEADLINE_S, expect_semantics=True), **changes)


def test_frames_wait_for_their_packet_and_leave_in_order() -> None:
    join = joiner()
    for seq in range(4):
        join.add_video(unit(seq), 0.1 * seq)
        assert join.release(0.1 * seq) == []
    assert join.next_deadline_s() == DEADLINE_S
    join.add_semantics(packet(0, 3))
    left = join.release(0.5)
    assert [(j.frame_seq, j.status) for j in left] == [(seq, JoinStatus.MATCHED) for seq in range(3)]
    assert join.waiting == 1
    assert join.match_rate() == 1.0


def test_each_frame_has_its_own_deadline() -> None:
    join = joiner()
    join.add_video(unit(0), 0.0)
    join.add_video(unit(1), 1.0)
    assert [j.frame_seq for j in join.release(3.0)] == [0]
    assert [j.status for j in join.release(4.0)] == [JoinStatus.MISSING_SEMANTICS]
    assert join.match_rate() == 0.0


def test_a_late_packet_is_told_from_a_repeated_one() -> None:
    join = joiner()
    join.add_video(unit(0), 0.0)
    join.release(9.0)
    join.add_semantics(packet(0, 1))
    join.add_semantics(packet(0, 1))
    assert (join.counts["late"], join.counts["missing_semantics"], join.counts["repeated_semantics"]) == (1, 0, 1)


def test_a_gap_is_given_up_once_after_the_deadline() -> None:
    join = joiner(expect_semantics=False)
    join.add_video(unit(0), 0.0)
    join.release(0.0)
    join.add_video(unit(4), 1.0)
    assert join.release(3.9) == []
    gap, after = join.release(4.0)
    assert (gap.unit, gap.frame_seq, gap.count, gap.status) == (None, 1, 3, JoinStatus.MISSING_VIDEO)
    assert after.frame_seq == 4
    assert join.add_video(unit(2), 5.0) is False


def test_frames_out_of_order_are_put_in_order() -> None:
    join = joiner(expect_semantics=False)
    for seq in (0, 2, 3, 1):
        join.add_video(unit(seq), 0.0)
    assert [j.frame_seq for j in join.release(0.0)] == [0, 1, 2, 3]


def test_a_huge_jump_costs_one_entry_and_not_one_a_frame() -> None:
    join = joiner(expect_semantics=False)
    join.add_video(unit(0), 0.0)
    join.release(0.0)
    join.add_video(unit(2**32 - 1), 0.0)
    gap, last = join.release(DEADLINE_S)
    assert gap.count == 2**32 - 2
    assert last.frame_seq == 2**32 - 1


def test_met_in_the_middle_it_waits_for_lower_numbers_first() -> None:
    join = joiner(expect_semantics=False)
    join.add_video(unit(60), 0.0)
    join.add_video(unit(59), 0.5)
    assert join.release(2.9) == []
    assert [j.frame_seq for j in join.release(3.0)] == [59, 60]


def test_resumed_it_takes_what_is_due_at_once_and_refuses_what_is_done() -> None:
    join = joiner(expect_semantics=False, next_seq=10)
    assert join.add_video(unit(9), 0.0) is False
    join.add_video(unit(10), 0.0)
    assert [j.frame_seq for j in join.release(0.0)] == [10]


def test_what_exceeds_the_buffer_leaves_early() -> None:
    join = joiner(max_frames=3)
    for seq in range(5):
        join.add_video(unit(seq), 0.0)
    assert [j.frame_seq for j in join.release(0.0)] == [0, 1]
    by_bytes = joiner(max_bytes=25)
    for seq in range(5):
        by_bytes.add_video(unit(seq), 0.0)
    assert len(by_bytes.release(0.0)) == 3


def test_packets_without_video_do_not_pile_up() -> None:
    join = joiner(max_frames=16)
    for first in range(0, 2000, 10):
        join.add_semantics(packet(first, 10))
    assert len(join._packets) <= 32
    assert join.counts["join_overflow"] > 0


def test_a_gop_that_was_cut_is_not_waited_for() -> None:
    join = joiner()
    for seq in range(5):
        join.add_video(unit(seq, keyframe=seq in (0, 4)), 0.0)
    join.add_semantics(packet(0, 2, FLAG_GOP_CUT))
    statuses = [j.status for j in join.release(0.1)]
    assert statuses == [JoinStatus.MATCHED] * 2 + [JoinStatus.MISSING_SEMANTICS] * 2
    assert join.waiting == 1, "the next keyframe begins a GOP that has semantics again"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.integers(1, 5), st.floats(0, 2)), max_size=60))
def test_whatever_comes_every_frame_leaves_once_and_in_order(steps: list[tuple[bool, int, int, float]]) -> None:
    join, now_s, left, taken = joiner(), 0.0, [], set()
    for is_video, seq, count, wait_s in steps:
        now_s += wait_s
        if is_video:
            if join.add_video(unit(seq), now_s):
                taken.add(seq)
        else:
            join.add_semantics(packet(seq, count))
        left += join.release(now_s)
    left += join.release(now_s + 10)
    seqs = [j.frame_seq for j in left if j.unit is not None]
    assert seqs == sorted(taken)
    assert join.waiting == 0
    assert all(j.packet is None or j.packet.first_seq <= j.frame_seq <= j.packet.last_seq for j in left)
