"""Losses mixed from two decodes: counted by hand, and on the real decoder where the bundle is there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.metrics import Counts
from benchmarks.packet_loss import (
    Gop,
    Judge,
    Score,
    check_joins,
    gops_of,
    loss_curve,
    measure_clip,
    random_losses,
    total_with,
)
from benchmarks.systems import Coding, decoder_for, encode
from scene_edge.codec.bundle import Bundle, shipped_bundles
from scene_edge.codec.errors import RunError
from scene_edge.codec.planes import Planes
from scene_edge.server.analytics.detections import Detections
from scene_edge.server.fusion import FusionDecoder
from scene_edge.server.recording import decode_clip
from tests.benchmarks.test_systems import pictures

needs_smc = pytest.mark.skipif("smc-s" not in shipped_bundles(), reason="this needs the bundle smc-s in models/zoo")


def gop(received: int, lost: int) -> Gop:
    """Ten boxes to be found; so many are with the packet, and without."""
    return Gop(*(Score(Counts(tp, 0, 10 - tp), 100.0 * (10 - tp), 100) for tp in (received, lost, 0)))


def test_a_pattern_takes_each_gop_from_its_side() -> None:
    total = total_with([gop(9, 4), gop(8, 2)], [False, True])
    assert total.boxes == Counts(11, 0, 9)
    assert total.f1 == pytest.approx(100 * 22 / 31)
    # 900 over 200 samples
    assert total.psnr == pytest.approx(10 * np.log10(255**2 / 4.5))
    assert Score().psnr is None


def test_the_curve_begins_with_all_packets_and_ends_with_none() -> None:
    gops = [gop(9, 3)] * 8
    none, some, all_ = loss_curve(gops, [0, 20, 100], draws=400, seed=1)
    assert none["f1_range95"] == pytest.approx([none["f1"]] * 2)
    assert none["f1"] == pytest.approx(100 * 18 / 19)
    assert all_["f1"] == pytest.approx(100 * 6 / 13)
    assert all_["f1"] < some["f1_range95"][0] < some["f1"] < some["f1_range95"][1] < none["f1"] + 1e-9
    assert loss_curve(gops, [20], draws=400, seed=1) == [some]


def test_losses_are_as_many_as_asked() -> None:
    lost = random_losses(50, 5, 400, seed=0)
    assert lost.shape == (400, 50)
    assert lost.mean() == pytest.approx(0.05, abs=0.005)


class Blind:
    """A detector that finds nothing."""

    name = "blind"

    def detect(self, planes: Planes) -> Detections:
        return Detections.none(("person", "vehicle"))

    def close(self) -> None:
        pass


@needs_smc
def test_joins_and_losses_of_a_real_clip_are_exact() -> None:
    originals = pictures(10)
    fresh = FusionDecoder(Bundle.open("smc-s"), 128, 96, threads=1)
    gops, joins = measure_clip(originals, 25.0, Coding(crf=40, gop=4), Judge(Blind(), originals, 5), fresh)
    assert (len(gops), joins) == (3, 2)
    assert all(one.received.boxes == Counts() for one in gops)
    assert gops[0].plain.error > 0
    assert gops[2].received.samples == 2 * 128 * 96


@needs_smc
def test_a_decoder_that_remembers_too_much_is_found_out() -> None:
    coding = Coding(crf=40, gop=4)
    clip = encode("smc", pictures(8), 25.0, coding)
    whole = decode_clip(clip, decoder=decoder_for(clip, coding))
    assert [len(frames) for frames in gops_of(clip)] == [4, 4]
    with pytest.raises(RunError, match="joined at frame 4: picture 0"):
        check_joins(clip, whole[:4] + whole[:4], decoder_for(clip, coding))
    with pytest.raises(RunError, match="not one GOP"):
        gops_of(replace(clip, packets=clip.packets[:1]))
