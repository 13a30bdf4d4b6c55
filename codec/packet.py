"""The semantic packet: one GOP of entropy-coded latents behind a fixed binary header.

Layout, little endian, 48 bytes of header:

    magic "SCE1" | version u8 | kind u8 | codec id u8 | quality u8 | flags u16 | count u16 | bundle digest 8 bytes |
    session u64 | first sequence u32 | frame period u32 ns | capture time of the first frame i64 ns |
    width u16 | height u16

then the body, one for all `count` frames, then CRC-32C u32 over all of it. Every number is checked against its limit
before anything is allocated.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from scene_edge.codec.checksum import crc32c
from scene_edge.codec.errors import PacketError
from scene_edge.codec.identity import MAX_FRAME_SEQ, MAX_SESSION_ID, MAX_TIME_NS
from scene_edge.codec.planes import MAX_SIDE
from scene_edge.codec.videomessage import VideoAssembler, VideoMessage, split_video

__all__ = [
    "AUDIT",
    "BIRTH",
    "CODEC_NONE",
    "CODEC_SMC_GOP",
    "DELTA",
    "FLAG_GOP_CUT",
    "KEY",
    "LEDGER",
    "MAX_FRAMES",
    "MAX_PACKET_BYTES",
    "PacketKind",
    "SemanticPacket",
    "VideoAssembler",
    "VideoMessage",
    "split_video",
]

MAGIC = b"SCE1"
VERSION = 1
_HEADER = struct.Struct("<4sBBBBHH8sQIIqHH")
_CRC = struct.Struct("<I")

MAX_PACKET_BYTES = 131_072
MAX_FRAMES = 512
MAX_FRAME_PERIOD_NS = 2**32 - 1
DIGEST_BYTES = 8
MAX_BODY_BYTES = MAX_PACKET_BYTES - _HEADER.size - _CRC.size


class PacketKind(IntEnum):
    """Wire ids: never renumbered, never reused."""

    KEY = 1
    """Begins with no context: latents and network states start from zero."""
    DELTA = 2
    """Goes on where the session's packet before it ended."""
    AUDIT = 3
    """A near-lossless clip for measuring agreement."""
    BIRTH = 4
    """Capabilities, model, encoder in use, degraded reasons, as JSON."""
    LEDGER = 5
    """Counters, as JSON."""


KEY, DELTA, AUDIT, BIRTH, LEDGER = PacketKind

CODEC_NONE = 0
CODEC_SMC_GOP = 2
"""The latents of all frames as one rANS message of `scene_edge.codec.latents`. 1 was a message for each frame; it is
never reused."""

FLAG_GOP_CUT = 1
"""In `flags`: the later frames of this GOP have no semantics, so a server need not wait for them."""

_DOCUMENTS = (BIRTH, LEDGER)


