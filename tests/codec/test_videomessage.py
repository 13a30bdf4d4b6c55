"""Video on MQTT: round trips, fragments in any order, and nothing but PacketError for anything else."""

from __future__ import annotations

import random
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scene_edge.codec.checksum import crc32c
from scene_edge.codec.errors import PacketError
from scene_edge.codec.identity import AccessUnit
from scene_edge.codec.packet import VideoAssembler, VideoMessage, split_video
from scene_edge.codec.videomessage import HEADER_BYTES, MAX_MESSAGE_BYTES
from tests.golden import recipes

GOLDEN = {name: message.to_bytes() for name, message in recipes.videos().items()}


def unit(size: int, seq: int = 7) -> AccessUnit:
    return AccessUnit(random.Random(size).randbytes(size), seq, 1_000_000, keyframe=True)


def split(of: AccessUnit, max_bytes: int) -> list[VideoMessage]:
    return split_video(of, session_id=5, width=64, height=48, utc_offset_ns=9, max_bytes=max_bytes)


@given(
    st.builds(
        VideoMessage,
        session_id=st.integers(0, 2**64 - 1),
        frame_seq=st.integers(0, 2**32 - 1),
        capture_ns=st.integers(-(2**63) + 1, 2**63 - 1),
        utc_offset_ns=st.integers(-(2**63) + 1, 2**63 - 1) | st.just(0),
        keyframe=st.booleans(),
        fragment=st.integers(0, 9),
        fragments=st.integers(10, 255),
        width=st.integers(1, 4096).map(lambda half: 2 * half),
        height=st.integers(1, 4096).map(lambda half: 2 * half),
        data=st.binary(min_size=1, max_size=400),
    )
)
def test_round_trip(message: VideoMessage) -> None:
    data = message.to_bytes()
    assert VideoMessage.from_bytes(data) == message
    assert len(data) - len(message.data) <= HEADER_BYTES <= 48


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


@pytest.mark.parametrize("size", [1, 955, 956, 957, 5000])
def test_fragments_join_in_any_order(size: int) -> None:
    whole = unit(size)
    parts = split(whole, max_bytes=1000)
    assert max(len(part.to_bytes()) for part in parts) <= 1000
    random.Random(size).shuffle(parts)
    assembler = VideoAssembler()
    joined = [assembler.push(VideoMessage.from_bytes(part.to_bytes())) for part in parts]
    assert joined[:-1] == [None] * (len(parts) - 1)
    assert joined[-1] is not None
    assert joined[-1].data == whole.data
    assert (joined[-1].fragment, joined[-1].fragments, joined[-1].frame_seq) == (0, 1, 7)
    assert assembler.given_up == 0


def test_lost_fragments_are_counted_and_memory_stays_bounded() -> None:
    assembler = VideoAssembler()
    for seq in range(20):
        assert assembler.push(split(unit(3000, seq), max_bytes=1000)[0]) is None
    assert assembler.given_up == 20 - VideoAssembler.MAX_OPEN
    complete = [assembler.push(part) for part in split(unit(3000, 99), max_bytes=1000)]
    assert complete[-1] is not None


def test_a_fragment_twice_changes_nothing() -> None:
    assembler = VideoAssembler()
    first, second = split(unit(1500), max_bytes=1000)
    assert [assembler.push(first), assembler.push(first)] == [None, None]
    joined = assembler.push(second)
    assert joined is not None
    assert joined.data == unit(1500).data


def test_contradicting_fragments_are_refused() -> None:
    assembler = VideoAssembler()
    first, second = split(unit(1500), max_bytes=1000)
    assembler.push(first)
    with pytest.raises(PacketError, match="contradict"):
        assembler.push(replace(second, width=128))
    assert assembler.given_up == 1


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"session_id": -1}, "identity"),
        ({"frame_seq": 2**32}, "identity"),
        ({"capture_ns": 2**63}, "time"),
        ({"fragment": 1}, "fragment"),
        ({"fragments": 256}, "fragment"),
        ({"width": 7}, "picture size"),
        ({"height": 0}, "picture size"),
        ({"data": b""}, "data"),
    ],
)
def test_values_out_of_range_are_named(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(PacketError, match=complaint):
        replace(recipes.videos()["video_key"], **change)


def test_too_long_for_one_message_or_for_all() -> None:
    message = replace(recipes.videos()["video_key"], data=bytes(MAX_MESSAGE_BYTES))
    with pytest.raises(PacketError, match="Split"):
        message.to_bytes()
    with pytest.raises(PacketError, match="does not fit"):
        split(unit(300), max_bytes=HEADER_BYTES + 1)
    with pytest.raises(PacketError, match="message size"):
        split(unit(300), max_bytes=HEADER_BYTES)
