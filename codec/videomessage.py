"""Consecutive access units on MQTT: one short header for all of them, cut into fragments where they are long.

Layout, little endian: magic "SCV1" | flags u8 | fragment u8 | fragments u8 | count u8 | session u64 | first
sequence u32 | capture time of the first i64 ns | width u16 | height u16 | UTC offset of the first i64 ns, only with its
flag | body, or this fragment's part of it | CRC-32C u32 over all. Body: with its flag, semantics that ride along
(riders.py) behind their length; then a table with an entry for each access unit, then their bytes.
Every length is checked against its limit and against the bytes that are there before anything is allocated.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from scene_edge.codec.annexb import MAX_ACCESS_UNIT_BYTES
from scene_edge.codec.checksum import crc32c
from scene_edge.codec.errors import PacketError
from scene_edge.codec.identity import MAX_FRAME_SEQ, MAX_SESSION_ID, MAX_TIME_NS, AccessUnit
from scene_edge.codec.planes import MAX_SIDE
from scene_edge.codec.varints import read_varint, unzigzag, write_varint, zigzag

MAGIC = b"SCV1"
_HEADER = struct.Struct("<4sBBBBQIqHH")
_UTC = struct.Struct("<q")
_CRC = struct.Struct("<I")
_HAS_UTC = 1
_HAS_RIDERS = 2

HEADER_BYTES = _HEADER.size + _UTC.size + _CRC.size
"""What a message costs at most besides its body; 8 bytes less where the UTC offset is unknown."""

MAX_MESSAGE_BYTES = 131_072
MAX_FRAGMENTS = 255
MAX_UNITS = 255
MAX_STEP_NS = 2**32 - 1
"""From one capture time to the next in a message, and the most that the UTC offset may change between them."""

_MAX_LENGTH_BYTES = 4
"""28 bits reach past twice MAX_ACCESS_UNIT_BYTES."""
_MAX_STEP_BYTES = 5
_MAX_ENTRY_BYTES = _MAX_LENGTH_BYTES + 2 * _MAX_STEP_BYTES
MAX_RIDERS_BYTES = 8_192
_MAX_RIDERS_LENGTH_BYTES = 2
MAX_BODY_BYTES = MAX_ACCESS_UNIT_BYTES + MAX_UNITS * _MAX_ENTRY_BYTES + MAX_RIDERS_BYTES + _MAX_RIDERS_LENGTH_BYTES


@dataclass(frozen=True, slots=True)
class VideoMessage:
    """`count` access units from `first_seq` on, or fragment number `fragment` of `fragments` of their body.

    `laden`: the body begins with semantics that ride along.
    """

    session_id: int
    first_seq: int
    capture_ns: int
    utc_offset_ns: int
    count: int
    fragment: int
    fragments: int
    width: int
    height: int
    body: bytes
    laden: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_UNITS:
            raise PacketError("number of access units out of range", got=self.count, allowed=f"1..{MAX_UNITS}")
        if not (0 <= self.session_id <= MAX_SESSION_ID and 0 <= self.first_seq <= MAX_FRAME_SEQ + 1 - self.count):
            raise PacketError(
                "identity out of range", got=f"session {self.session_id}, sequence {self.first_seq} +{self.count}"
            )
        _check_times(self.capture_ns, self.utc_offset_ns)
        if not 0 <= self.fragment < self.fragments <= MAX_FRAGMENTS:
            raise PacketError(
                "fragment out of range", got=f"{self.fragment} of {self.fragments}", allowed=f"below {MAX_FRAGMENTS}"
            )
        for side in (self.width, self.height):
            if not 2 <= side <= MAX_SIDE or side % 2:
                raise PacketError(
                    "picture size out of range", got=f"{self.width}x{self.height}", allowed=f"even, 2..{MAX_SIDE}"
                )
        if not 1 <= len(self.body) <= MAX_BODY_BYTES:
            raise PacketError("no data or too much", got=len(self.body), allowed=f"1..{MAX_BODY_BYTES} bytes")
        if self.fragments == 1:
            _read_table(self)

    @property
    def last_seq(self) -> int:
        return self.first_seq + self.count - 1

    @property
    def riders(self) -> bytes:
        """The semantics that ride in a whole message, for `riders.read_riders`; b"" if none do."""
        length, at = _riders_place(self)
        return self.body[at : at + length]

    @property
    def units(self) -> tuple[AccessUnit, ...]:
        """The access units of a whole message. Raises PacketError for a fragment: use `VideoAssembler`."""
        if self.fragments != 1:
            raise PacketError("a fragment alone holds no access unit", got=f"{self.fragment} of {self.fragments}")
        entries, at = _read_table(self)
        units = []
        for offset, entry in enumerate(entries):
            data = self.body[at : at + entry.length]
            units.append(
                AccessUnit(data, self.first_seq + offset, entry.capture_ns, entry.keyframe, entry.utc_offset_ns)
            )
            at += entry.length
        return tuple(units)

    def to_bytes(self) -> bytes:
        """Raises PacketError if the message is longer than MAX_MESSAGE_BYTES: use `split_video`."""
        header = _HEADER.pack(
            MAGIC,
            (_HAS_UTC if self.utc_offset_ns else 0) | (_HAS_RIDERS if self.laden else 0),
            self.fragment,
            self.fragments,
            self.count,
            self.session_id,
            self.first_seq,
            self.capture_ns,
            self.width,
            self.height,
        )
        utc = _UTC.pack(self.utc_offset_ns) if self.utc_offset_ns else b""
        whole = b"".join((header, utc, self.body))
        if len(whole) + _CRC.size > MAX_MESSAGE_BYTES:
            raise PacketError("video message is too long", got=len(whole), allowed=MAX_MESSAGE_BYTES, hint="Split it.")
        return whole + _CRC.pack(crc32c(whole))

    @classmethod
    def from_bytes(cls, data: bytes) -> VideoMessage:
        """Raises PacketError, and nothing else, for anything but the exact bytes of a message."""
        least = _HEADER.size + 1 + _CRC.size
        if not least <= len(data) <= MAX_MESSAGE_BYTES:
            raise PacketError(
                "video message length out of range", got=f"{len(data)} bytes", allowed=f"{least}..{MAX_MESSAGE_BYTES}"
            )
        end = len(data) - _CRC.size
        magic, flags, fragment, fragments, count, session, seq, capture, width, height = _HEADER.unpack_from(data)
        if magic != MAGIC:
            raise PacketError("video message does not begin with its magic", got=magic.hex(), allowed=MAGIC.hex())
        (stated,) = _CRC.unpack_from(data, end)
        if crc32c(data[:end]) != stated:
            raise PacketError("video message is damaged: its CRC-32C does not fit", got=f"{stated:08x}")
        if flags & ~(_HAS_UTC | _HAS_RIDERS):
            raise PacketError("video message with unknown flags", got=f"{flags:#x}", hint="Update this end.")
        at, utc_offset_ns = _HEADER.size, 0
        if flags & _HAS_UTC:
            if end - at < _UTC.size:
                raise PacketError("video message is cut short before its UTC offset", got=f"{len(data)} bytes")
            (utc_offset_ns,) = _UTC.unpack_from(data, at)
            at += _UTC.size
            if utc_offset_ns == 0:
                raise PacketError("video message spends bytes on a UTC offset of nothing")
        body, laden = data[at:end], bool(flags & _HAS_RIDERS)
        return cls(session, seq, capture, utc_offset_ns, count, fragment, fragments, width, height, body, laden)


@dataclass(frozen=True, slots=True)
class _Entry:
    length: int
    keyframe: bool
    capture_ns: int
    utc_offset_ns: int


def _check_times(capture_ns: int, utc_offset_ns: int) -> None:
    if not (abs(capture_ns) <= MAX_TIME_NS and abs(utc_offset_ns) <= MAX_TIME_NS):
        raise PacketError("time out of range", got=f"{capture_ns} ns, offset {utc_offset_ns} ns")


def _write_table(units: Sequence[AccessUnit]) -> bytes:
    out, before, step_before = bytearray(), units[0], 0
    for unit in units:
        out += write_varint(2 * len(unit.data) + unit.keyframe)
        if unit is units[0]:
            continue
        step_ns = unit.capture_ns - before.capture_ns
        out += write_varint(zigzag(step_ns - step_before))
        if unit.utc_offset_ns:
            out += write_varint(zigzag(unit.utc_offset_ns - before.utc_offset_ns))
        before, step_before = unit, step_ns
    return bytes(out)


def _riders_place(message: VideoMessage) -> tuple[int, int]:
    """Bytes of the semantics in a whole message, and where they begin. Raises PacketError."""
    if not message.laden:
        return 0, 0
    length, at = read_varint(message.body, 0, _MAX_RIDERS_LENGTH_BYTES)
    if not 1 <= length <= min(MAX_RIDERS_BYTES, len(message.body) - at):
        raise PacketError(
            "length of the semantics in a video message out of range", got=length, allowed=f"1..{MAX_RIDERS_BYTES}"
        )
    return length, at


def _read_table(message: VideoMessage) -> tuple[list[_Entry], int]:
    """The entries of a whole message's body, and where they end. Raises PacketError unless the lengths use it up."""
    body, at, step_ns, total = message.body, sum(_riders_place(message)), 0, 0
    capture_ns, utc_offset_ns = message.capture_ns, message.utc_offset_ns
    if message.count > len(body) - at:
        raise PacketError("video message is cut short", got=f"{len(body)} bytes for {message.count} access units")
    entries = []
    for index in range(message.count):
        coded, at = read_varint(body, at, _MAX_LENGTH_BYTES)
        length = coded >> 1
        total += length
        if not 1 <= length <= MAX_ACCESS_UNIT_BYTES or total > len(body):
            raise PacketError("access unit's length out of range", got=length, allowed=f"1..{len(body)} in all")
        if index:
            change, at = read_varint(body, at, _MAX_STEP_BYTES)
            step_ns += unzigzag(change)
            if not 0 <= step_ns <= MAX_STEP_NS:
                raise PacketError("step of capture time out of range", got=step_ns, allowed=f"0..{MAX_STEP_NS} ns")
            capture_ns += step_ns
            if utc_offset_ns:
                change, at = read_varint(body, at, _MAX_STEP_BYTES)
                utc_offset_ns += unzigzag(change)
                if not utc_offset_ns or abs(unzigzag(change)) > MAX_STEP_NS:
                    raise PacketError("change of UTC offset out of range", got=unzigzag(change))
            _check_times(capture_ns, utc_offset_ns)
        entries.append(_Entry(length, bool(coded & 1), capture_ns, utc_offset_ns))
    if total != len(body) - at:
        raise PacketError("lengths of access units do not add up", got=total, allowed=len(body) - at)
    return entries, at


