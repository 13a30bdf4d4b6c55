"""How much of SCENE a camera may apply: what it adds must not cost more than it is worth.

At fine quantisers the detail that SCENE brings out is coded, and the bitrate rises; at coarse ones it falls. So a few
frames are coded now and then as they are and as SCENE leaves them, by a small encoder beside the stream, and SCENE's
strength follows. It multiplies what the filter adds to a picture, and is folded into its kernels: it costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scene_edge.codec.planes import Planes
from scene_edge.edge.encoders import create_encoder
from scene_edge.edge.encoders.base import EncoderSettings

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
WEAKEST = STRENGTHS[1]

PROBE_FRAMES = 6
"""A keyframe and five that are predicted stand for their GOP."""

FIRST_PERIOD_NS, LAST_PERIOD_NS = 2_000_000_000, 16_000_000_000
"""Between probes; doubled each time that nothing changes."""

LARGEST = (960, 540)
"""Of larger pictures the middle is probed."""

Pair = tuple[Planes, Planes]
"""A picture as it is, and filtered."""


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """`max_rise`: by which part the bitrate may rise at equal quality; the encoder's quality, preset and GOP."""

    max_rise: float
    crf: int
    preset: str
    gop: int
    tune: str = "human"
    fps: float = 25.0


class RateGuard:
    """Says which strength comes next. Pure but for the encoder, which is libx264 whatever the camera's own is."""

    def __init__(self, settings: GuardSettings) -> None:
        self._settings = settings
        self._pairs: list[Pair] = []
        self._next_ns: int | None = None
        self._period_ns = FIRST_PERIOD_NS

    def due(self, capture_ns: int) -> bool:
        """Whether this frame belongs to a probe, and must be filtered even at strength 0.

        A clock that was turned back does not put the next one off.
        """
        return bool(self._pairs) or self._next_ns is None or not 0 < self._next_ns - capture_ns <= LAST_PERIOD_NS

    def take(self, plain: Planes, filtered: Planes, capture_ns: int) -> list[Pair]:
        """A frame of a probe; all of them once they are complete."""
        self._pairs.append((middle(plain), middle(filtered)))
        if len(self._pairs) < PROBE_FRAMES:
            return []
        pairs, self._pairs = self._pairs, []
        self._next_ns = capture_ns + self._period_ns
        return pairs

    def settled(self, changed: bool) -> None:
        """What a probe led to: where nothing changes, the next may wait."""
        self._period_ns = FIRST_PERIOD_NS if changed else min(2 * self._period_ns, LAST_PERIOD_NS)

    def restart(self) -> None:
        """Another filter: the frames of a probe must be one filter's."""
        self._pairs = []

    def reset(self) -> None:
        """Another scene or stream: probe at once."""
        self._pairs, self._next_ns, self._period_ns = [], None, FIRST_PERIOD_NS

    def judged(self, pairs: Sequence[Pair], strength: float) -> float:
        """The strength that follows from pictures filtered at `strength`, above 0. Raises EncoderError."""
        plain, filtered = (self._bits([pair[side] for pair in pairs]) for side in (0, 1))
        return next_strength(strength, filtered / plain - 1.0, self._settings.max_rise)

    @property
    def gop(self) -> int:
        """Frames from one keyframe to the next: only there may strength change, since a change is coded."""
        return self._settings.gop

    def _bits(self, pictures: Sequence[Planes]) -> float:
        """Of a GOP, as far as these pictures tell."""
        settings = self._settings
        key, *following = coded_bytes(
            pictures, settings.crf, settings.preset, settings.gop, settings.fps, settings.tune
        )
        return 8 * (key + (settings.gop - 1) * sum(following) / len(following))


def coded_bytes(
    pictures: Sequence[Planes], crf: int, preset: str, gop: int, fps: float, tune: str = "human"
) -> list[int]:
    """What x264 takes for each picture, with zero latency and one thread. Raises EncoderError."""
    size = pictures[0].width, pictures[0].height
    encoder = create_encoder("libx264", EncoderSettings(*size, fps, gop, crf, None, preset, tune, threads=1))
    try:
        coded = [item for pts, planes in enumerate(pictures) for item in encoder.encode(planes, pts)]
        return [len(item.data) for item in coded + encoder.flush()]
    finally:
        encoder.close()


def next_strength(strength: float, rise: float, max_rise: float) -> float:
    """The strongest of STRENGTHS that ought to keep within half the allowed rise, if rises are proportional.

    `rise` was measured at `strength`. Between half of what is allowed and all of it nothing changes. They are not
    proportional where a weak filter saves and a strong one costs: so upwards it is one step at a time.

    >>> next_strength(1.0, 0.08, 0.02), next_strength(1.0, 0.016, 0.02), next_strength(0.25, -0.01, 0.02)
    (0.0, 1.0, 0.5)
    """
    aim = max_rise / 2
    if rise > max_rise:
        return max(step for step in STRENGTHS if step <= max(0.0, strength * aim / rise))
    above = [step for step in STRENGTHS if step > strength]
    return above[0] if above and rise * above[0] / strength <= aim else strength


def middle(planes: Planes) -> Planes:
    """The picture, or the middle of one that is larger than LARGEST."""
    width, height = (
        min(side, most) // 2 * 2 for side, most in zip((planes.width, planes.height), LARGEST, strict=True)
    )
    if (width, height) == (planes.width, planes.height):
        return planes
    left, top = (planes.width - width) // 4 * 2, (planes.height - height) // 4 * 2
    y = planes.y[top : top + height, left : left + width]
    chroma = (slice(top // 2, (top + height) // 2), slice(left // 2, (left + width) // 2))
    return Planes(y, planes.u[chroma], planes.v[chroma])
