"""Video on MQTT: round trips, fragments in any order, and nothing but PacketError for anything else."""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scene_edge.codec.checksum import crc32c
from scene_edge.codec.errors import PacketError
from scene_edge.codec.identity import MAX_FRAME_SEQ, MAX_TIME_NS, AccessUnit
from scene_edge.codec.packet import VideoAssembler, VideoMessage, split_video
from scene_edge.codec.videomessage import HEADER_BYTES, MAX_MESSAGE_BYTES, MAX_STEP_NS, MAX_UNITS
from tests.golden import recipes

GOLDEN = {name: message.to_bytes() for name, message in recipes.videos().items()}


def unit(size: int, seq: int = 7) -> AccessUnit:
    return AccessUnit(random.Random(size).randbytes(size), seq, 1_000_000, keyframe=True, utc_offset_ns=9)


def split(of: list[AccessUnit], max_bytes: int = 120_000) -> list[VideoMessage]:
    return split_video(of, session_id=5, width=64, height=48, max_bytes=max_bytes)


@st.composite
def streams(draw: st.DrawFn) -> list[AccessUnit]:
    """Consecutive access units whose times move in any way that a message can say."""
    count = draw(st.integers(1, MAX_UNITS) | st.integers(1, 4))
    seq = draw(st.integers(0, MAX_FRAME_SEQ - count + 1))
    capture_ns = draw(st.integers(-MAX_TIME_NS, MAX_TIME_NS))
    utc_ns = draw(st.just(0) | st.integers(-MAX_TIME_NS, MAX_TIME_NS))
    random_ = draw(st.randoms(use_true_random=False))
    widest = draw(st.sampled_from([0, 1, 40_000_000, MAX_STEP_NS]))
    units = []
    for index in range(count):
        data = random_.randbytes(random_.choice((1, 2, 63, 64, 300)))
        units.append(AccessUnit(data, seq + index, capture_ns, random_.random() < 0.1, utc_ns))
        capture_ns = min(capture_ns + random_.randint(0, widest), MAX_TIME_NS)
        if utc_ns:
            moved = max(-MAX_TIME_NS, min(utc_ns + random_.randint(-widest, widest), MAX_TIME_NS))
            utc_ns = moved or utc_ns
    return units


@given(streams(), st.integers(1000, 120_000), st.binary(max_size=300))
def test_round_trip(units: list[AccessUnit], max_bytes: int, riders: bytes) -> None:
    parts = split_video(units, session_id=5, width=64, height=48, riders=riders, max_bytes=max_bytes)
    assembler = VideoAssembler()
    whole: VideoMessage | None = None
    for part in parts:
        data = part.to_bytes()
        assert len(data) <= max_bytes
        assert VideoMessage.from_bytes(data) == part
        assert len(data) - len(part.body) <= HEADER_BYTES <= 48
        assert whole is None
        whole = assembler.push(VideoMessage.from_bytes(data))
    assert whole is not None
    assert list(whole.units) == units
    assert whole.riders == riders
    assert assembler.given_up == 0


