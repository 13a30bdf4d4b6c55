"""Which quality the next GOP's semantics get, so that they stay a small share of the video. Pure, without a clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

PACKET_BYTES = 22
"""What carries a semantic packet's body when it rides with video: what even a silent GOP costs."""

_REMEMBERED_GOPS = 4
_CREDIT_GOPS = 8
_FADING = 7 / 8


class QualityControl(Protocol):
    """Asked at each keyframe, told after each GOP."""

    def choose(self, keyframe_bytes: int, bits: Sequence[float]) -> int | None:
        """The quality of the GOP that begins; None leaves it silent. `bits`: what its first frame takes at each."""

    def spent(self, video_bytes: int, semantic_bytes: int) -> None:
        """What the GOP that was last chosen for took in the end."""


class FixedQuality:
    """Always the same, whatever it takes."""

    def __init__(self, quality: int) -> None:
        self._quality = quality

    def choose(self, keyframe_bytes: int, bits: Sequence[float]) -> int | None:
        return self._quality

    def spent(self, video_bytes: int, semantic_bytes: int) -> None:
        pass


class ShareControl:
    """The finest quality whose packets fit into `max_share` of the video's bytes; silence where none does.

    What one GOP takes too much, later ones save; what they leave, later ones may use, half of it at a time and no more
    than some GOPs' worth. So semantics never exceed their share by more than about one GOP's packets, except that a
    silent GOP still takes a packet's header. What a GOP will take is told from its first frame by the ratio that GOPs
    had lately, which rises at once and falls slowly; at the start a GOP is taken to cost half as many first
    frames as it has frames, which is more than most do, and the first GOP's video to be no more than its keyframe.
    """

    def __init__(self, steps: Sequence[float], max_share: float, gop: int) -> None:
        self._finest_first = sorted(range(len(steps)), key=lambda index: steps[index])
        self._max_share = max_share
        self._ratio = gop / 2
        self._credit_bytes = 0.0
        self._video_bytes: deque[int] = deque(maxlen=_REMEMBERED_GOPS)
        self._first_frame_bytes: float | None = None

    def choose(self, keyframe_bytes: int, bits: Sequence[float]) -> int | None:
        video_bytes = max(keyframe_bytes, min(self._video_bytes, default=0))
        room_bytes = self._max_share * video_bytes + min(self._credit_bytes, self._credit_bytes / 2)
        for quality in self._finest_first:
            first_frame_bytes = _frame_bytes(bits[quality])
            if PACKET_BYTES + self._ratio * first_frame_bytes <= room_bytes:
                self._first_frame_bytes = first_frame_bytes
                return quality
        self._first_frame_bytes = None
        return None

    def spent(self, video_bytes: int, semantic_bytes: int) -> None:
        self._video_bytes.append(video_bytes)
        most_bytes = _CREDIT_GOPS * self._max_share * sum(self._video_bytes) / len(self._video_bytes)
        self._credit_bytes += self._max_share * video_bytes - semantic_bytes
        self._credit_bytes = min(self._credit_bytes, most_bytes)
        if self._first_frame_bytes is not None:
            ratio = max(0, semantic_bytes - PACKET_BYTES) / self._first_frame_bytes
            self._ratio = max(ratio, (self._ratio + ratio) / 2)
        elif self._credit_bytes >= 0:
            # Nothing is owed, and yet nothing seems to fit: what was dear once must not silence the camera for ever.
            self._ratio *= _FADING


def _frame_bytes(bits: float) -> float:
    """With one byte more, so that a first frame with nothing in it says little about the others."""
    return bits / 8 + 1
