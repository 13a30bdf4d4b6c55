"""Gives each frame that leaves the encoder its number, and finds the frame again by its time stamp (PTS)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from scene_edge.codec.identity import AccessUnit
from scene_edge.codec.planes import Planes
from scene_edge.edge.encoders.base import CodedPicture, VideoEncoder

MAX_INSIDE = 64
"""Frames that may be inside an encoder at a time; hardware holds fewer than ten."""


class Timed(Protocol):
    @property
    def capture_ns(self) -> int: ...


F = TypeVar("F", bound=Timed)


@dataclass(frozen=True, slots=True)
class Encoded(Generic[F]):
    """An access unit, and what was handed in with its picture."""

    unit: AccessUnit
    source: F


class Sequencer(Generic[F]):
    """Wraps an encoder: `frame_seq` counts frames that came out, so that numbers have no holes.

    `lost` counts frames that the encoder swallowed, `unmatched` pictures that came out under an unknown time stamp.
    """

    def __init__(self, encoder: VideoEncoder) -> None:
        self._encoder = encoder
        self._inside: OrderedDict[int, F] = OrderedDict()
        self._next_pts = 0
        self._next_seq = 0
        self.lost = 0
        self.unmatched = 0

    def encode(self, planes: Planes, source: F) -> list[Encoded[F]]:
        pts = self._next_pts
        self._next_pts += 1
        self._inside[pts] = source
        out = self._matched(self._encoder.encode(planes, pts))
        while len(self._inside) > MAX_INSIDE:
            self._inside.popitem(last=False)
            self.lost += 1
        return out

    def flush(self) -> list[Encoded[F]]:
        out = self._matched(self._encoder.flush())
        self.lost += len(self._inside)
        self._inside.clear()
        return out

    def abandon(self) -> int:
        """Give up what is inside the encoder; returns how many frames that is."""
        inside = len(self._inside)
        self._inside.clear()
        return inside

    def _matched(self, pictures: list[CodedPicture]) -> list[Encoded[F]]:
        out = []
        for picture in pictures:
            source = self._inside.pop(picture.pts, None)
            if source is None:
                self.unmatched += 1
                continue
            unit = AccessUnit(picture.data, self._next_seq, source.capture_ns, picture.keyframe)
            self._next_seq += 1
            out.append(Encoded(unit, source))
        return out