@dataclass(frozen=True, slots=True)
class SemanticPacket:
    """`body` codes the `count` frames from `first_seq` on; an empty one says that all their latents are zero.

    `capture_ns` is the first frame's, the others follow at `frame_period_ns`. `quality` indexes the bundle's steps.
    `bundle_digest` is the first 8 bytes of the digest of the bundle that made it.
    """

    kind: int
    codec_id: int
    bundle_digest: bytes
    session_id: int
    first_seq: int
    capture_ns: int
    width: int
    height: int
    frame_period_ns: int
    flags: int
    quality: int
    count: int
    body: bytes

    def __post_init__(self) -> None:
        if self.kind not in set(PacketKind):
            raise PacketError("unknown kind of packet", got=self.kind, allowed=", ".join(map(str, PacketKind)))
        if len(self.bundle_digest) != DIGEST_BYTES:
            raise PacketError("bundle digest of the wrong length", got=len(self.bundle_digest), allowed=DIGEST_BYTES)
        for name, value, limit in (
            ("codec id", self.codec_id, 0xFF),
            ("quality", self.quality, 0xFF),
            ("flags", self.flags, 0xFFFF),
            ("session", self.session_id, MAX_SESSION_ID),
            ("frame period", self.frame_period_ns, MAX_FRAME_PERIOD_NS),
        ):
            if not 0 <= value <= limit:
                raise PacketError(f"{name} out of range", got=value, allowed=f"0..{limit}")
        if abs(self.capture_ns) > MAX_TIME_NS:
            raise PacketError("capture time out of range", got=self.capture_ns, allowed="a signed 64-bit number of ns")
        _check_count(self.kind, self.count, self.first_seq)
        _check_size(self.kind, self.width, self.height)

    @property
    def last_seq(self) -> int:
        return self.first_seq + self.count - 1

    def to_bytes(self) -> bytes:
        """Raises PacketError if the whole is longer than MAX_PACKET_BYTES."""
        if len(self.body) > MAX_BODY_BYTES:
            raise PacketError(
                "packet is too long",
                got=f"a body of {len(self.body)} bytes",
                allowed=f"at most {MAX_BODY_BYTES}",
                hint="Put fewer frames into one packet.",
            )
        header = _HEADER.pack(
            MAGIC,
            VERSION,
            self.kind,
            self.codec_id,
            self.quality,
            self.flags,
            self.count,
            self.bundle_digest,
            self.session_id,
            self.first_seq,
            self.frame_period_ns,
            self.capture_ns,
            self.width,
            self.height,
        )
        data = header + self.body
        return data + _CRC.pack(crc32c(data))

    @classmethod
    def from_bytes(cls, data: bytes) -> SemanticPacket:
        """Raises PacketError, and nothing else, for anything but the exact bytes of a packet."""
        checked = _without_crc(data)
        (
            _,
            version,
            kind,
            codec_id,
            quality,
            flags,
            count,
            digest,
            session,
            first_seq,
            period,
            capture,
            width,
            height,
        ) = _HEADER.unpack_from(checked)
        if version != VERSION:
            raise PacketError("packet of another version", got=version, allowed=VERSION, hint="Update this end.")
        return cls(
            kind,
            codec_id,
            digest,
            session,
            first_seq,
            capture,
            width,
            height,
            period,
            flags,
            quality,
            count,
            checked[_HEADER.size :],
        )


def _check_count(kind: int, count: int, first_seq: int) -> None:
    allowed = 1 if kind in _DOCUMENTS else MAX_FRAMES
    if not 1 <= count <= allowed:
        raise PacketError("number of frames out of range", got=count, allowed=f"1..{allowed}")
    if not 0 <= first_seq <= MAX_FRAME_SEQ - count + 1:
        raise PacketError("frame sequence out of range", got=first_seq, allowed=f"0..{MAX_FRAME_SEQ - count + 1}")


def _check_size(kind: int, width: int, height: int) -> None:
    if kind in _DOCUMENTS and width == height == 0:
        return
    for side in (width, height):
        if not 2 <= side <= MAX_SIDE or side % 2:
            raise PacketError("picture size out of range", got=f"{width}x{height}", allowed=f"even, 2..{MAX_SIDE}")


def _without_crc(data: bytes) -> bytes:
    """`data` without its CRC, once length, magic and CRC are right."""
    least = _HEADER.size + _CRC.size
    if not least <= len(data) <= MAX_PACKET_BYTES:
        raise PacketError(
            "message length out of range", got=f"{len(data)} bytes", allowed=f"{least}..{MAX_PACKET_BYTES}"
        )
    if data[:4] != MAGIC:
        raise PacketError("message does not begin with its magic", got=data[:4].hex(), allowed=MAGIC.hex())
    checked = data[: -_CRC.size]
    (stated,) = _CRC.unpack_from(data, len(checked))
    if crc32c(checked) != stated:
        raise PacketError("message is damaged: its CRC-32C does not fit", got=f"{stated:08x}")
    return checked
