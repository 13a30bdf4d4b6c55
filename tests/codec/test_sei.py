"""SEI messages and NAL units: written where a decoder wants them, read back exactly, harmless to every player."""

from __future__ import annotations

import io
import random

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scene_edge.codec.annexb import escape, has_idr, iter_nals, to_annexb, unescape
from scene_edge.codec.errors import SeiError
from scene_edge.codec.h264 import H264Decoder
from scene_edge.codec.sei import (
    ANCHOR_UUID,
    MAX_SEI_BYTES,
    SEMANTIC_UUID,
    Anchor,
    insert_sei,
    read_anchor,
    read_sei,
    strip_sei,
)
from tests.codec.streams import access_units, matroska
from tests.golden import recipes

UNITS = access_units(count=8, gop=4)
zeros_and_ones = st.lists(st.sampled_from([0, 0, 0, 1, 2, 3, 4, 255]), max_size=60).map(bytes)


@given(st.binary(max_size=200) | zeros_and_ones)
def test_escape_is_undone_by_unescape(raw: bytes) -> None:
    payload = escape(raw + b"\x80")
    assert unescape(payload) == raw + b"\x80"
    for code in (b"\x00\x00\x00", b"\x00\x00\x01", b"\x00\x00\x02"):
        assert code not in payload


@given(st.sampled_from(range(len(UNITS))), st.binary(max_size=600) | zeros_and_ones)
def test_round_trip_in_real_access_units(index: int, payload: bytes) -> None:
    unit = UNITS[index]
    marked = insert_sei(unit, payload, SEMANTIC_UUID)
    assert read_sei(marked, SEMANTIC_UUID) == [payload]
    assert read_sei(marked, ANCHOR_UUID) == []
    assert strip_sei(marked, SEMANTIC_UUID) == unit
    assert strip_sei(marked, ANCHOR_UUID) == marked


@pytest.mark.parametrize("size", [0, 1, 238, 239, 240, 493, 494, 495, 20_000, MAX_SEI_BYTES])
def test_lengths_around_the_bytes_of_255(size: int) -> None:
    payload = random.Random(size).randbytes(size)
    assert read_sei(insert_sei(UNITS[0], payload, ANCHOR_UUID), ANCHOR_UUID) == [payload]


def test_order_of_nal_units() -> None:
    key = insert_sei(UNITS[0], b"payload", ANCHOR_UUID)
    types = [nal.type for nal in iter_nals(key)]
    assert types.index(7) < types.index(8) < types.index(6) < types.index(5)
    assert types.index(5) == len(types) - types.count(5), "no SEI after the first slice"
    delta = [nal.type for nal in iter_nals(insert_sei(UNITS[1], b"payload", ANCHOR_UUID))]
    assert delta[0] == 6
    assert set(delta[1:]) == {1}


def test_two_messages_keep_their_order_and_others_are_left_alone() -> None:
    both = insert_sei(insert_sei(UNITS[0], b"one", ANCHOR_UUID), b"two", ANCHOR_UUID)
    assert read_sei(both, ANCHOR_UUID) == [b"one", b"two"]
    assert strip_sei(both, ANCHOR_UUID) == UNITS[0]
    assert any(nal.type == 6 for nal in iter_nals(UNITS[0])), "x264's own SEI should be there to be left alone"


def test_decoders_do_not_mind() -> None:
    plain, marked = H264Decoder(), H264Decoder()
    for seq, unit in enumerate(UNITS):
        (expected,) = plain.decode(unit, seq)
        (found,) = marked.decode(insert_sei(unit, bytes(500), SEMANTIC_UUID), seq)
        assert (found[1].y == expected[1].y).all()


def test_no_slice_and_too_long_are_refused() -> None:
    headers_only = b"".join(b"\x00\x00\x00\x01" + nal.data for nal in iter_nals(UNITS[0]) if nal.type in (7, 8))
    for data in (headers_only, b"", b"no start code"):
        with pytest.raises(SeiError, match="no slice"):
            insert_sei(data, b"", ANCHOR_UUID)
    with pytest.raises(SeiError, match="too long"):
        insert_sei(UNITS[0], bytes(MAX_SEI_BYTES + 1), ANCHOR_UUID)


@pytest.mark.parametrize("body", ["05", "05ff", "0510", "ffff", "051f" + "00" * 16, "05" + "ff" * 9])
def test_messages_that_run_past_their_unit(body: str) -> None:
    with pytest.raises(SeiError):
        read_sei(b"\x00\x00\x01\x06" + bytes.fromhex(body) + b"\x00\x00\x01\x65\x88", ANCHOR_UUID)


@given(st.binary(max_size=120))
def test_random_sei_raises_nothing_else(body: bytes) -> None:
    data = b"\x00\x00\x01\x06" + body + b"\x00\x00\x01\x65\x88"
    for call in (read_sei, strip_sei):
        try:
            call(data, ANCHOR_UUID)
        except SeiError:
            continue


