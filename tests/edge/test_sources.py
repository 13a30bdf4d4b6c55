"""Sources: good files, bad files, odd ones; and that what is damaged is survived and counted."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from scene_edge.codec.errors import ConfigError, SourceError
from scene_edge.codec.identity import Frame
from scene_edge.edge.clock import FakeClock
from scene_edge.edge.config import SourceConfig
from scene_edge.edge.sources import FileSource, LiveSource, Picamera2Source, Source, TestSource, open_source
from scene_edge.edge.sources.picamera2 import planes_of_i420


def write_video(
    path: Path,
    frames: int = 12,
    size: tuple[int, int] = (96, 64),
    times_ms: list[int] | None = None,
    codec: str = "libx264",
) -> Path:
    """A small clip; frame n is of the grey 40 + 5 n."""
    width, height = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p" if width % 2 == height % 2 == 0 else "yuv444p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.pix_fmt = {"mjpeg": "yuvj420p", "png": "rgb24"}.get(codec, stream.pix_fmt)
        if codec == "libx264":
            stream.options = {"preset": "ultrafast", "tune": "zerolatency", "g": "4"}
        for index in range(frames):
            picture = av.VideoFrame(width, height, stream.pix_fmt)
            for plane in picture.planes:
                np.frombuffer(memoryview(plane), np.uint8)[:] = 128
            np.frombuffer(memoryview(picture.planes[0]), np.uint8)[:] = 40 + 5 * index
            picture.pts = times_ms[index] if times_ms else index * 40
            picture.time_base = Fraction(1, 1000)
            for packet in stream.encode(picture):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


def read_all(source: Source) -> list[Frame]:
    frames = []
    while (frame := source.read()) is not None:
        frames.append(frame)
    source.close()
    return frames


def test_a_file_gives_its_frames_and_times(tmp_path: Path) -> None:
    source = FileSource(write_video(tmp_path / "a.mp4"))
    info = source.open()
    assert (info.width, info.height, info.fps, info.live, info.notes) == (96, 64, 25, False, ())
    frames = read_all(source)
    assert [frame.capture_ns for frame in frames] == [index * 40_000_000 for index in range(12)]
    assert abs(int(frames[3].planes.y.mean()) - 55) <= 2
    assert not source.faults


def test_missing_not_a_video_without_video_and_empty(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such video file"):
        FileSource(tmp_path / "none.mp4").open()
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    with pytest.raises(SourceError, match="not a video"):
        FileSource(text).open()
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(SourceError):
        FileSource(tmp_path / "empty.mp4").open()
    sound = tmp_path / "sound.wav"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        silence.sample_rate = 8000
        for packet in stream.encode(silence):
            container.mux(packet)
    with pytest.raises(SourceError, match="no video stream"):
        FileSource(sound).open()
    with pytest.raises(SourceError):
        FileSource(tmp_path).open()


def test_a_video_of_zero_frames(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.avi", codec="mjpeg").read_bytes()
    # An AVI header announces the stream; nothing follows it.
    (tmp_path / "none.avi").write_bytes(whole[: whole.index(b"movi") + 4])
    with pytest.raises(SourceError, match=r"no video frame|not a video"):
        FileSource(tmp_path / "none.avi").open()


def test_too_small_a_picture(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="too small"):
        FileSource(write_video(tmp_path / "a.mkv", size=(16, 16))).open()


def test_odd_sizes_are_cut_and_announced(tmp_path: Path) -> None:
    source = FileSource(write_video(tmp_path / "odd.mkv", size=(97, 65), codec="ffv1"))
    info = source.open()
    assert (info.width, info.height) == (96, 64)
    assert info.notes == ("odd size cut: 97x65 to 96x64",)
    assert {(frame.planes.width, frame.planes.height) for frame in read_all(source)} == {(96, 64)}


def test_wide_pictures_are_scaled_down(tmp_path: Path) -> None:
    source = FileSource(write_video(tmp_path / "a.mp4", size=(160, 96)), max_width=80)
    info = source.open()
    assert (info.width, info.height) == (80, 48)
    assert info.notes == ("scaled down: 160x96 to 80x48",)
    frames = read_all(source)
    assert frames[0].planes.y.shape == (48, 80)


def test_variable_frame_rate_keeps_its_times(tmp_path: Path) -> None:
    times_ms = [0, 10, 100, 101, 500, 540, 1000, 2000]
    source = FileSource(write_video(tmp_path / "vfr.mkv", frames=8, times_ms=times_ms))
    source.open()
    assert [frame.capture_ns // 1_000_000 for frame in read_all(source)] == times_ms


def test_a_truncated_file_gives_what_is_left_of_it(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.mkv", frames=40).read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    source = FileSource(cut)
    source.open()
    frames = read_all(source)
    assert 5 <= len(frames) < 40
    # Without its index an MP4 is nothing; that is an error and no fault.
    mp4 = write_video(tmp_path / "a.mp4", frames=40).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(mp4[: len(mp4) * 2 // 3])
    with pytest.raises(SourceError, match="not a video"):
        FileSource(tmp_path / "cut.mp4").open()


def test_damage_inside_is_survived_and_counted(tmp_path: Path) -> None:
    whole = bytearray(write_video(tmp_path / "a.avi", frames=20, codec="png").read_bytes())
    starts = [at for at in range(len(whole) - 4) if whole[at : at + 4] == b"\x89PNG"]
    for start in starts[5:8]:
        whole[start : start + 8] = bytes(8)
    (tmp_path / "bad.avi").write_bytes(whole)
    source = FileSource(tmp_path / "bad.avi")
    source.open()
    frames = read_all(source)
    # The container's reader skips some bytes of its own until it finds a packet again.
    assert 14 <= len(frames) < 20
    assert source.faults["damaged_packet"] >= 1


def test_a_loop_goes_on_without_a_jump_in_time(tmp_path: Path) -> None:
    source = FileSource(write_video(tmp_path / "a.mp4", frames=5), loop=True)
    source.open()
    frames = [source.read() for _ in range(12)]
    source.close()
    assert [frame.capture_ns for frame in frames if frame] == [index * 40_000_000 for index in range(12)]


def test_realtime_waits_for_each_frame(tmp_path: Path) -> None:
    clock = FakeClock()
    source = FileSource(write_video(tmp_path / "a.mp4", frames=5), pace="realtime", clock=clock)
    assert source.open().live
    start_ns = clock.now_ns()
    frames = read_all(source)
    assert [frame.capture_ns - start_ns for frame in frames] == [index * 40_000_000 for index in range(5)]
    assert sum(clock.waits_s) == pytest.approx(0.16)
    assert all(frame.utc_offset_ns for frame in frames)


def test_reading_before_opening_is_an_error() -> None:
    for source in (FileSource("a.mp4"), TestSource(), LiveSource("x", label="x"), Picamera2Source(0, 64, 64, 30)):
        with pytest.raises(SourceError, match="before it is open"):
            source.read()


def test_testsrc_is_the_same_everywhere_and_ends() -> None:
    source = TestSource(96, 64, 10, pace="asap", frames=4)
    assert source.open().fps == 10
    first = read_all(source)
    other = TestSource(96, 64, 10, pace="asap", frames=4)
    other.open()
    second = read_all(other)
    assert len(first) == 4
    for one, two in zip(first, second, strict=True):
        assert one.capture_ns == two.capture_ns
        assert np.array_equal(one.planes.y, two.planes.y)
        assert np.array_equal(one.planes.u, two.planes.u)
    assert not np.array_equal(first[0].planes.y, first[1].planes.y)


def test_a_stopped_source_ends(tmp_path: Path) -> None:
    source = FileSource(write_video(tmp_path / "a.mp4"))
    source.open()
    source.stop()
    assert source.read() is None
    source.close()


def test_a_live_source_reconnects_and_counts(tmp_path: Path) -> None:
    """A file in the place of a camera: its end is a lost connection."""
    path = write_video(tmp_path / "a.mp4", frames=3)
    clock = FakeClock()
    source = LiveSource(str(path), label="camera", clock=clock)
    assert source.open().live
    frames = [source.read() for _ in range(7)]
    assert all(frames)
    times = [frame.capture_ns for frame in frames if frame]
    assert times == sorted(set(times))
    assert source.faults["connection_lost"] == 2
    path.unlink()
    stopped_after = len(clock.waits_s) + 4
    original = clock.wait

    def wait(event: object, seconds: float) -> bool:
        if len(clock.waits_s) >= stopped_after:
            source.stop()
        return original(event, seconds)  # type: ignore[arg-type]

    clock.wait = wait  # type: ignore[method-assign]
    while source.read() is not None:
        pass
    assert source.faults["reconnect_failed"] >= 1
    assert max(clock.waits_s) <= 30
    source.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://host/x", "no source"),
        ("picamera2:left", "camera number"),
        ("street:seven", "seed"),
    ],
)
def test_urls_without_a_source(url: str, words: str) -> None:
    with pytest.raises((SourceError, ConfigError), match=words):
        open_source(SourceConfig(url=url))


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("clip.mp4", FileSource),
        ("/data/clip.mp4", FileSource),
        ("file:clip.mp4", FileSource),
        ("file:///data/clip.mp4", FileSource),
        ("testsrc:", TestSource),
        ("rtsp://u:p@h/live", LiveSource),
        ("v4l2:/dev/video0", LiveSource),
        ("/dev/video0", LiveSource),
        ("picamera2:0", Picamera2Source),
    ],
)
def test_urls_choose_their_source(url: str, kind: type) -> None:
    assert isinstance(open_source(SourceConfig(url=url)), kind)


def test_absent_cameras_are_said_to_be_absent() -> None:
    with pytest.raises(SourceError, match=r"cannot open v4l2|cannot open /dev/video99"):
        open_source(SourceConfig(url="v4l2:/dev/video99")).open()
    with pytest.raises(SourceError) as caught:
        open_source(SourceConfig(url="rtsp://admin:hunter2@127.0.0.1:9/live")).open()
    assert "hunter2" not in str(caught.value)
    try:
        import picamera2  # noqa: F401
    except ImportError:
        with pytest.raises(SourceError, match="apt install"):
            Picamera2Source(0, 64, 64, 30).open()


def test_picamera2_pictures_lose_their_stride() -> None:
    width, height, stride = 64, 32, 128
    array = np.zeros((height * 3 // 2, stride), np.uint8)
    array[:height, :width] = 1
    # Two chroma rows share a row of the array.
    chroma = array[height:].reshape(-1, stride // 2)
    chroma[: height // 2, : width // 2] = 2
    chroma[height // 2 :, : width // 2] = 3
    planes = planes_of_i420(array, width, height)
    assert (planes.y == 1).all()
    assert (planes.u == 2).all()
    assert (planes.v == 3).all()
