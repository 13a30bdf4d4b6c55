"""Packets that ride in a video message: what comes back is what was put in, and damage stays inside the error tree."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scene_edge.codec.errors import PacketError
from scene_edge.codec.identity import MAX_FRAME_SEQ, MAX_TIME_NS
from scene_edge.codec.packet import BIRTH, DELTA, KEY, MAX_FRAME_PERIOD_NS, MAX_FRAMES, SemanticPacket
from scene_edge.codec.riders import Carrier, carrier_of, read_riders, write_rider, write_riders
from scene_edge.codec.videomessage import MAX_RIDERS_BYTES
from tests.golden import recipes

CARRIER = Carrier(9, 330, 11_000_000_000, 960, 540)
PACKET = SemanticPacket(KEY, 2, b"digest.8", 9, 300, 10_000_000_000, 960, 540, 33_333_333, 0, 2, 30, b"body")

carriers = st.builds(
    Carrier,
    st.just(9),
    st.integers(0, MAX_FRAME_SEQ),
    st.integers(-MAX_TIME_NS, MAX_TIME_NS),
    st.just(960),
    st.just(540),
)


@st.composite
def packets(draw: st.DrawFn) -> SemanticPacket:
    count = draw(st.integers(1, MAX_FRAMES))
    return replace(
        PACKET,
        kind=draw(st.sampled_from([KEY, DELTA])),
        codec_id=draw(st.integers(0, 255)),
        bundle_digest=draw(st.binary(min_size=8, max_size=8)),
        first_seq=draw(st.integers(0, MAX_FRAME_SEQ - count + 1)),
        capture_ns=draw(st.integers(-MAX_TIME_NS, MAX_TIME_NS)),
        frame_period_ns=draw(st.integers(0, MAX_FRAME_PERIOD_NS)),
        flags=draw(st.integers(0, 0xFFFF)),
        quality=draw(st.integers(0, 255)),
        count=count,
        body=draw(st.binary(max_size=200)),
    )


@given(st.lists(packets(), max_size=4), carriers)
def test_round_trip(of: list[SemanticPacket], carrier: Carrier) -> None:
    assert read_riders(write_riders(of, carrier), carrier) == of


@given(st.binary(max_size=80), carriers)
def test_whatever_is_read_is_written_alike(data: bytes, carrier: Carrier) -> None:
    try:
        found = read_riders(data, carrier)
    except PacketError:
        return
    assert write_riders(found, carrier) == data


def test_every_prefix_and_flipped_bit_is_read_otherwise_or_refused() -> None:
    data = write_rider(PACKET, CARRIER)
    damaged = [data[:end] for end in range(1, len(data))]
    damaged += [
        bytes(b ^ (1 << bit) * (at == i) for at, b in enumerate(data)) for i in range(len(data)) for bit in range(8)
    ]
    refused = 0
    for changed in damaged:
        try:
            assert read_riders(changed, CARRIER) != [PACKET]
        except PacketError:
            refused += 1
    assert refused >= len(data)


def test_a_rider_of_a_regular_stream_has_20_bytes_beside_its_body() -> None:
    assert len(write_rider(PACKET, CARRIER)) - len(PACKET.body) == 20


@pytest.mark.parametrize(
    "change", [{"kind": BIRTH, "count": 1}, {"session_id": 8}, {"width": 640}, {"body": bytes(MAX_RIDERS_BYTES)}]
)
def test_what_cannot_ride_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(PacketError):
        write_riders([replace(PACKET, **change)], CARRIER)  # type: ignore[arg-type]


def test_too_many_bytes_are_refused_before_they_are_read() -> None:
    with pytest.raises(PacketError, match="too many"):
        read_riders(bytes(MAX_RIDERS_BYTES + 1), CARRIER)


def test_the_golden_message_carries_its_packets() -> None:
    message = recipes.videos()["video_laden"]
    made = recipes.packets()
    assert read_riders(message.riders, carrier_of(message)) == [made["packet_key"], made["packet_delta"]]
    assert [unit.frame_seq for unit in message.units] == [301, 302]
