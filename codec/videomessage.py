"""An access unit on MQTT: a short header with the frame's identity, cut into fragments where it is long.

Layout, little endian: magic "SCV1" | flags u8 | fragment u8 | fragments u8 | 0 | session u64 | sequence u32 | capture
time i64 ns | width u16 | height u16 | UTC offset i64 ns, only with its flag | Annex B bytes | CRC-32C u32 over all.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from scene_edge.codec.annexb import MAX_ACCESS_UNIT_BYTES
from scene_edge.codec.checksum import crc32c
from scene_edge.codec.errors import PacketError
from scene_edge.codec.identity import MAX_FRAME_SEQ, MAX_SESSION_ID, MAX_TIME_NS, AccessUnit
from scene_edge.codec.planes import MAX_SIDE

MAGIC = b"SCV1"
_HEADER = struct.Struct("<4sBBBBQIqHH")
_UTC = struct.Struct("<q")
_CRC = struct.Struct("<I")
_KEYFRAME = 1
_HAS_UTC = 2

HEADER_BYTES = _HEADER.size + _UTC.size + _CRC.size
"""What a message costs at most besides its data; 8 bytes less where the UTC offset is unknown."""

MAX_MESSAGE_BYTES = 131_072
MAX_FRAGMENTS = 255


@dataclass(frozen=True, slots=True)
class VideoMessage:
    """One access unit, or fragment number `fragment` of `fragments` of it."""

    session_id: int
    frame_seq: int
    capture_ns: int
    utc_offset_ns: int
    keyframe: bool
    fragment: int
    fragments: int
    width: int
    height: int
    data: bytes

    def __post_init__(self) -> None:
        if not (0 <= self.session_id <= MAX_SESSION_ID and 0 <= self.frame_seq <= MAX_FRAME_SEQ):
            raise PacketError("identity out of range", got=f"session {self.session_id}, sequence {self.frame_seq}")
        if not (abs(self.capture_ns) <= MAX_TIME_NS and abs(self.utc_offset_ns) <= MAX_TIME_NS):
            raise PacketError("time out of range", got=f"{self.capture_ns} ns, offset {self.utc_offset_ns} ns")
        if not 0 <= self.fragment < self.fragments <= MAX_FRAGMENTS:
            raise PacketError(
                "fragment out of range", got=f"{self.fragment} of {self.fragments}", allowed=f"below {MAX_FRAGMENTS}"
            )
        for side in (self.width, self.height):
            if not 2 <= side <= MAX_SIDE or side % 2:
                raise PacketError(
                    "picture size out of range", got=f"{self.width}x{self.height}", allowed=f"even, 2..{MAX_SIDE}"
                )
        if not 1 <= len(self.data) <= MAX_ACCESS_UNIT_BYTES:
            raise PacketError("no data or too much", got=len(self.data), allowed=f"1..{MAX_ACCESS_UNIT_BYTES} bytes")

    def to_bytes(self) -> bytes:
        """Raises PacketError if the message is longer than MAX_MESSAGE_BYTES: use `split_video`."""
        flags = (_KEYFRAME if self.keyframe else 0) | (_HAS_UTC if self.utc_offset_ns else 0)
        header = _HEADER.pack(
            MAGIC,
            flags,
            self.fragment,
            self.fragments,
            0,
            self.session_id,
            self.frame_seq,
            self.capture_ns,
            self.width,
            self.height,
        )
        utc = _UTC.pack(self.utc_offset_ns) if self.utc_offset_ns else b""
        body = b"".join((header, utc, self.data))
        if len(body) + _CRC.size > MAX_MESSAGE_BYTES:
            raise PacketError("video message is too long", got=len(body), allowed=MAX_MESSAGE_BYTES, hint="Split it.")
        return body + _CRC.pack(crc32c(body))

    @classmethod
    def from_bytes(cls, data: bytes) -> VideoMessage:
        """Raises PacketError, and nothing else, for anything but the exact bytes of a message."""
        least = _HEADER.size + 1 + _CRC.size
        if not least <= len(data) <= MAX_MESSAGE_BYTES:
            raise PacketError(
                "video message length out of range", got=f"{len(data)} bytes", allowed=f"{least}..{MAX_MESSAGE_BYTES}"
            )
        end = len(data) - _CRC.size
        magic, flags, fragment, fragments, zero, session, seq, capture, width, height = _HEADER.unpack_from(data)
        if magic != MAGIC:
            raise PacketError("video message does not begin with its magic", got=magic.hex(), allowed=MAGIC.hex())
        (stated,) = _CRC.unpack_from(data, end)
        if crc32c(data[:end]) != stated:
            raise PacketError("video message is damaged: its CRC-32C does not fit", got=f"{stated:08x}")
        if flags & ~(_KEYFRAME | _HAS_UTC) or zero:
            raise PacketError("video message with unknown flags", got=f"{flags:#x} {zero:#x}", hint="Update this end.")
        at, utc_offset_ns = _HEADER.size, 0
        if flags & _HAS_UTC:
            if end - at < _UTC.size:
                raise PacketError("video message is cut short before its UTC offset", got=f"{len(data)} bytes")
            (utc_offset_ns,) = _UTC.unpack_from(data, at)
            at += _UTC.size
            if utc_offset_ns == 0:
                raise PacketError("video message spends bytes on a UTC offset of nothing")
        return cls(
            session,
            seq,
            capture,
            utc_offset_ns,
            bool(flags & _KEYFRAME),
            fragment,
            fragments,
            width,
            height,
            data[at:end],
        )


def split_video(
    unit: AccessUnit,
    *,
    session_id: int,
    width: int,
    height: int,
    utc_offset_ns: int = 0,
    max_bytes: int = 120_000,
) -> list[VideoMessage]:
    """An access unit as messages whose bytes are at most `max_bytes` each. Raises PacketError if it needs too many."""
    room = max_bytes - HEADER_BYTES
    if not 1 <= room <= MAX_MESSAGE_BYTES - HEADER_BYTES:
        raise PacketError(
            "message size out of range", got=max_bytes, allowed=f"{HEADER_BYTES + 1}..{MAX_MESSAGE_BYTES}"
        )
    fragments = -(-len(unit.data) // room)
    if not 1 <= fragments <= MAX_FRAGMENTS:
        raise PacketError(
            "access unit does not fit", got=f"{len(unit.data)} bytes", allowed=f"1..{room * MAX_FRAGMENTS} bytes"
        )
    return [
        VideoMessage(
            session_id,
            unit.frame_seq,
            unit.capture_ns,
            utc_offset_ns,
            unit.keyframe,
            index,
            fragments,
            width,
            height,
            unit.data[index * room : (index + 1) * room],
        )
        for index in range(fragments)
    ]


class VideoAssembler:
    """Puts the fragments of one camera's access units together again.

    At most MAX_OPEN access units wait for a fragment; the oldest is given up for a newer one and counted in `given_up`.
    """

    MAX_OPEN = 4

    def __init__(self) -> None:
        self.given_up = 0
        self._open: dict[tuple[int, int], dict[int, VideoMessage]] = {}

    def push(self, message: VideoMessage) -> VideoMessage | None:
        """The whole access unit as one message (fragment 0 of 1) once it is complete, else None.

        Raises PacketError if a fragment contradicts the others of its access unit, which is given up.
        """
        if message.fragments == 1:
            return message
        key = (message.session_id, message.frame_seq)
        parts = self._open.setdefault(key, {})
        first = next(iter(parts.values()), message)
        if replace(message, fragment=0, data=b"?") != replace(first, fragment=0, data=b"?"):
            self._give_up(key)
            raise PacketError("fragments of one access unit contradict each other", got=f"sequence {message.frame_seq}")
        parts[message.fragment] = message
        if sum(len(part.data) for part in parts.values()) > MAX_ACCESS_UNIT_BYTES:
            self._give_up(key)
            raise PacketError("access unit grows too large", allowed=f"{MAX_ACCESS_UNIT_BYTES} bytes")
        if len(parts) == message.fragments:
            del self._open[key]
            data = b"".join(parts[index].data for index in range(message.fragments))
            return replace(message, fragment=0, fragments=1, data=data)
        if len(self._open) > self.MAX_OPEN:
            self._give_up(next(iter(self._open)))
        return None

    def _give_up(self, key: tuple[int, int]) -> None:
        del self._open[key]
        self.given_up += 1
