"""H.264 encoders: one contract, numbers given on the way out, and a choice that is made by trial and announced."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scene_edge.codec.annexb import NAL_IDR, NAL_PPS, NAL_SPS, iter_nals
from scene_edge.codec.errors import EncoderError
from scene_edge.codec.h264 import H264Decoder
from scene_edge.codec.identity import Frame
from scene_edge.codec.planes import Planes
from scene_edge.codec.sei import read_sei
from scene_edge.edge.config import VideoConfig
from scene_edge.edge.encoders import (
    CodedPicture,
    EncoderSettings,
    GStreamerEncoder,
    LibavEncoder,
    Sequencer,
    create_encoder,
)
from scene_edge.edge.encoders.base import X264_INFO_UUID
from scene_edge.edge.encoders.choose import VerdictCache, choose_encoder
from scene_edge.edge.encoders.sequence import MAX_INSIDE
from scene_edge.edge.encoders.trial import Verdict, judge, run_trial, try_encoder
from scene_edge.edge.sources import TestSource

SETTINGS = EncoderSettings(width=96, height=64, fps=30, gop=5, crf=28, bitrate_kbps=None, threads=1)


def pictures(count: int) -> list[Planes]:
    source = TestSource(96, 64, pace="asap", frames=count)
    source.open()
    found = []
    while (frame := source.read()) is not None:
        found.append(frame.planes)
    return found


def coded(settings: EncoderSettings = SETTINGS, count: int = 13) -> list[CodedPicture]:
    encoder = LibavEncoder("libx264", settings)
    out = [picture for pts, planes in enumerate(pictures(count)) for picture in encoder.encode(planes, pts)]
    out += encoder.flush()
    encoder.close()
    return out


def test_every_picture_comes_out_at_once_with_a_regular_gop() -> None:
    encoder = LibavEncoder("libx264", SETTINGS)
    for pts, planes in enumerate(pictures(13)):
        (picture,) = encoder.encode(planes, pts)
        assert (picture.pts, picture.keyframe) == (pts, pts % 5 == 0)
        types = {nal.type for nal in iter_nals(picture.data)}
        assert (types >= {NAL_SPS, NAL_PPS, NAL_IDR}) == picture.keyframe
        assert not read_sei(picture.data, X264_INFO_UUID)
    assert encoder.flush() == []


def test_a_scene_cut_does_not_break_the_gop() -> None:
    black, white = (Planes(plane.y * 0 + level, plane.u, plane.v) for plane, level in zip(pictures(2), (16, 235)))  # noqa: B905
    encoder = LibavEncoder("libx264", SETTINGS)
    keys = []
    for pts in range(10):
        keys += [picture.keyframe for picture in encoder.encode(black if pts < 3 else white, pts)]
    assert keys == [pts % 5 == 0 for pts in range(10)]


def test_the_stream_decodes_and_is_the_same_twice() -> None:
    first = coded()
    assert [picture.data for picture in first] == [picture.data for picture in coded()]
    decoder = H264Decoder()
    numbers = [seq for picture in first for seq, _, _ in decoder.decode(picture.data, picture.pts)]
    assert numbers == list(range(13))


def test_crf_and_bitrate_both_steer_the_size() -> None:
    def size(settings: EncoderSettings) -> int:
        return sum(len(picture.data) for picture in coded(settings, 30))

    assert size(replace(SETTINGS, crf=40)) < size(replace(SETTINGS, crf=20))
    slow, fast = size(replace(SETTINGS, bitrate_kbps=30)), size(replace(SETTINGS, bitrate_kbps=300))
    assert slow < fast


def test_wrong_sizes_and_unknown_encoders_are_refused() -> None:
    encoder = LibavEncoder("libx264", SETTINGS)
    with pytest.raises(EncoderError, match="another size"):
        encoder.encode(sized_picture(64, 64), 0)
    encoder.close()
    with pytest.raises(EncoderError, match="after it was closed"):
        encoder.flush()
    with pytest.raises(EncoderError, match="libx264"):
        create_encoder("h264_magic", SETTINGS)
    with pytest.raises(EncoderError):
        LibavEncoder("libx264", replace(SETTINGS, width=33))


def sized_picture(width: int, height: int) -> Planes:
    source = TestSource(width, height, pace="asap")
    source.open()
    frame = source.read()
    assert frame is not None
    return frame.planes


def test_gstreamer_is_reported_as_absent_where_it_is() -> None:
    try:
        import gi  # noqa: F401
    except ImportError:
        with pytest.raises(EncoderError, match="binding is not installed"):
            create_encoder(GStreamerEncoder.name, SETTINGS)


class FakeEncoder:
    """Gives each picture back `delay` calls later; loses those in `swallow`, and `invent`s one nobody gave it."""

    name = "fake"

    def __init__(self, delay: int = 0, swallow: frozenset[int] = frozenset(), invent: bool = False) -> None:
        self._delay, self._swallow, self._invent = delay, swallow, invent
        self._inside: deque[CodedPicture] = deque()

    def encode(self, planes: Planes, pts: int) -> list[CodedPicture]:
        if pts not in self._swallow:
            self._inside.append(CodedPicture(b"\0\0\1\x65", pts, pts == 0))
        out = [self._inside.popleft()] if len(self._inside) > self._delay else []
        if self._invent and pts == 3:
            out.append(CodedPicture(b"\0\0\1\x65", 999, False))
        return out

    def flush(self) -> list[CodedPicture]:
        out = list(self._inside)
        self._inside.clear()
        return out

    def close(self) -> None:
        self._inside.clear()


def frames(count: int) -> list[Frame]:
    return [Frame(planes, index * 40) for index, planes in enumerate(pictures(count))]


@pytest.mark.parametrize("delay", [0, 1, 7])
def test_numbers_follow_what_leaves_the_encoder(delay: int) -> None:
    sequencer: Sequencer[Frame] = Sequencer(FakeEncoder(delay, frozenset({2, 5}), invent=True))
    given = frames(10)
    done = [item for frame in given for item in sequencer.encode(frame.planes, frame)] + sequencer.flush()
    assert [item.unit.frame_seq for item in done] == list(range(8))
    assert [item.unit.capture_ns for item in done] == [index * 40 for index in range(10) if index not in (2, 5)]
    assert [item.source.capture_ns for item in done] == [item.unit.capture_ns for item in done]
    assert (sequencer.lost, sequencer.unmatched) == (2, 1)


def test_an_encoder_that_gives_nothing_back_does_not_fill_the_memory() -> None:
    sequencer: Sequencer[Frame] = Sequencer(FakeEncoder(swallow=frozenset(range(1000))))
    (frame,) = frames(1)
    for _ in range(MAX_INSIDE + 10):
        assert sequencer.encode(frame.planes, frame) == []
    assert sequencer.lost == 10
    assert sequencer.abandon() == MAX_INSIDE


@pytest.mark.parametrize(("tune", "alike"), [("human", False), ("machine", True)])
def test_tuned_for_machines_busy_blocks_are_quantised_no_more_coarsely_than_plain_ones(tune: str, alike: bool) -> None:
    busy = np.full((64, 96), 100, np.uint8)
    busy[:, 48:] = np.random.default_rng(5).integers(0, 255, (64, 48), np.uint8)
    chroma = np.full((32, 48), 128, np.uint8)
    encoder = LibavEncoder("libx264", replace(SETTINGS, tune=tune))
    (coded,) = [*encoder.encode(Planes(busy, chroma, chroma), 0), *encoder.flush()]
    encoder.close()
    decoder = H264Decoder()
    (picture,) = [*decoder.decode(coded.data, 0), *decoder.flush()]
    assert picture.qp is not None
    assert (picture.qp == round(picture.qp)) is alike


def test_a_trial_in_a_child_process_passes_libx264_and_fails_the_rest() -> None:
    assert run_trial("libx264", SETTINGS) == Verdict("libx264", "")
    missing = run_trial("nvv4l2h264enc", SETTINGS)
    assert not missing.passed
    assert run_trial("libx264", SETTINGS, timeout_s=0.001).reason.startswith("hangs")


def test_a_crash_and_chatter_in_the_child_are_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scene_edge.edge.encoders.trial.sys.executable", "/bin/false")
    assert run_trial("libx264", SETTINGS).reason == "fails: no output"
    crash = tmp_path / "crash"
    crash.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr("scene_edge.edge.encoders.trial.sys.executable", str(crash))
    assert run_trial("libx264", SETTINGS).reason == "crashes: signal 11"


def good() -> list[CodedPicture]:
    return coded(replace(SETTINGS, gop=10), 30)


def test_the_judge_knows_what_is_wrong() -> None:
    assert judge(good(), 30) == ""
    assert "29 access units" in judge(good()[:29], 30)
    swapped = good()
    swapped[3], swapped[4] = swapped[4], swapped[3]
    assert "order" in judge(swapped, 30)
    late = [replace(picture, keyframe=False) for picture in good()]
    assert "no keyframe" in judge(late, 30)
    single = [replace(picture, keyframe=index == 0) for index, picture in enumerate(good())]
    assert "interval" in judge(single, 30)
    bare = good()
    slices = [b"\0\0\0\1" + nal.data for nal in iter_nals(bare[10].data) if nal.type == NAL_IDR]
    bare[10] = replace(bare[10], data=b"".join(slices))
    assert "without SPS" in judge(bare, 30)


def test_try_encoder_sees_a_lossy_encoder() -> None:
    assert "29 access units" in try_encoder(FakeEncoder(swallow=frozenset({4})), SETTINGS)


def test_the_first_that_passes_is_taken_and_the_rest_announced(tmp_path: Path) -> None:
    tried: list[str] = []

    def trial(name: str, settings: EncoderSettings) -> Verdict:
        tried.append(name)
        return Verdict(name, "" if name == "libx264" else "does not encode")

    config = VideoConfig(candidates=("h264_qsv", "libx264"))
    cache = VerdictCache(tmp_path / "a" / "verdicts.json", {"board": "x"})
    choice = choose_encoder(config, SETTINGS, cache=cache, trial=trial)
    assert choice.encoder == "libx264"
    assert choice.degraded == ("encoder h264_qsv: does not encode",)
    assert tried == ["h264_qsv", "libx264"]
    assert choose_encoder(config, SETTINGS, cache=cache, trial=trial) == choice
    assert tried == ["h264_qsv", "libx264"]
    # Another driver, another picture size: the old verdict says nothing.
    choose_encoder(config, SETTINGS, cache=VerdictCache(tmp_path / "a" / "verdicts.json", {"board": "y"}), trial=trial)
    choose_encoder(config, replace(SETTINGS, width=128), cache=cache, trial=trial)
    assert len(tried) == 6


@pytest.mark.parametrize(("name", "told"), [("libx264", ()), ("h264_qsv", ("video.tune is libx264's alone",))])
def test_a_tune_that_the_encoder_does_not_know_is_announced(tmp_path: Path, name: str, told: tuple[str, ...]) -> None:
    config, cache = VideoConfig(encoder=name), VerdictCache(tmp_path / "verdicts.json", {})
    tuned = replace(SETTINGS, tune="machine")
    degraded = choose_encoder(config, tuned, cache=cache, trial=lambda name, _: Verdict(name, "")).degraded
    assert len(degraded) == len(told)
    assert all(part in reason for part, reason in zip(told, degraded, strict=True))
    assert choose_encoder(config, SETTINGS, cache=cache, trial=lambda name, _: Verdict(name, "")).degraded == ()


def test_a_named_encoder_has_no_substitute(tmp_path: Path) -> None:
    config = VideoConfig(encoder="h264_qsv", candidates=("libx264",))
    cache = VerdictCache(tmp_path / "verdicts.json", {})
    with pytest.raises(EncoderError, match="h264_qsv does not encode"):
        choose_encoder(config, SETTINGS, cache=cache, trial=lambda name, _: Verdict(name, "does not encode"))


@pytest.mark.parametrize("content", ["", "[]", "{", '{"libx264-0": 3}'])
def test_a_broken_cache_costs_a_trial_and_nothing_else(tmp_path: Path, content: str) -> None:
    path = tmp_path / "verdicts.json"
    path.write_text(content)
    cache = VerdictCache(path, {})
    assert cache.get("libx264", SETTINGS) is None
    assert cache.put(SETTINGS, Verdict("libx264", ""))
    assert cache.get("libx264", SETTINGS) == Verdict("libx264", "")
    (tmp_path / "file").write_text("")
    assert not VerdictCache(tmp_path / "file" / "verdicts.json", {}).put(SETTINGS, Verdict("libx264", ""))
