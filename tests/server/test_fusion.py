"""SMC on the server: packets to latents, latents to pictures, and everything that does not belong."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import BundleError, EntropyError, FormatError, PacketError
from scene_edge.codec.planes import U8, Planes
from scene_edge.server.fusion import BundleShelf, FusionDecoder, LatentFeed, changed_likewise
from tests.server.camera import CHANNELS, DARKER, GOP, HEIGHT, WIDTH, latents, packets, picture


@pytest.fixture
def decoder(bundle: Bundle) -> FusionDecoder:
    return FusionDecoder(bundle, WIDTH, HEIGHT, prefer=("onnx",), precision="fp32", threads=1)


def test_packets_decode_to_exactly_the_encoders_integers(bundle: Bundle, decoder: FusionDecoder) -> None:
    values = latents(2 * GOP)
    decoded = [z for packet in packets(bundle, 1, values) for z in decoder.decode_packet(packet)]
    assert all(np.array_equal(a, b) for a, b in zip(decoded, values, strict=True))


def test_delta_packets_go_on_within_the_gop(bundle: Bundle, decoder: FusionDecoder) -> None:
    values = latents(2 * GOP)
    parts = packets(bundle, 1, values, chunk=2, gop=4)
    decoded = [z for packet in parts for z in decoder.decode_packet(packet)]
    assert all(np.array_equal(a, b) for a, b in zip(decoded, values, strict=True))


def test_a_lost_packet_spoils_its_gop_and_no_more(bundle: Bundle, decoder: FusionDecoder) -> None:
    first, delta, key, *_ = packets(bundle, 1, latents(12), chunk=3, gop=6)
    third = packets(bundle, 1, latents(12), chunk=3, gop=6)[3]
    decoder.decode_packet(first)
    with pytest.raises(PacketError, match="does not follow"):
        decoder.decode_packet(third)
    with pytest.raises(PacketError, match="does not follow"):
        decoder.decode_packet(delta)
    assert len(decoder.decode_packet(key)) == 3


def test_the_latent_reaches_the_picture(decoder: FusionDecoder) -> None:
    lossy = picture(0)
    ones = np.ones((CHANNELS, 4, 6), np.int16)
    fused = decoder.fuse(lossy, ones, True, 1.0)
    assert abs(float(lossy.y.mean()) - float(fused.y.mean()) - DARKER) < 2
    half = decoder.fuse(lossy, ones, True, 0.5)
    assert abs(float(lossy.y.mean()) - float(half.y.mean()) - DARKER / 2) < 2
    with pytest.raises(FormatError, match="step"):
        decoder.fuse(lossy, ones, True)


def test_without_a_packet_the_lossy_picture_passes(decoder: FusionDecoder) -> None:
    lossy = picture(3)
    fused = decoder.fuse(lossy, None, True)
    assert np.array_equal(fused.y, lossy.y)
    assert np.array_equal(fused.u, lossy.u)


def test_states_run_on_and_begin_anew_with_a_key(decoder: FusionDecoder) -> None:
    lossy = picture(0)
    for _ in range(3):
        decoder.fuse(lossy, None, False)
    assert float(decoder._state_fuse.max()) == 3.0
    decoder.fuse(lossy, None, True)
    assert float(decoder._state_fuse.max()) == 1.0


def test_a_picture_that_was_coded_finely_is_left_alone(bundle: Bundle) -> None:
    choosy = copy(bundle)
    choosy.parameters = {**bundle.parameters, "fused_from_qp": 33}
    decoder = FusionDecoder(choosy, WIDTH, HEIGHT, prefer=("onnx",), precision="fp32", threads=1)
    lossy, ones = picture(0), np.ones((CHANNELS, 4, 6), np.int16)
    assert decoder.fuse(lossy, ones, True, 1.0, 40.0) is not lossy
    assert decoder.fuse(lossy, ones, False, 1.0, 32.9) is lossy
    assert float(decoder._state_fuse.max()) == 0.0, "what comes next may not remember what lies before it"
    for qp in (33.0, None):
        assert float(decoder.fuse(lossy, ones, False, 1.0, qp).y.mean()) < float(lossy.y.mean())


def test_a_size_that_is_no_multiple_of_the_grid(bundle: Bundle) -> None:
    decoder = FusionDecoder(bundle, 90, 50, prefer=("onnx",), precision="fp32", threads=1)
    fused = decoder.fuse(picture(0, 90, 50), None, True)
    assert (fused.width, fused.height) == (90, 50)
    assert decoder.latent_shape == (CHANNELS, 4, 6)


def test_a_bundle_that_looks_at_less_changes_the_whole_picture_and_keeps_its_detail(bundle: Bundle) -> None:
    small = copy(bundle)
    small.parameters = {**bundle.parameters, "max_side": WIDTH}
    decoder = FusionDecoder(small, 2 * WIDTH, 2 * HEIGHT, prefer=("onnx",), precision="fp32", threads=1)
    assert decoder.latent_shape == (CHANNELS, 4, 6)
    packet = replace(packets(bundle, 1, latents(GOP))[0], width=2 * WIDTH, height=2 * HEIGHT)
    assert len(decoder.decode_packet(packet)) == packet.count
    lossy = picture(0, 2 * WIDTH, 2 * HEIGHT)
    lossy.y[::2, ::2] ^= 1  # detail that no smaller picture shows
    unchanged = decoder.fuse(lossy, None, True)
    assert all(np.array_equal(getattr(unchanged, plane), getattr(lossy, plane)) for plane in "yuv")
    darker = decoder.fuse(lossy, np.ones((CHANNELS, 4, 6), np.int16), True, 1.0)
    assert np.abs(lossy.y.astype(int) - darker.y - DARKER).max() <= 1
    with pytest.raises(FormatError, match="another size"):
        decoder.fuse(picture(0), None, True)


@given(arrays(np.uint8, (4, 6)), arrays(np.uint8, (4, 6)), st.integers(0, 255))
def test_a_change_is_put_onto_whole_pictures(small: U8, changed: U8, grey: int) -> None:
    def planes(luma: U8) -> Planes:
        return Planes(luma, luma[::2, ::2], luma[::2, ::2])

    whole = planes(np.full((16, 24), grey, np.uint8))
    result = changed_likewise(whole, planes(small), planes(changed))
    change = (changed.astype(int) - small).clip(-128, 127)
    assert result.y.shape == (16, 24)
    low, high = (int(np.clip(grey + side, 0, 255)) for side in (change.min(), change.max()))
    assert low - 1 <= int(result.y.min())
    assert int(result.y.max()) <= high + 1


def test_what_does_not_belong_is_refused(bundle: Bundle, decoder: FusionDecoder) -> None:
    packet = packets(bundle, 1, latents(GOP))[0]
    for wrong in (
        replace(packet, bundle_digest=b"12345678"),
        replace(packet, width=WIDTH * 2),
        replace(packet, quality=2),
        replace(packet, kind=3),
        replace(packet, codec_id=1),
    ):
        with pytest.raises(PacketError):
            decoder.decode_packet(wrong)
    with pytest.raises(FormatError, match="another size"):
        decoder.fuse(picture(0, 64, 64), None, True)


def test_a_delta_packet_goes_on_with_its_own_stream_and_quality(bundle: Bundle, decoder: FusionDecoder) -> None:
    values = latents(GOP)
    key, delta = packets(bundle, 1, values, chunk=3)
    for wrong in (
        replace(delta, session_id=2),
        replace(delta, first_seq=4),
        replace(delta, quality=1),
    ):
        decoder.decode_packet(key)
        with pytest.raises(PacketError, match="does not follow"):
            decoder.decode_packet(wrong)
        with pytest.raises(PacketError, match="a key packet"):
            decoder.decode_packet(delta)
    found = decoder.decode_packet(key) + decoder.decode_packet(delta)
    assert all(np.array_equal(one, two) for one, two in zip(found, values, strict=True))


def test_each_quality_has_its_step_and_its_tables(bundle: Bundle, decoder: FusionDecoder) -> None:
    values = latents(2 * GOP)
    feed = LatentFeed(decoder)
    (fine,), (coarse,) = packets(bundle, 1, values[:GOP]), packets(bundle, 1, values[GOP:], quality=1)
    coarse = replace(coarse, first_seq=GOP)
    for packet, step in ((fine, 1.0), (coarse, 2.0)):
        for seq in range(packet.first_seq, packet.last_seq + 1):
            latent, found = feed.latent_of(packet, seq)
            assert found == step
            assert np.array_equal(latent, values[seq])


def test_damage_inside_a_packet_costs_that_packet(bundle: Bundle, decoder: FusionDecoder) -> None:
    first, second = packets(bundle, 1, latents(2 * GOP))
    damaged = replace(first, body=first.body[:-2])
    feed = LatentFeed(decoder)
    with pytest.raises(EntropyError):
        feed.latent_of(damaged, 0)
    assert feed.latent_of(damaged, 1) == (None, None)
    latent, step = feed.latent_of(second, GOP)
    assert latent is not None
    assert step == 1.0


def test_the_shelf_finds_by_digest_and_says_what_it_has(bundle: Bundle) -> None:
    shelf = BundleShelf([str(bundle.path)], zoo=bundle.path / "none")
    assert shelf.find(bundle.short_digest).name == "smc-tiny"
    with pytest.raises(BundleError, match="smc-tiny"):
        shelf.find(b"12345678")


def test_a_broken_bundle_on_the_shelf_hides_no_other(bundle: Bundle, tmp_path: object) -> None:
    shelf = BundleShelf([f"{tmp_path}/missing", str(bundle.path)], zoo=bundle.path / "none")
    assert shelf.find(bundle.short_digest).name == "smc-tiny"