def can_follow(unit: AccessUnit, before: AccessUnit) -> bool:
    """Whether the format allows `unit` right behind `before` in one message."""
    return (
        unit.frame_seq == before.frame_seq + 1
        and 0 <= unit.capture_ns - before.capture_ns <= MAX_STEP_NS
        and abs(unit.utc_offset_ns - before.utc_offset_ns) <= MAX_STEP_NS
        and (unit.utc_offset_ns == 0) == (before.utc_offset_ns == 0)
    )


def split_video(
    units: Sequence[AccessUnit],
    *,
    session_id: int,
    width: int,
    height: int,
    riders: bytes = b"",
    max_bytes: int = 120_000,
) -> list[VideoMessage]:
    """Consecutive access units as one message, or as its fragments, of at most `max_bytes` each.

    `riders` comes from `riders.write_riders`. Raises PacketError if there are no units or too many, if one cannot
    follow the other, or if it needs too many fragments.
    """
    room = max_bytes - HEADER_BYTES
    if not 1 <= room <= MAX_MESSAGE_BYTES - HEADER_BYTES:
        raise PacketError(
            "message size out of range", got=max_bytes, allowed=f"{HEADER_BYTES + 1}..{MAX_MESSAGE_BYTES}"
        )
    if not 1 <= len(units) <= MAX_UNITS:
        raise PacketError("number of access units out of range", got=len(units), allowed=f"1..{MAX_UNITS}")
    for before, unit in pairwise(units):
        if not can_follow(unit, before):
            raise PacketError("access unit cannot follow the one before it", got=f"sequence {unit.frame_seq}")
    if not all(1 <= len(unit.data) <= MAX_ACCESS_UNIT_BYTES for unit in units):
        raise PacketError("access unit is empty or too long", allowed=f"1..{MAX_ACCESS_UNIT_BYTES} bytes")
    laden = write_varint(len(riders)) + riders if riders else b""
    body = b"".join((laden, _write_table(units), *(unit.data for unit in units)))
    fragments = -(-len(body) // room)
    if fragments > MAX_FRAGMENTS:
        raise PacketError(
            "video message does not fit", got=f"{len(body)} bytes", allowed=f"1..{room * MAX_FRAGMENTS} bytes"
        )
    first = units[0]
    return [
        VideoMessage(
            session_id,
            first.frame_seq,
            first.capture_ns,
            first.utc_offset_ns,
            len(units),
            index,
            fragments,
            width,
            height,
            body[index * room : (index + 1) * room],
            bool(riders),
        )
        for index in range(fragments)
    ]


class VideoAssembler:
    """Puts the fragments of one camera's messages together again.

    At most MAX_OPEN messages wait for a fragment; the oldest is given up for a newer one and counted in `given_up`.
    """

    MAX_OPEN = 4

    def __init__(self) -> None:
        self.given_up = 0
        self._open: dict[tuple[int, int], dict[int, VideoMessage]] = {}

    def push(self, message: VideoMessage) -> VideoMessage | None:
        """The whole message that this completes; None while fragments of it are missing.

        Raises PacketError if a fragment contradicts the others, or if they make no message: it is given up.
        """
        if message.fragments == 1:
            return message
        key = (message.session_id, message.first_seq)
        parts = self._open.setdefault(key, {})
        first = next(iter(parts.values()), message)
        if replace(message, fragment=0, body=b"?") != replace(first, fragment=0, body=b"?"):
            self._give_up(key)
            raise PacketError("fragments of one message contradict each other", got=f"sequence {message.first_seq}")
        parts[message.fragment] = message
        if sum(len(part.body) for part in parts.values()) > MAX_BODY_BYTES:
            self._give_up(key)
            raise PacketError("video message grows too large", allowed=f"{MAX_BODY_BYTES} bytes")
        if len(parts) == message.fragments:
            body = b"".join(parts[index].body for index in range(message.fragments))
            try:
                whole = replace(message, fragment=0, fragments=1, body=body)
            except PacketError:
                self._give_up(key)
                raise
            del self._open[key]
            return whole
        if len(self._open) > self.MAX_OPEN:
            self._give_up(next(iter(self._open)))
        return None

    def _give_up(self, key: tuple[int, int]) -> None:
        del self._open[key]
        self.given_up += 1
