"""The seams of analytics (Detector, Tracker, ActionRecogniser) and what passes through them; no network lives here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from scene_edge.codec.planes import Planes

if TYPE_CHECKING:
    from scene_edge.server.analytics.detections import Detections


@dataclass(frozen=True, slots=True)
class Track:
    """One object followed over time, as seen on one frame. Box in pixels of the frame: x0, y0, x1, y1."""

    track_id: int
    box: tuple[float, float, float, float]
    score: float
    label: str


@dataclass(frozen=True, slots=True)
class Action:
    """What a clip of frames start_seq..end_seq (both inclusive) shows, and which model says so."""

    label: str
    score: float
    start_seq: int
    end_seq: int
    model: str


class Detector(Protocol):
    """Finds objects on one picture. `name` is what the page shows: model and engine."""

    @property
    def name(self) -> str: ...

    def detect(self, planes: Planes) -> Detections: ...

    def close(self) -> None: ...


class Tracker(Protocol):
    """Gives the objects of consecutive pictures of one camera lasting ids."""

    def update(self, detections: Detections, frame_seq: int) -> Sequence[Track]: ...

    def reset(self) -> None:
        """Forget everything: a new session begins."""
        ...


class ActionRecogniser(Protocol):
    """Collects pictures of one camera into clips and names what each clip shows."""

    @property
    def name(self) -> str: ...

    def push(self, planes: Planes, frame_seq: int, time_s: float) -> list[Action]:
        """Take the next picture; give the verdicts of any clip that it completes."""
        ...

    def reset(self) -> None: ...

    def close(self) -> None: ...
