"""Frames from anything live that FFmpeg opens: RTSP and HTTP cameras, V4L2 devices. Lost connections are retried."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator

import av
import av.container
import av.error
import av.video.frame

from scene_edge.codec.errors import SourceError
from scene_edge.codec.identity import Frame
from scene_edge.codec.media import planes_of
from scene_edge.edge.backoff import Backoff
from scene_edge.edge.clock import Clock, SystemClock
from scene_edge.edge.sources.base import SourceInfo, scaled_size

OPEN_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 10.0


class LiveSource:
    """`address` and `options` go to FFmpeg as they are; `label` is what errors and logs call it (no password in it).

    The first open must succeed. After that a lost connection is a counted fault (`connection_lost`), not an end: it
    is opened again after a random wait that grows to 30 s.
    """

    def __init__(
        self,
        address: str,
        *,
        label: str,
        container_format: str | None = None,
        options: dict[str, str] | None = None,
        max_width: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.faults: Counter[str] = Counter()
        self._address, self._label, self._format = address, label, container_format
        self._options, self._max_width = dict(options or {}), max_width
        self._clock = clock or SystemClock()
        self._stopped = threading.Event()
        self._backoff = Backoff(base_s=0.5, cap_s=30.0, generator=random.Random())
        self._container: av.container.InputContainer | None = None
        self._pictures: Iterator[av.video.frame.VideoFrame] = iter(())
        self._info: SourceInfo | None = None
        self._last_ns = -1

    def open(self) -> SourceInfo:
        width, height, fps = self._connect()
        width, height, notes = scaled_size(width, height, self._max_width)
        self._info = SourceInfo(width, height, fps, live=True, notes=notes)
        return self._info

    def read(self) -> Frame | None:
        if self._info is None:
            raise SourceError(f"{self._label} is read before it is open", hint="Call open() first.")
        while not self._stopped.is_set():
            picture = self._next_picture()
            if picture is not None:
                # FFmpeg does not pass a sensor's clock on, so the time of arrival stands for the capture time.
                self._last_ns = max(self._clock.now_ns(), self._last_ns + 1)
                planes = planes_of(picture, self._info.width, self._info.height)
                return Frame(planes, self._last_ns, self._clock.utc_offset_ns())
            self._reconnect()
        return None

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        self._stopped.set()
        self._disconnect()

    def _next_picture(self) -> av.video.frame.VideoFrame | None:
        try:
            return next(self._pictures, None)
        except (av.error.FFmpegError, OSError):
            return None

    def _connect(self) -> tuple[int, int, float]:
        try:
            self._container = av.open(
                self._address,
                format=self._format,
                options=self._options,
                timeout=(OPEN_TIMEOUT_S, READ_TIMEOUT_S),
            )
            if not self._container.streams.video:
                raise SourceError(f"{self._label} has no video stream")
            stream = self._container.streams.video[0]
            self._pictures = self._container.decode(stream)
            rate = float(stream.average_rate or stream.guessed_rate or 25)
            return stream.width, stream.height, rate if 0 < rate <= 240 else 25.0
        except (av.error.FFmpegError, OSError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise SourceError(
                f"cannot open {self._label}", got=reason, hint="Is it there, and may we read it?"
            ) from error

    def _reconnect(self) -> None:
        self.faults["connection_lost"] += 1
        self._disconnect()
        while not self._clock.wait(self._stopped, self._backoff.next_s()):
            try:
                self._connect()
            except SourceError:
                self.faults["reconnect_failed"] += 1
                continue
            self._backoff.reset()
            return

    def _disconnect(self) -> None:
        self._pictures = iter(())
        if self._container is not None:
            self._container.close()
            self._container = None
