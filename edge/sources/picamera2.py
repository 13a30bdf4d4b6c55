"""Frames from a Raspberry Pi camera through picamera2, which comes from the system's packages and not from an index."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import numpy as np

from scene_edge.codec.errors import SourceError
from scene_edge.codec.identity import Frame
from scene_edge.codec.planes import U8, Planes
from scene_edge.edge.clock import Clock, SystemClock
from scene_edge.edge.sources.base import SourceInfo


class Picamera2Source:
    """Capture times are the sensor's own (SensorTimestamp, monotonic since boot)."""

    def __init__(self, index: int, width: int, height: int, fps: float, *, clock: Clock | None = None) -> None:
        self.faults: Counter[str] = Counter()
        self._index, self._fps = index, fps
        self._width, self._height = width // 2 * 2, height // 2 * 2
        self._clock = clock or SystemClock()
        self._stopped = threading.Event()
        self._camera: Any = None

    def open(self) -> SourceInfo:
        try:
            from picamera2 import Picamera2
        except ImportError as error:
            raise SourceError(
                "picamera2 is not installed",
                hint="sudo apt install python3-picamera2, and make the venv with --system-site-packages.",
            ) from error
        try:
            camera = Picamera2(self._index)
            period_us = round(1e6 / self._fps)
            configuration = camera.create_video_configuration(
                main={"format": "YUV420", "size": (self._width, self._height)},
                controls={"FrameDurationLimits": (period_us, period_us)},
            )
            camera.configure(configuration)
            camera.start()
        except (RuntimeError, IndexError, OSError) as error:
            raise SourceError(
                f"camera {self._index} does not start", got=str(error), hint="See: scene-edge doctor"
            ) from error
        self._camera = camera
        return SourceInfo(self._width, self._height, self._fps, live=True)

    def read(self) -> Frame | None:
        if self._camera is None:
            raise SourceError("the camera is read before it is open", hint="Call open() first.")
        if self._stopped.is_set():
            return None
        request = self._camera.capture_request()
        try:
            picture = request.make_array("main")
            stamp_ns = int(request.get_metadata().get("SensorTimestamp", self._clock.now_ns()))
        finally:
            request.release()
        return Frame(planes_of_i420(picture, self._width, self._height), stamp_ns, self._clock.utc_offset_ns())

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        self._stopped.set()
        if self._camera is not None:
            self._camera.stop()
            self._camera.close()
            self._camera = None


def planes_of_i420(picture: U8, width: int, height: int) -> Planes:
    """picamera2's YUV420 array [H * 3/2, stride] -> planes; a U row pair shares one row of the array."""
    stride = picture.shape[1]
    y = np.ascontiguousarray(picture[:height, :width])
    chroma = picture[height:].reshape(-1, stride // 2)
    u = np.ascontiguousarray(chroma[: height // 2, : width // 2])
    v = np.ascontiguousarray(chroma[height // 2 : height, : width // 2])
    return Planes(y, u, v)
