"""Reading any video file as 4:2:0 planes, for tests, training, benchmarks and the file source. Not for live cameras."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.error
import av.video.frame
import numpy as np

from scene_edge.codec.errors import SourceError
from scene_edge.codec.planes import U8, Planes


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a container says of its first video stream. `frames` is 0 where it does not say."""

    width: int
    height: int
    fps: float
    frames: int


def planes_of(frame: av.video.frame.VideoFrame, width: int | None = None, height: int | None = None) -> Planes:
    """A decoded frame as 4:2:0 planes, scaled where a size is given; an odd last row or column is cut off."""
    width = (width or frame.width) // 2 * 2
    height = (height or frame.height) // 2 * 2
    if frame.format.name not in ("yuv420p", "yuvj420p") or (frame.width, frame.height) != (width, height):
        odd_cut = (frame.width // 2 * 2, frame.height // 2 * 2) == (width, height)
        if frame.format.name not in ("yuv420p", "yuvj420p") or not odd_cut:
            frame = frame.reformat(width=width, height=height, format="yuv420p", interpolation="AREA")
    y, u, v = (
        np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[:rows, :columns].copy()
        for plane, rows, columns in zip(
            frame.planes, (height, height // 2, height // 2), (width, width // 2, width // 2), strict=True
        )
    )
    return Planes(y, u, v)


def frame_of(planes: Planes) -> av.video.frame.VideoFrame:
    """Planes as FFmpeg's frame, copied row by row since FFmpeg pads its rows."""
    frame = av.video.frame.VideoFrame(planes.width, planes.height, "yuv420p")
    for target, plane in zip(frame.planes, (planes.y, planes.u, planes.v), strict=True):
        rows = np.frombuffer(memoryview(target), np.uint8).reshape(-1, target.line_size)
        rows[: plane.shape[0], : plane.shape[1]] = plane
    return frame


def reduced(planes: Planes, width: int, height: int) -> Planes:
    """The picture at a smaller size, both sides even: means over areas. At its own size it is the same object."""
    if (planes.width, planes.height) == (width, height):
        return planes
    return planes_of(frame_of(planes), width, height)


def magnified(planes: Planes, width: int, height: int) -> Planes:
    """The picture at a larger size, both sides even: straight lines between its samples."""
    return planes_of(frame_of(planes).reformat(width=width, height=height, interpolation="BILINEAR"))


def probe(path: str | Path) -> VideoInfo:
    """Size and rate of the first video stream. Raises SourceError where there is none."""
    with _open(path) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        return VideoInfo(stream.width, stream.height, float(rate), stream.frames)


def read_video(
    path: str | Path, *, width: int | None = None, height: int | None = None, limit: int | None = None
) -> Iterator[tuple[Planes, float]]:
    """Yield (planes, time in seconds) of each frame; with `width` alone the height keeps the picture's shape.

    Raises SourceError if the file is missing, is no video or holds no frame at all.
    """
    count = 0
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        if width is not None and height is None:
            height = max(2, round(stream.height * width / stream.width / 2) * 2)
        rate = float(stream.average_rate or 25)
        try:
            for frame in container.decode(stream):
                seconds = float(frame.pts * (stream.time_base or 0)) if frame.pts is not None else count / rate
                yield planes_of(frame, width, height), seconds
                count += 1
                if limit is not None and count >= limit:
                    return
        except av.error.FFmpegError as error:
            raise SourceError(f"cannot decode {path} past frame {count}", got=str(error)) from error
    if count == 0:
        raise SourceError(f"{path} holds no video frame", hint="Check that the recording is complete.")


def _open(path: str | Path) -> av.container.InputContainer:
    try:
        container = av.open(str(path))
    except av.error.FileNotFoundError as error:
        raise SourceError(f"no such video file: {path}", hint="Check the path.") from error
    except (av.error.FFmpegError, OSError) as error:
        raise SourceError(f"{path} is not a video that can be read", got=str(error)) from error
    if not container.streams.video:
        container.close()
        raise SourceError(f"{path} has no video stream", allowed="any container with a video stream that FFmpeg reads")
    return container


def stack(frames: list[Planes]) -> tuple[U8, U8, U8]:
    """Equal-sized frames -> y [T, H, W], u and v [T, H/2, W/2]."""
    return (
        np.stack([frame.y for frame in frames]),
        np.stack([frame.u for frame in frames]),
        np.stack([frame.v for frame in frames]),
    )
