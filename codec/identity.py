"""Who a frame is: session, sequence number and capture time, the same on both ends."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TypeAlias

from scene_edge.codec.planes import Planes

SessionId: TypeAlias = int
"""64 random bits, new at every pipeline start."""

MAX_SESSION_ID = 2**64 - 1
MAX_FRAME_SEQ = 2**32 - 1
MAX_TIME_NS = 2**63 - 1


def new_session_id() -> SessionId:
    """A session id that no other pipeline start has: 64 bits from the system's entropy, never 0."""
    return secrets.randbits(64) or 1


def session_hex(session_id: SessionId) -> str:
    """How JSON names a session: 16 hexadecimal digits.

    >>> session_hex(0xC0FFEE)
    '0000000000c0ffee'
    """
    return f"{session_id:016x}"


@dataclass(frozen=True, slots=True)
class FrameId:
    """The key by which video and semantics join. `capture_ns` is monotonic time of the camera."""

    session_id: SessionId
    frame_seq: int
    capture_ns: int


@dataclass(frozen=True, slots=True)
class Frame:
    """A picture as it left the source. `capture_ns + utc_offset_ns` is UTC in ns where the offset is known (else 0)."""

    planes: Planes
    capture_ns: int
    utc_offset_ns: int = 0


@dataclass(frozen=True, slots=True)
class AccessUnit:
    """One coded picture: H.264 in Annex B form, with the identity and the UTC offset of the frame that it codes."""

    data: bytes
    frame_seq: int
    capture_ns: int
    keyframe: bool
    utc_offset_ns: int = 0
