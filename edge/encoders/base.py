"""What every H.264 encoder is: pictures with a time stamp in, coded pictures with the same stamp out, Annex B."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from scene_edge.codec.planes import Planes

X264_INFO_UUID = UUID("dc45e9bd-e6d9-48b7-962c-d820d923eeef")
"""x264 writes its name and settings into the first picture, some 700 bytes that nobody reads; we take them out."""


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """`bitrate_kbps` None means constant quality `crf`. Every `gop` pictures comes a keyframe, and at no other time."""

    width: int
    height: int
    fps: float
    gop: int
    crf: int
    bitrate_kbps: int | None
    preset: str = "superfast"
    tune: str = "human"
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class CodedPicture:
    data: bytes
    pts: int
    keyframe: bool


class VideoEncoder(Protocol):
    """No B-frames: pictures leave in the order in which they came, each keyframe with its SPS and PPS."""

    name: str

    def encode(self, planes: Planes, pts: int) -> list[CodedPicture]:
        """What has come out so far, possibly nothing yet. Raises EncoderError."""
        ...

    def flush(self) -> list[CodedPicture]: ...

    def close(self) -> None: ...
