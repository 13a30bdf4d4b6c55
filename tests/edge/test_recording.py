"""Recordings: one file that plays everywhere, with every packet in it, and nothing left behind where it failed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import BundleError, ConfigError, EncoderError, SourceError
from scene_edge.codec.h264 import H264Decoder
from scene_edge.codec.latents import FrameCode
from scene_edge.codec.packet import SemanticPacket
from scene_edge.codec.quality import PacketDecoder
from scene_edge.codec.sei import ANCHOR_UUID, SEMANTIC_UUID, Anchor, read_sei, to_annexb
from scene_edge.edge.recording import encode_recording
from tests.data import dev_clip
from tests.edge.conftest import Configure
from tests.edge.test_sources import write_video


def access_units(path: Path) -> list[tuple[int, bytes]]:
    """(time in ms, Annex B) of every packet."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        extradata = stream.codec_context.extradata
        return [
            (round(packet.pts * packet.time_base * 1000), to_annexb(bytes(packet), extradata))
            for packet in container.demux(stream)
            if packet.size and packet.pts is not None and packet.time_base is not None
        ]


def packets_of(units: list[tuple[int, bytes]]) -> list[SemanticPacket]:
    return [SemanticPacket.from_bytes(data) for _, unit in units for data in read_sei(unit, SEMANTIC_UUID)]


def test_a_recording_holds_video_packets_and_anchors(tmp_path: Path, configure: Configure, zoo: Path) -> None:
    seen: list[int] = []
    out = tmp_path / "out.mkv"
    report = encode_recording(write_video(tmp_path / "a.mp4", 13), out, configure(), seen.append)
    units = access_units(out)
    assert len(units) == report.frames == 13
    assert seen == list(range(1, 14))
    packets = packets_of(units)
    assert [(packet.first_seq, packet.count) for packet in packets] == [(0, 5), (5, 5), (10, 3)]
    assert report.packets == 3
    # Each packet rides in the first access unit of the GOP that it covers.
    for number, (_, unit) in enumerate(units):
        assert [SemanticPacket.from_bytes(data).first_seq for data in read_sei(unit, SEMANTIC_UUID)] == (
            [number] if number % 5 == 0 else []
        )
        anchors = [Anchor.from_bytes(data) for data in read_sei(unit, ANCHOR_UUID)]
        assert [anchor.frame_seq for anchor in anchors] == ([number] if number % 5 == 0 else [])
        assert all(f"{anchor.session_id:016x}" == report.session for anchor in anchors)
    counts = report.bytes
    assert counts["total"] == out.stat().st_size
    assert counts["total"] == counts["video"] + counts["semantic"] + counts["sei"] + counts["container"]
    assert counts["semantic"] == sum(len(packet.to_bytes()) for packet in packets)
    assert min(counts.values()) > 0
    assert list(tmp_path.glob(".*")) == []


