"""Frames from a video file, at their recorded pace or as fast as they are taken. Damage is skipped and counted."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path

import av
import av.container
import av.error
import av.video.frame
import av.video.stream

from scene_edge.codec.errors import SourceError
from scene_edge.codec.identity import Frame
from scene_edge.codec.media import planes_of
from scene_edge.edge.clock import Clock, SystemClock
from scene_edge.edge.sources.base import Pacer, SourceInfo, scaled_size

MIN_SIDE = 32


class FileSource:
    """Faults: `damaged_packet` (skipped), `truncated` (the container ends early), `size_changed` (frame scaled)."""

    def __init__(
        self,
        path: str | Path,
        *,
        pace: str = "asap",
        loop: bool = False,
        max_width: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.faults: Counter[str] = Counter()
        self._path, self._pace, self._loop, self._max_width = str(path), pace, loop, max_width
        self._clock = clock or SystemClock()
        self._stopped = threading.Event()
        self._pacer = Pacer(self._clock, self._stopped)
        self._container: av.container.InputContainer | None = None
        self._ready: deque[av.video.frame.VideoFrame] = deque()
        self._packets: Iterator[av.Packet[av.video.stream.VideoStream]] = iter(())
        self._info: SourceInfo | None = None
        self._count = 0
        self._first_ns: int | None = None
        self._last_ns = -1
        self._shift_ns = 0
        self._picture_size = (0, 0)

    def open(self) -> SourceInfo:
        stream = self._open_container()
        width, height, notes = scaled_size(stream.width, stream.height, self._max_width)
        if min(width, height) < MIN_SIDE:
            raise SourceError(
                f"{self._path} is too small",
                got=f"{stream.width}x{stream.height}",
                allowed=f"at least {MIN_SIDE}x{MIN_SIDE}",
            )
        rate = stream.average_rate or stream.guessed_rate
        fps = float(rate) if rate else 25.0
        live = self._pace == "realtime"
        self._info = SourceInfo(width, height, fps if 0 < fps <= 1000 else 25.0, live, notes)
        # The first frame is decoded here, so that a file without one fails before anything else is started.
        if not self._fill():
            self.close()
            raise SourceError(f"{self._path} holds no video frame", hint="Check that the recording is complete.")
        return self._info

    def read(self) -> Frame | None:
        info = self._opened()
        if self._stopped.is_set():
            return None
        if not self._fill():
            if not self._loop or self._count == 0:
                return None
            self._rewind(info)
            if not self._fill():
                return None
        picture = self._ready.popleft()
        if self._count and (picture.width, picture.height) != self._picture_size:
            self.faults["size_changed"] += 1
        self._picture_size = picture.width, picture.height
        planes = planes_of(picture, info.width, info.height)
        media_ns = self._media_ns(picture, info)
        self._count += 1
        return self._pacer.frame(planes, media_ns, self._pace)

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        self._stopped.set()
        self._ready.clear()
        self._packets = iter(())
        if self._container is not None:
            self._container.close()
            self._container = None

    def _opened(self) -> SourceInfo:
        if self._info is None or self._container is None:
            raise SourceError(f"{self._path} is read before it is open", hint="Call open() first.")
        return self._info

    def _open_container(self) -> av.video.stream.VideoStream:
        try:
            self._container = av.open(self._path)
        except av.error.FileNotFoundError as error:
            raise SourceError(f"no such video file: {self._path}", hint="Check the path.") from error
        except (av.error.FFmpegError, OSError) as error:
            raise SourceError(f"{self._path} is not a video that can be read", got=_text(error)) from error
        if not self._container.streams.video:
            self.close()
            raise SourceError(
                f"{self._path} has no video stream", allowed="a file with a video stream that FFmpeg reads"
            )
        stream = self._container.streams.video[0]
        # Not by frame: an error in one would then take intact frames of other threads with it.
        stream.thread_type = "SLICE"
        self._packets = self._container.demux(stream)
        return stream

    def _fill(self) -> bool:
        """Decode until a picture is ready; False at the end of the file."""
        while not self._ready:
            try:
                packet = next(self._packets)
            except StopIteration:
                return False
            except av.error.FFmpegError:
                # The container breaks off here; what was read before stands.
                self.faults["truncated"] += 1
                self._packets = iter(())
                return False
            try:
                self._ready.extend(packet.decode())
            except av.error.EOFError:
                return False
            except av.error.FFmpegError:
                self.faults["damaged_packet"] += 1
        return True

    def _media_ns(self, picture: av.video.frame.VideoFrame, info: SourceInfo) -> int:
        """The frame's time from the start of the file, strictly rising whatever the container says."""
        period_ns = info.frame_period_ns
        if picture.pts is None or picture.time_base is None:
            stamp_ns = self._last_ns + period_ns if self._last_ns >= 0 else 0
        else:
            absolute_ns = round(picture.pts * picture.time_base * 1_000_000_000)
            if self._first_ns is None:
                self._first_ns = absolute_ns
            stamp_ns = absolute_ns - self._first_ns + self._shift_ns
        if stamp_ns <= self._last_ns:
            self.faults["timestamp_not_rising"] += 1
            stamp_ns = self._last_ns + period_ns
        self._last_ns = stamp_ns
        return stamp_ns

    def _rewind(self, info: SourceInfo) -> None:
        if self._container is not None:
            self._container.close()
        self._open_container()
        self._shift_ns = self._last_ns + info.frame_period_ns
        self._first_ns = None


def _text(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
