"""User-data-unregistered SEI in H.264: the identity anchor in a stream, and semantic packets inside recordings."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from scene_edge.codec.annexb import NAL_IDR, NAL_SEI, NAL_SLICE, Nal, escape, iter_nals, to_annexb, unescape
from scene_edge.codec.errors import SeiError
from scene_edge.codec.identity import MAX_FRAME_SEQ, MAX_SESSION_ID, MAX_TIME_NS

__all__ = [
    "ANCHOR_UUID",
    "MAX_SEI_BYTES",
    "SEMANTIC_UUID",
    "UTC_FREE_RUNNING",
    "UTC_LOCKED",
    "UTC_UNKNOWN",
    "Anchor",
    "Nal",
    "insert_sei",
    "iter_nals",
    "read_anchor",
    "read_sei",
    "strip_sei",
    "to_annexb",
]

ANCHOR_UUID = UUID("5ce9e0ed-6e00-4a0c-8f1d-a1c0de5ce001")
SEMANTIC_UUID = UUID("5ce9e0ed-6e00-4a0c-8f1d-a1c0de5ce002")

MAX_SEI_BYTES = 131_072
"""Largest payload written or read: one semantic packet."""

UTC_UNKNOWN, UTC_FREE_RUNNING, UTC_LOCKED = 0, 1, 2
"""How far a UTC offset can be trusted: never set; from a clock that nobody disciplines; locked to NTP or PTP."""

_USER_DATA_UNREGISTERED = 5
_ANCHOR_VERSION = 1
# version u8, session u64, sequence u32, capture time i64 ns, UTC offset i64 ns, quality of the offset u8
_ANCHOR = struct.Struct("<BQIqqB")


@dataclass(frozen=True, slots=True)
class Anchor:
    """The identity of the picture in whose access unit it stands."""

    session_id: int
    frame_seq: int
    capture_ns: int
    utc_offset_ns: int = 0
    utc_quality: int = UTC_UNKNOWN

    def __post_init__(self) -> None:
        if not (0 <= self.session_id <= MAX_SESSION_ID and 0 <= self.frame_seq <= MAX_FRAME_SEQ):
            raise SeiError("anchor out of range", got=f"session {self.session_id}, sequence {self.frame_seq}")
        if not (abs(self.capture_ns) <= MAX_TIME_NS and abs(self.utc_offset_ns) <= MAX_TIME_NS):
            raise SeiError("anchor time out of range", got=f"{self.capture_ns} ns, offset {self.utc_offset_ns} ns")
        if self.utc_quality not in (UTC_UNKNOWN, UTC_FREE_RUNNING, UTC_LOCKED):
            raise SeiError("unknown quality of a UTC offset", got=self.utc_quality, allowed="0, 1, 2")

    def to_bytes(self) -> bytes:
        return _ANCHOR.pack(
            _ANCHOR_VERSION, self.session_id, self.frame_seq, self.capture_ns, self.utc_offset_ns, self.utc_quality
        )

    @classmethod
    def from_bytes(cls, payload: bytes) -> Anchor:
        """Raises SeiError if `payload` is no anchor of a version that this code reads."""
        if not payload or payload[0] != _ANCHOR_VERSION:
            raise SeiError("anchor of an unknown version", got=payload[:1].hex(), allowed=_ANCHOR_VERSION)
        if len(payload) != _ANCHOR.size:
            raise SeiError("anchor of the wrong length", got=len(payload), allowed=_ANCHOR.size)
        return cls(*_ANCHOR.unpack(payload)[1:])


def insert_sei(annexb: bytes, payload: bytes, uuid: UUID) -> bytes:
    """The access unit with one SEI message more, after SPS, PPS and other SEI and before the first slice.

    Raises SeiError if the access unit holds no slice or the payload is too long.
    """
    if len(payload) > MAX_SEI_BYTES:
        raise SeiError("SEI payload is too long", got=f"{len(payload)} bytes", allowed=f"at most {MAX_SEI_BYTES}")
    at = _first_slice(annexb)
    return b"".join((annexb[:at], b"\x00\x00\x00\x01", _sei_nal(payload, uuid), annexb[at:]))


def read_sei(annexb: bytes, uuid: UUID) -> list[bytes]:
    """The payloads of every SEI message with this UUID, in order. Raises SeiError for a message past its NAL unit."""
    return [body[16:] for nal in _sei_nals(annexb) for body in _bodies(nal) if body[:16] == uuid.bytes]


def read_anchor(annexb: bytes) -> Anchor | None:
    """The first identity anchor of an access unit, None where there is none."""
    payloads = read_sei(annexb, ANCHOR_UUID)
    return Anchor.from_bytes(payloads[0]) if payloads else None


def strip_sei(annexb: bytes, uuid: UUID) -> bytes:
    """The access unit without the SEI NAL units that hold a message with this UUID (ours hold no other message)."""
    out = []
    kept = 0
    for nal in _sei_nals(annexb):
        if any(body[:16] == uuid.bytes for body in _bodies(nal)):
            out.append(annexb[kept : nal.start])
            kept = nal.end
    return b"".join((*out, annexb[kept:])) if out else annexb


def _first_slice(annexb: bytes) -> int:
    for nal in iter_nals(annexb):
        if NAL_SLICE <= nal.type <= NAL_IDR:
            return nal.start
    raise SeiError("no slice in the access unit, so nowhere to put an SEI message", got=f"{len(annexb)} bytes")


def _sei_nals(annexb: bytes) -> Iterator[Nal]:
    """The SEI NAL units before the first slice: a large picture behind them is not searched."""
    for nal in iter_nals(annexb):
        if NAL_SLICE <= nal.type <= NAL_IDR:
            return
        if nal.type == NAL_SEI:
            yield nal


def _sei_nal(payload: bytes, uuid: UUID) -> bytes:
    size = 16 + len(payload)
    header = bytes([_USER_DATA_UNREGISTERED]) + b"\xff" * (size // 255) + bytes([size % 255])
    return bytes([NAL_SEI]) + escape(header + uuid.bytes + payload + b"\x80")


def _bodies(nal: Nal) -> Iterator[bytes]:
    """The user-data-unregistered bodies (UUID first) of one SEI NAL unit."""
    rbsp = unescape(nal.data[1:])
    at = 0
    # What ends an RBSP is one byte 0x80, or nothing where a careless muxer cut it. Looked at once: a copy of the rest
    # for each message would make a NAL unit of many empty ones cost the square of its length.
    end = len(rbsp) - 1 if rbsp.endswith(b"\x80") else len(rbsp)
    while at < end:
        kind, at = _read_ff_coded(rbsp, at)
        size, at = _read_ff_coded(rbsp, at)
        if size > len(rbsp) - at:
            raise SeiError("SEI message runs past its NAL unit", got=f"{size} bytes", allowed=f"{len(rbsp) - at} left")
        if kind == _USER_DATA_UNREGISTERED and size >= 16:
            yield rbsp[at : at + size]
        at += size


def _read_ff_coded(rbsp: bytes, at: int) -> tuple[int, int]:
    value = 0
    while at < len(rbsp):
        byte = rbsp[at]
        value += byte
        at += 1
        if byte != 0xFF:
            return value, at
    raise SeiError("SEI message is cut short", got=f"{len(rbsp)} bytes")