def test_packets_in_a_recording_decode_to_the_encoder_s_latents(
    tmp_path: Path, configure: Configure, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scene_edge.edge.semantics import SemanticEncoder

    coded: list[np.ndarray] = []
    original = SemanticEncoder.encode

    def spy(self: SemanticEncoder, *args: object) -> FrameCode:
        code = original(self, *args)  # type: ignore[arg-type]
        assert self.last_latents is not None
        coded.append(self.last_latents)
        return code

    monkeypatch.setattr(SemanticEncoder, "encode", spy)
    out = tmp_path / "out.mkv"
    encode_recording("testsrc:", out, configure("semantics.max_latency_ms=70"), limit=12)
    bundle = Bundle.open("smc-tiny", zoo=zoo)
    decoder = PacketDecoder.of(bundle, 96, 64)
    found = [z for packet in packets_of(access_units(out)) for z in decoder.decode(packet)]
    assert len(found) == 12
    assert all(np.array_equal(one, two) for one, two in zip(found, coded, strict=True))


def test_the_pictures_are_those_that_the_encoder_made(tmp_path: Path, plain: Configure) -> None:
    out = tmp_path / "out.mkv"
    encode_recording(write_video(tmp_path / "a.mp4", 8), out, plain())
    decoder = H264Decoder()
    units = enumerate(unit for _, unit in access_units(out))
    direct = [picture.planes for index, unit in units for picture in decoder.decode(unit, index)]
    with av.open(str(out)) as container:
        played = [frame.to_ndarray()[:64] for frame in container.decode(video=0)]
    assert len(direct) == len(played) == 8
    assert all(np.array_equal(one.y, two) for one, two in zip(direct, played, strict=True))


def test_variable_frame_rate_keeps_its_times(tmp_path: Path, plain: Configure) -> None:
    times_ms = [0, 10, 100, 101, 500, 540, 1000, 2000]
    out = tmp_path / "out.mkv"
    report = encode_recording(write_video(tmp_path / "a.mkv", 8, times_ms=times_ms), out, plain())
    assert [time for time, _ in access_units(out)] == times_ms
    assert report.frames == 8


def test_odd_and_wide_pictures_are_announced(tmp_path: Path, configure: Configure) -> None:
    odd = encode_recording(write_video(tmp_path / "o.mkv", 6, (97, 65), codec="ffv1"), tmp_path / "o2.mkv", configure())
    assert (odd.width, odd.height) == (96, 64)
    assert odd.notes == ("odd size cut: 97x65 to 96x64",)
    wide = encode_recording(
        write_video(tmp_path / "w.mp4", 6, (160, 96)), tmp_path / "w2.mkv", configure("video.width=80")
    )
    assert (wide.width, wide.height) == (80, 48)
    with av.open(str(tmp_path / "w2.mkv")) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (80, 48)


def test_one_frame_is_a_recording(tmp_path: Path, configure: Configure) -> None:
    report = encode_recording(write_video(tmp_path / "a.mp4", 1), tmp_path / "out.mkv", configure())
    assert (report.frames, report.packets) == (1, 1)


def test_a_truncated_file_is_coded_as_far_as_it_goes(tmp_path: Path, plain: Configure) -> None:
    whole = write_video(tmp_path / "a.mkv", 40).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    report = encode_recording(tmp_path / "cut.mkv", tmp_path / "out.mkv", plain())
    assert 5 <= report.frames < 40
    assert len(access_units(tmp_path / "out.mkv")) == report.frames


def test_failures_leave_no_file(tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_video(tmp_path / "a.mp4", 6)
    target = tmp_path / "out.mkv"
    with pytest.raises(SourceError, match="no such video file"):
        encode_recording(tmp_path / "none.mp4", target, configure())
    with pytest.raises(BundleError, match="no such bundle"):
        encode_recording(clip, target, configure("semantics.bundle=absent"))
    with pytest.raises(ConfigError, match=r"ends in \.mkv"):
        encode_recording(clip, tmp_path / "out.mp4", configure())
    with pytest.raises(ConfigError, match="no such folder"):
        encode_recording(clip, tmp_path / "none" / "out.mkv", configure())
    (tmp_path / "folder.mkv").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        encode_recording(clip, tmp_path / "folder.mkv", configure())
    with pytest.raises(SourceError, match="live"):
        _live(target, configure)
    same = write_video(tmp_path / "same.mkv", 6)
    with pytest.raises(ConfigError, match="same file"):
        encode_recording(same, same, configure())

    from scene_edge.edge.encoders import LibavEncoder

    def fails(self: LibavEncoder, *_: object) -> None:
        raise EncoderError("no more")

    monkeypatch.setattr(LibavEncoder, "encode", fails)
    with pytest.raises(EncoderError, match="no more"):
        encode_recording(clip, target, configure())
    assert not target.exists()
    assert not list(tmp_path.glob(".*"))


def _live(target: Path, configure: Configure) -> None:
    """A live source that opens: a file in a camera's place."""
    import scene_edge.edge.recording as recording
    from scene_edge.edge.sources import LiveSource

    clip = write_video(target.parent / "live.mp4", 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "open_source", lambda *_args, **_kwargs: LiveSource(str(clip), label="camera"))
        encode_recording("rtsp://camera/live", target, configure())


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="no ffprobe on this machine")
def test_ffprobe_counts_the_frames(tmp_path: Path, configure: Configure) -> None:
    out = tmp_path / "out.mkv"
    encode_recording(write_video(tmp_path / "a.mp4", 9), out, configure())
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_entries", "stream=nb_read_frames", "-of", "csv=p=0"]
    done = subprocess.run([*command, str(out)], capture_output=True, text=True, check=True)
    assert done.stdout.strip().rstrip(",") == "9"
    assert done.stderr == ""


def test_a_real_clip(tmp_path: Path, configure: Configure) -> None:
    clip = dev_clip("carphone_pristine.mp4")
    report = encode_recording(clip, tmp_path / "out.mkv", configure(), limit=20)
    assert report.frames == 20
    assert sum(packet.count for packet in packets_of(access_units(tmp_path / "out.mkv"))) == 20
