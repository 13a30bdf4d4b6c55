"""H.264 decoding: exact on good streams, and on bad ones a DecoderError or a picture, never anything else."""

from __future__ import annotations

import gc
import random

import av
import numpy as np
import pytest

from scene_edge.codec.annexb import MAX_ACCESS_UNIT_BYTES, iter_nals, to_annexb
from scene_edge.codec.errors import DecoderError
from scene_edge.codec.h264 import MAX_NAL_UNITS, Decoded, H264Decoder, has_idr
from scene_edge.codec.media import planes_of
from scene_edge.codec.sei import ANCHOR_UUID, insert_sei, strip_sei
from tests.codec.streams import access_units, picture
from tests.data import dev_clip

UNITS = access_units(count=12, gop=6)


def survive(decoder: H264Decoder, data: bytes, seq: int) -> int:
    """Pictures that came out; -1 for a DecoderError."""
    try:
        return len(decoder.decode(data, seq))
    except DecoderError:
        return -1


def test_one_picture_for_each_access_unit_at_once() -> None:
    decoder = H264Decoder()
    for seq, unit in enumerate(UNITS):
        ((found, planes, _),) = decoder.decode(unit, seq + 1000)
        assert found == seq + 1000
        assert (planes.width, planes.height) == (96, 64)
        assert np.abs(planes.y.astype(int) - picture(seq).y).mean() < 8
    assert decoder.flush() == []


def test_lossless_streams_come_back_exactly() -> None:
    decoder = H264Decoder()
    for seq, unit in enumerate(access_units(count=4, options={"qp": "0"})):
        ((_, planes, _),) = decoder.decode(unit, seq)
        expected = picture(seq)
        assert all((getattr(planes, name) == getattr(expected, name)).all() for name in "yuv")


def test_no_picture_waits_for_the_collector_of_cycles() -> None:
    """FFmpeg's frames are large and few: Python's collector, which counts objects, would come after a hundred."""
    decoder, held = H264Decoder(), Decoded(0, picture(0), None)
    gc.collect()
    gc.disable()
    try:
        for seq, unit in enumerate(UNITS):
            (held,) = decoder.decode(unit, seq)
        frames = sum(type(item) is av.VideoFrame for item in gc.get_objects())
    finally:
        gc.enable()
    assert held.qp is not None
    assert frames <= 1


@pytest.mark.parametrize("tools", ["", "cabac=0:", "slices=3:", "tff=1:", "bframes=2:", "ref=4:weightp=2:"])
def test_the_mean_quantiser_is_the_encoders(tools: str) -> None:
    for qp in (7, 30, 51):
        settings = f"{tools}qp={qp}:ipratio=1:pbratio=1:aq-mode=0"
        decoder = H264Decoder()
        units = access_units(6, options={"x264-params": settings, "preset": "fast", "tune": "psnr"})
        decoded = [picture for seq, unit in enumerate(units) for picture in decoder.decode(unit, seq)]
        assert [picture.qp for picture in decoded + decoder.flush()] == [qp] * 6


def test_adaptive_quantisers_are_averaged_over_macroblocks() -> None:
    units = access_units(1, 320, 192, options={"x264-params": "crf=30:aq-mode=1:aq-strength=2.0"})
    ((_, _, qp),) = H264Decoder().decode(units[0], 0)
    assert qp is not None
    assert qp != round(qp), "blocks differ, so that their mean is hardly whole"
    assert 15 < qp < 45


def test_pictures_stay_as_they_are_while_decoding_goes_on() -> None:
    decoder = H264Decoder()
    ((_, first, _),) = decoder.decode(UNITS[0], 0)
    before = first.y.copy()
    for seq, unit in enumerate(UNITS[1:], start=1):
        decoder.decode(unit, seq)
    assert np.array_equal(first.y, before)


def test_has_idr() -> None:
    assert [has_idr(unit) for unit in UNITS] == [index % 6 == 0 for index in range(12)]
    assert not has_idr(b"")


def test_change_of_resolution_at_a_keyframe() -> None:
    decoder, sizes = H264Decoder(), []
    streams = (access_units(3), access_units(3, width=160, height=96), access_units(3))
    for seq, unit in enumerate(unit for stream in streams for unit in stream):
        sizes += [(planes.width, planes.height) for _, planes, _ in decoder.decode(unit, seq)]
    assert sizes == [(96, 64)] * 3 + [(160, 96)] * 3 + [(96, 64)] * 3


