"""Semantic packets: exact round trips, and nothing but PacketError for anything else."""

from __future__ import annotations

import random
import struct
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scene_edge.codec.checksum import crc32c
from scene_edge.codec.errors import PacketError
from scene_edge.codec.packet import (
    BIRTH,
    KEY,
    LEDGER,
    MAX_FRAMES,
    MAX_PACKET_BYTES,
    PacketKind,
    SemanticPacket,
)
from tests.golden import recipes

GOLDEN = {name: packet.to_bytes() for name, packet in recipes.packets().items()}


def refixed(body: bytes) -> bytes:
    """A message whose checksum fits again, so that the checks behind it are reached."""
    return body + struct.pack("<I", crc32c(body))


@st.composite
def packets(draw: st.DrawFn) -> SemanticPacket:
    kind = draw(st.sampled_from(PacketKind))
    most = 1 if kind in (BIRTH, LEDGER) else 40
    count = draw(st.integers(1, most))
    return SemanticPacket(
        kind=kind,
        codec_id=draw(st.integers(0, 255)),
        bundle_digest=draw(st.binary(min_size=8, max_size=8)),
        session_id=draw(st.integers(0, 2**64 - 1)),
        first_seq=draw(st.integers(0, 2**32 - count)),
        capture_ns=draw(st.integers(-(2**63) + 1, 2**63 - 1)),
        width=draw(st.integers(1, 4096)) * 2,
        height=draw(st.integers(1, 4096)) * 2,
        frame_period_ns=draw(st.integers(0, 2**32 - 1)),
        flags=draw(st.integers(0, 2**16 - 1)),
        quality=draw(st.integers(0, 255)),
        count=count,
        body=draw(st.binary(max_size=3000)),
    )


@given(packets())
def test_round_trip(packet: SemanticPacket) -> None:
    data = packet.to_bytes()
    assert SemanticPacket.from_bytes(data) == packet
    assert SemanticPacket.from_bytes(data).to_bytes() == data


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_every_prefix_and_extension_is_refused(name: str) -> None:
    data = GOLDEN[name]
    for end in range(len(data)):
        with pytest.raises(PacketError):
            SemanticPacket.from_bytes(data[:end])
    with pytest.raises(PacketError):
        SemanticPacket.from_bytes(data + b"\x00")


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_every_single_bit_flip_is_refused(name: str) -> None:
    data = bytearray(GOLDEN[name])
    for bit in range(len(data) * 8):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PacketError):
            SemanticPacket.from_bytes(bytes(data))
        data[bit // 8] ^= 1 << bit % 8


def test_mutants_with_a_good_checksum_raise_nothing_else() -> None:
    rng = random.Random(5)
    accepted = 0
    for _ in range(6000):
        body = bytearray(GOLDEN[rng.choice(sorted(GOLDEN))][:-4])
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(min(len(body), 60)) if rng.random() < 0.7 else rng.randrange(len(body))
            choice = rng.random()
            if choice < 0.6:
                body[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            elif choice < 0.8:
                del body[at : at + rng.randint(1, 8)]
            else:
                body[at:at] = rng.randbytes(rng.randint(1, 8))
            if not body:
                body = bytearray(b"S")
        data = refixed(bytes(body))
        try:
            packet = SemanticPacket.from_bytes(data)
        except PacketError:
            continue
        accepted += 1
        assert packet.to_bytes() == data, "what is accepted must be the only form of what it says"
    assert accepted > 100, "the mutants never got past the header: the test tests nothing"


@given(st.binary(max_size=200))
def test_random_bytes_behind_a_good_header(tail: bytes) -> None:
    body = GOLDEN["packet_key"][:48] + tail
    try:
        SemanticPacket.from_bytes(refixed(body))
    except PacketError:
        return


def test_a_large_count_allocates_nothing() -> None:
    body = bytearray(GOLDEN["packet_key"][:-4])
    struct.pack_into("<H", body, 10, 512)
    tracemalloc.start()
    assert SemanticPacket.from_bytes(refixed(bytes(body[:60]))).count == 512
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 16


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"kind": 9}, "unknown kind"),
        ({"bundle_digest": b"short"}, "digest"),
        ({"codec_id": 256}, "codec id"),
        ({"quality": -1}, "quality"),
        ({"flags": 1 << 16}, "flags"),
        ({"session_id": 1 << 64}, "session"),
        ({"frame_period_ns": 1 << 32}, "frame period"),
        ({"capture_ns": 1 << 63}, "capture time"),
        ({"first_seq": 2**32 - 1}, "sequence"),
        ({"first_seq": -1}, "sequence"),
        ({"count": 0}, "number of frames"),
        ({"count": MAX_FRAMES + 1}, "number of frames"),
        ({"width": 0}, "picture size"),
        ({"width": 161}, "picture size"),
        ({"height": 8194}, "picture size"),
    ],
)
def test_values_out_of_range_are_named(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(PacketError, match=complaint):
        replace(recipes.packets()["packet_key"], **change)


def test_the_longest_packet_and_one_byte_more() -> None:
    packet = recipes.packets()["packet_key"]
    room = MAX_PACKET_BYTES - 48 - 4
    longest = replace(packet, body=bytes(room)).to_bytes()
    assert len(longest) == MAX_PACKET_BYTES
    assert SemanticPacket.from_bytes(longest).body == bytes(room)
    with pytest.raises(PacketError, match="too long"):
        replace(packet, body=bytes(room + 1)).to_bytes()
    with pytest.raises(PacketError, match="length out of range"):
        SemanticPacket.from_bytes(longest + b"\x00")


def test_a_future_version_says_what_to_do() -> None:
    body = bytearray(GOLDEN["packet_key"][:-4])
    body[4] = 2
    with pytest.raises(PacketError, match="Update"):
        SemanticPacket.from_bytes(refixed(bytes(body)))


def test_what_a_gop_costs_beside_its_body() -> None:
    packet = replace(recipes.packets()["packet_key"], kind=KEY, count=30, body=bytes(30 * 18))
    assert len(packet.to_bytes()) - 30 * 18 == 48 + 4
    assert (packet.count, packet.last_seq) == (30, 329)
