"""Sources of frames, and the one function that opens them by URL."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from scene_edge.codec.errors import SourceError
from scene_edge.edge.clock import Clock
from scene_edge.edge.config import SourceConfig, without_password
from scene_edge.edge.sources.base import Source, SourceInfo
from scene_edge.edge.sources.file import FileSource
from scene_edge.edge.sources.live import LiveSource
from scene_edge.edge.sources.picamera2 import Picamera2Source
from scene_edge.edge.sources.street import StreetSource
from scene_edge.edge.sources.testsrc import TestSource

__all__ = [
    "FileSource",
    "LiveSource",
    "Picamera2Source",
    "Source",
    "SourceInfo",
    "StreetSource",
    "TestSource",
    "open_source",
]

_ALLOWED = "a file path, testsrc:, street:[SEED], rtsp://, http://, v4l2:/dev/videoN, picamera2:N"


def open_source(
    config: SourceConfig, *, max_width: int | None = None, frames: int | None = None, clock: Clock | None = None
) -> Source:
    """The source that `config.url` names, not opened yet. `frames` ends testsrc; other sources are ended by the reader.

    Raises SourceError for a scheme that there is no source for.
    """
    url = config.url
    scheme = url.partition(":")[0].lower() if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", url) else "file"
    rest = url.partition(":")[2]
    if scheme == "testsrc":
        return TestSource(
            config.width,
            config.height,
            config.fps,
            pace=config.pace,
            frames=frames,
            max_width=max_width,
            clock=clock,
        )
    if scheme == "street":
        if rest and not rest.isdigit():
            raise SourceError("street wants a seed", got=url, allowed="street: or street:SEED, such as street:7")
        return StreetSource(
            config.width,
            config.height,
            config.fps,
            seed=int(rest or 1),
            pace=config.pace,
            frames=frames,
            max_width=max_width,
            clock=clock,
        )
    if scheme in ("rtsp", "rtsps", "http", "https"):
        options = {"rtsp_transport": "tcp", "fflags": "nobuffer"} if scheme.startswith("rtsp") else {}
        return LiveSource(url, label=without_password(url), options=options, max_width=max_width, clock=clock)
    if scheme == "v4l2" or url.startswith("/dev/video"):
        device = rest if scheme == "v4l2" else url
        options = {"video_size": f"{config.width}x{config.height}", "framerate": f"{config.fps:g}"}
        return LiveSource(
            device, label=device, container_format="v4l2", options=options, max_width=max_width, clock=clock
        )
    if scheme == "picamera2":
        if not rest.isdigit():
            raise SourceError("picamera2 wants a camera number", got=url, allowed="picamera2:0, picamera2:1")
        width = min(config.width, max_width or config.width)
        height = round(config.height * width / config.width)
        return Picamera2Source(int(rest), width, height, config.fps, clock=clock)
    if scheme == "file":
        path = urlsplit(url).path if url.startswith("file://") else rest if url.startswith("file:") else url
        return FileSource(path, pace=config.pace, loop=config.loop, max_width=max_width, clock=clock)
    raise SourceError("no source for this URL", got=without_password(url), allowed=_ALLOWED)