def test_damaged_streams_raise_nothing_else() -> None:
    rng = random.Random(4)
    marked = insert_sei(insert_sei(UNITS[0], recipes.anchor().to_bytes(), ANCHOR_UUID), b"abc", SEMANTIC_UUID)
    for _ in range(2000):
        data = bytearray(marked[:900])
        for _ in range(rng.randint(1, 5)):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 5, 6, 255, rng.randrange(256)))
        try:
            read_anchor(bytes(data))
            read_sei(bytes(data), SEMANTIC_UUID)
        except SeiError:
            continue


@given(
    st.builds(
        Anchor,
        session_id=st.integers(0, 2**64 - 1),
        frame_seq=st.integers(0, 2**32 - 1),
        capture_ns=st.integers(-(2**63) + 1, 2**63 - 1),
        utc_offset_ns=st.integers(-(2**63) + 1, 2**63 - 1),
        utc_quality=st.sampled_from((0, 1, 2)),
    )
)
def test_anchor_round_trip(anchor: Anchor) -> None:
    assert read_anchor(insert_sei(UNITS[0], anchor.to_bytes(), ANCHOR_UUID)) == anchor


def test_bad_anchors_are_refused() -> None:
    good = recipes.anchor().to_bytes()
    for data in (b"", b"\x02" + good[1:], good[:-1], good + b"\x00", good[:-1] + b"\x03"):
        with pytest.raises(SeiError):
            Anchor.from_bytes(data)
    for change in ({"session_id": -1}, {"frame_seq": 2**32}, {"capture_ns": 2**63}, {"utc_quality": 3}):
        with pytest.raises(SeiError):
            Anchor(**{"session_id": 1, "frame_seq": 1, "capture_ns": 1, **change})
    assert read_anchor(UNITS[0]) is None


def test_an_anchor_costs_little() -> None:
    added = len(insert_sei(UNITS[1], recipes.anchor().to_bytes(), ANCHOR_UUID)) - len(UNITS[1])
    assert added <= 56, "about 0.4 kbit/s with one keyframe a second"


def test_matroska_packets_become_annex_b() -> None:
    with av.open(io.BytesIO(matroska())) as container:
        stream = container.streams.video[0]
        extradata = bytes(stream.codec_context.extradata or b"")
        packets = [bytes(packet) for packet in container.demux(stream) if packet.size]
    assert extradata[0] == 1, "Matroska should hold avcC, or this test shows nothing"
    decoder = H264Decoder()
    units = [to_annexb(packet, extradata) for packet in packets]
    assert [has_idr(unit) for unit in units] == [True, False, False, False] * 2
    pictures = [picture for seq, unit in enumerate(units) for picture in decoder.decode(unit, seq)]
    assert [picture.frame_seq for picture in pictures] == list(range(8))
    assert [nal.type for nal in iter_nals(units[0])][:2] == [7, 8]


def test_annex_b_passes_through_and_gets_headers_where_they_lack() -> None:
    assert to_annexb(UNITS[1]) == UNITS[1]
    assert to_annexb(UNITS[0], b"") == UNITS[0]
    nals = list(iter_nals(UNITS[0]))
    headers = b"".join(b"\x00\x00\x00\x01" + nal.data for nal in nals if nal.type in (7, 8))
    bare = b"".join(b"\x00\x00\x00\x01" + nal.data for nal in nals if nal.type == 5)
    assert to_annexb(bare, headers) == headers + bare
    sps, pps = (next(nal.data for nal in nals if nal.type == kind) for kind in (7, 8))
    record = b"\x01" + sps[1:4] + b"\xff\xe1" + len(sps).to_bytes(2, "big") + sps
    record += b"\x01" + len(pps).to_bytes(2, "big") + pps
    assert to_annexb(bare, record) == headers + bare
    prefixed = b"".join(len(nal.data).to_bytes(4, "big") + nal.data for nal in nals if nal.type == 5)
    assert to_annexb(prefixed, record) == headers + bare


def test_a_length_of_256_to_511_is_no_start_code() -> None:
    record = b"\x01\x42\xc0\x0a\xff\xe0\x00"
    body = b"\x41" + bytes(range(1, 256)) * 2
    packet = (300).to_bytes(4, "big") + body[:300]
    assert to_annexb(packet, record) == b"\x00\x00\x00\x01" + body[:300]


@given(st.binary(max_size=60), st.binary(max_size=30))
def test_random_packets_raise_nothing_else(data: bytes, extradata: bytes) -> None:
    for record in (extradata, b"\x01" + extradata, None):
        try:
            to_annexb(data, record)
        except SeiError:
            continue


@given(st.binary(max_size=200) | zeros_and_ones)
def test_nal_units_tile_their_stream(data: bytes) -> None:
    at = 0
    for nal in iter_nals(data):
        assert nal.start >= at
        assert data[nal.start : nal.end].endswith(nal.data)
        at = nal.end


def test_a_nal_unit_of_many_empty_messages_takes_no_more_than_one_of_few() -> None:
    """It took the square of its length: at this size minutes, where it is now a second at most."""
    crowded = b"\x00\x00\x00\x01\x06" + b"\x01\x00" * 500_000 + b"\x80"
    assert read_sei(crowded, ANCHOR_UUID) == []
    assert strip_sei(crowded, ANCHOR_UUID) == crowded