def test_odd_sizes_are_cut_to_even_ones() -> None:
    decoder = H264Decoder()
    units = access_units(2, width=98, height=66)
    ((_, planes, _),) = decoder.decode(units[0], 0)
    assert (planes.width, planes.height) == (98, 66)


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x00\x00\x00\x01", b"garbage" * 30, bytes(1000), b"\x00\x00\x01\x65"])
def test_what_is_no_access_unit(data: bytes) -> None:
    decoder = H264Decoder()
    assert survive(decoder, data, 0) <= 0
    assert survive(decoder, UNITS[0], 1) == 1, "a keyframe afterwards must decode"


def test_too_large_is_refused() -> None:
    with pytest.raises(DecoderError):
        H264Decoder().decode(bytes(MAX_ACCESS_UNIT_BYTES + 1), 0)


def test_a_picture_in_too_many_pieces_is_refused_before_ffmpeg_sees_it() -> None:
    (unit,) = access_units(1, 96, 64)
    pieces = len(list(iter_nals(unit)))
    filler = b"\x00\x00\x01\x0c\xff\x80"
    assert len(H264Decoder().decode(unit + filler * (MAX_NAL_UNITS - pieces), 0)) == 1
    with pytest.raises(DecoderError, match="too many pieces"):
        H264Decoder().decode(unit + filler * (MAX_NAL_UNITS - pieces + 1), 0)


@pytest.mark.parametrize("size", [(96, 66), (1024, 1024)])
def test_larger_pictures_than_allowed_are_refused_whatever_was_said_of_them(size: tuple[int, int]) -> None:
    """The large one by FFmpeg, before it takes memory; of the other it would give a picture."""
    decoder = H264Decoder(max_pixels=96 * 64)
    assert len(decoder.decode(UNITS[0], 0)) == 1
    (large,) = access_units(1, *size)
    with pytest.raises(DecoderError):
        decoder.decode(large, 1)
    assert len(decoder.decode(UNITS[0], 2)) == 1


def test_beginning_without_a_keyframe_or_without_headers() -> None:
    decoder = H264Decoder()
    assert survive(decoder, UNITS[1], 0) <= 0
    bare = b"".join(b"\x00\x00\x00\x01" + nal.data for nal in iter_nals(UNITS[0]) if nal.type == 5)
    assert survive(H264Decoder(), bare, 0) <= 0
    assert survive(decoder, UNITS[0], 2) == 1


def test_every_truncation_of_a_keyframe_is_survived() -> None:
    for end in range(0, len(UNITS[0]), 7):
        decoder = H264Decoder()
        survive(decoder, UNITS[0][:end], 0)
        assert survive(decoder, UNITS[6], 6) >= 0


def test_random_damage_is_survived() -> None:
    rng = random.Random(1)
    decoder, pictures = H264Decoder(), 0
    for round_ in range(40):
        for seq, unit in enumerate(UNITS):
            data = bytearray(unit)
            for _ in range(rng.choice((0, 1, 8, 60))):
                data[rng.randrange(len(data))] = rng.randrange(256)
            if rng.random() < 0.1:
                del data[rng.randrange(len(data)) :]
            if rng.random() < 0.1:
                continue
            pictures += max(0, survive(decoder, bytes(data), round_ * 12 + seq))
    assert pictures > 100
    decoder.reset()
    assert survive(decoder, UNITS[0], 9999) == 1
    decoder.flush()


def test_sequences_may_go_backwards_and_wrap() -> None:
    decoder = H264Decoder()
    for seq, unit in zip((2**32 - 1, 0, 7, 3, 3, 2), UNITS, strict=False):
        assert [found for found, _, _ in decoder.decode(unit, seq)] == [seq]


@pytest.mark.parametrize("name", ["fi031.mp4", "carphone_pristine.mp4"])
def test_real_clips_decode_as_their_player_shows_them(name: str) -> None:
    """MP4 (AVCC) by way of Annex B, with our SEI in it, against the container's own decoder, picture by picture."""
    with av.open(str(dev_clip(name))) as container:
        stream = container.streams.video[0]
        extradata = bytes(stream.codec_context.extradata or b"")
        packets = [packet for _, packet in zip(range(24), container.demux(stream), strict=False)]
        decoder, found = H264Decoder(), {}
        for packet in packets:
            unit = to_annexb(bytes(packet), extradata)
            marked = insert_sei(unit, bytes(40), ANCHOR_UUID)
            assert strip_sei(marked, ANCHOR_UUID) == unit
            found |= {picture.frame_seq: picture.planes for picture in decoder.decode(marked, packet.pts)}
        found |= {picture.frame_seq: picture.planes for picture in decoder.flush()}
        container.seek(0)
        expected = [planes_of(frame) for _, frame in zip(range(12), container.decode(stream), strict=False)]
    assert len(found) == 24
    for ours, theirs in zip((found[pts] for pts in sorted(found)), expected, strict=False):
        assert all((getattr(ours, name) == getattr(theirs, name)).all() for name in "yuv")