def test_a_regular_stream_costs_a_few_bytes_a_frame() -> None:
    units = [AccessUnit(bytes(500), seq, seq * 33_333_333, seq == 0, utc_offset_ns=1) for seq in range(6)]
    (message,) = split(units)
    assert len(message.body) == 6 * 500 + 6 * 2 + 4 + 4 * 1 + 5 * 1


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_every_prefix_and_single_bit_flip_is_refused(name: str) -> None:
    for end in range(len(GOLDEN[name])):
        with pytest.raises(PacketError):
            VideoMessage.from_bytes(GOLDEN[name][:end])
    data = bytearray(GOLDEN[name])
    for bit in range(len(data) * 8):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PacketError):
            VideoMessage.from_bytes(bytes(data))
        data[bit // 8] ^= 1 << bit % 8


def test_mutants_with_a_good_checksum_raise_nothing_else() -> None:
    rng = random.Random(6)
    accepted = 0
    for _ in range(3000):
        body = bytearray(GOLDEN[rng.choice(sorted(GOLDEN))][:-4])
        for _ in range(rng.randint(1, 3)):
            body[rng.randrange(len(body))] = rng.choice((0, 1, 2, 0x7F, 0xFF, rng.randrange(256)))
        if rng.random() < 0.3:
            del body[rng.randrange(len(body)) :]
        data = bytes(body) + struct.pack("<I", crc32c(bytes(body)))
        try:
            message = VideoMessage.from_bytes(data)
        except PacketError:
            continue
        accepted += 1
        assert message.to_bytes() == data
    assert accepted > 100


@pytest.mark.parametrize("sizes", [[953], [954], [955], [5000], [300, 300, 300], [900, 2, 3000, 1]])
def test_fragments_join_in_any_order(sizes: list[int]) -> None:
    units = [unit(size, 7 + index) for index, size in enumerate(sizes)]
    parts = split(units, max_bytes=1000)
    assert len(parts) == -(-sum(sizes) // 954) or len(sizes) == 1
    assert max(len(part.to_bytes()) for part in parts) <= 1000
    random.Random(sizes[0]).shuffle(parts)
    assembler = VideoAssembler()
    joined = [assembler.push(VideoMessage.from_bytes(part.to_bytes())) for part in parts]
    assert joined[:-1] == [None] * (len(parts) - 1)
    assert joined[-1] is not None
    assert joined[-1].units == tuple(units)
    assert assembler.given_up == 0


def test_lost_fragments_are_counted_and_memory_stays_bounded() -> None:
    assembler = VideoAssembler()
    for seq in range(20):
        assert assembler.push(split([unit(3000, seq)], max_bytes=1000)[0]) is None
    assert assembler.given_up == 20 - VideoAssembler.MAX_OPEN
    complete = [assembler.push(part) for part in split([unit(3000, 99)], max_bytes=1000)]
    assert complete[-1] is not None
    assert complete[-1].units == (unit(3000, 99),)


def test_a_fragment_twice_changes_nothing() -> None:
    assembler = VideoAssembler()
    first, second = split([unit(1500)], max_bytes=1000)
    assert [assembler.push(first), assembler.push(first)] == [None, None]
    whole = assembler.push(second)
    assert whole is not None
    assert whole.units == (unit(1500),)


@pytest.mark.parametrize("change", [{"width": 128}, {"count": 2}, {"capture_ns": 5}, {"fragments": 3}])
def test_contradicting_fragments_are_refused(change: dict[str, Any]) -> None:
    assembler = VideoAssembler()
    first, second = split([unit(1500)], max_bytes=1000)
    assembler.push(first)
    with pytest.raises(PacketError, match="contradict"):
        assembler.push(replace(second, **change))
    assert assembler.given_up == 1


def test_fragments_that_make_no_message_are_given_up() -> None:
    assembler = VideoAssembler()
    first, second = split([unit(1500)], max_bytes=1000)
    assembler.push(first)
    with pytest.raises(PacketError, match="add up"):
        assembler.push(replace(second, body=second.body + b"x"))
    assert assembler.given_up == 1
    with pytest.raises(PacketError, match="alone"):
        _ = first.units


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"session_id": -1}, "identity"),
        ({"first_seq": 2**32}, "identity"),
        ({"first_seq": 2**32 - 1}, "identity"),
        ({"capture_ns": 2**63}, "time"),
        ({"capture_ns": 2**63 - 1}, "time"),
        ({"count": 0}, "number of access units"),
        ({"count": 256}, "number of access units"),
        ({"count": 200}, "cut short|length"),
        ({"fragment": 1}, "fragment"),
        ({"fragments": 256}, "fragment"),
        ({"width": 7}, "picture size"),
        ({"height": 0}, "picture size"),
        ({"body": b""}, "data"),
        ({"body": b"\x00" * 9}, "length out of range"),
        ({"body": b"\xff" * 9}, "too many bytes"),
        ({"body": b"\xff\xff\xff\x7f" + b"a" * 99}, "length out of range"),
        ({"body": b"\x82\x00" + b"a" * 99}, "shortest form"),
        ({"body": b"\x02\x02\x01\x00\x02\x00\x00abc"}, "step"),
        ({"body": b"\x02\x02\x00\x00\x02\x00\x00abcd"}, "add up"),
    ],
)
def test_values_out_of_range_are_named(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(PacketError, match=complaint):
        replace(recipes.videos()["video_batch"], **change)


def test_an_offset_that_becomes_unknown_is_refused() -> None:
    with pytest.raises(PacketError, match="UTC offset"):
        VideoMessage(1, 0, 0, 5, 2, 0, 1, 64, 48, bytes([2, 2, 0, 9]) + b"ab")


@pytest.mark.parametrize(
    "change",
    [
        {"frame_seq": 9},
        {"frame_seq": 7},
        {"capture_ns": 999_999},
        {"capture_ns": 1_000_000 + 2**32},
        {"utc_offset_ns": 0},
        {"utc_offset_ns": 2**33},
    ],
)
def test_what_a_message_cannot_say_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(PacketError, match="cannot follow"):
        split([unit(10), replace(unit(10, 8), **change)])


def test_too_long_for_one_message_or_for_all() -> None:
    (message,) = split_video([unit(MAX_MESSAGE_BYTES)], session_id=5, width=64, height=48, max_bytes=120_000)[:1]
    with pytest.raises(PacketError, match="Split"):
        replace(message, body=bytes(MAX_MESSAGE_BYTES)).to_bytes()
    with pytest.raises(PacketError, match="does not fit"):
        split([unit(300)], max_bytes=HEADER_BYTES + 1)
    with pytest.raises(PacketError, match="message size"):
        split([unit(300)], max_bytes=HEADER_BYTES)
    with pytest.raises(PacketError, match="number of access units"):
        split([])
    with pytest.raises(PacketError, match="number of access units"):
        split([unit(1, seq) for seq in range(MAX_UNITS + 1)])
    with pytest.raises(PacketError, match="empty"):
        split([replace(unit(1), data=b"")])
