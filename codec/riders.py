"""Semantic packets that ride in a video message: what the message says already is not said again.

A packet of its own costs a header, a topic and an acknowledgement, 170 bytes in all, which is more than the semantics
of a quiet GOP. A rider, as varints where nothing else is said:

    kind u8 | codec id u8 | quality u8 | flags | count | bundle digest, 8 bytes | first sequence of the message less the
    packet's, signed | frame period in ns | capture time of the packet's first frame less what message, sequence and
    period foretell, signed, ns | length of the body | body

Session and size are the message's. Riders follow one another without a gap.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from scene_edge.codec.errors import PacketError
from scene_edge.codec.packet import DELTA, DIGEST_BYTES, KEY, MAX_BODY_BYTES, SemanticPacket
from scene_edge.codec.varints import read_varint, unzigzag, write_varint, zigzag
from scene_edge.codec.videomessage import MAX_RIDERS_BYTES, VideoMessage

_FLAGS_BYTES, _NUMBER_BYTES, _TIME_BYTES = 3, 5, 10
_LENGTH_BYTES = 3


class Carrier(NamedTuple):
    """What riders take over from their message: session, first sequence, its capture time in ns, width, height."""

    session_id: int
    first_seq: int
    capture_ns: int
    width: int
    height: int


def carrier_of(message: VideoMessage) -> Carrier:
    """What the riders of a message take over from it."""
    return Carrier(message.session_id, message.first_seq, message.capture_ns, message.width, message.height)


def write_riders(packets: Iterable[SemanticPacket], carrier: Carrier) -> bytes:
    """Raises PacketError for a packet of another session or size, for one of no latents, and for too many bytes."""
    data = b"".join(write_rider(packet, carrier) for packet in packets)
    if len(data) > MAX_RIDERS_BYTES:
        raise PacketError("too many semantics for one video message", got=len(data), allowed=MAX_RIDERS_BYTES)
    return data


def write_rider(packet: SemanticPacket, carrier: Carrier) -> bytes:
    """One of them."""
    if packet.kind not in (KEY, DELTA):
        raise PacketError("only latents ride with video", got=packet.kind, allowed=f"{KEY:d}, {DELTA:d}")
    same = packet.session_id, packet.width, packet.height
    if same != (carrier.session_id, carrier.width, carrier.height):
        raise PacketError("a packet cannot ride with the video of another session or size", got=same[1:])
    back = carrier.first_seq - packet.first_seq
    late_ns = packet.capture_ns - carrier.capture_ns + back * packet.frame_period_ns
    return b"".join(
        (
            bytes((packet.kind, packet.codec_id, packet.quality)),
            write_varint(packet.flags),
            write_varint(packet.count),
            packet.bundle_digest,
            write_varint(zigzag(back)),
            write_varint(packet.frame_period_ns),
            write_varint(zigzag(late_ns)),
            write_varint(len(packet.body)),
            packet.body,
        )
    )


def read_riders(data: bytes, carrier: Carrier) -> list[SemanticPacket]:
    """The inverse of `write_riders`. Raises PacketError, and nothing else, for anything else."""
    if len(data) > MAX_RIDERS_BYTES:
        raise PacketError("too many semantics for one video message", got=len(data), allowed=MAX_RIDERS_BYTES)
    packets, at = [], 0
    while at < len(data):
        packet, at = _read_rider(data, at, carrier)
        packets.append(packet)
    return packets


def _read_rider(data: bytes, at: int, carrier: Carrier) -> tuple[SemanticPacket, int]:
    if len(data) - at < 3:
        raise PacketError("semantics are cut short in a video message", got=f"{len(data) - at} bytes")
    kind, codec_id, quality = data[at : at + 3]
    if kind not in (KEY, DELTA):
        raise PacketError("only latents ride with video", got=kind, allowed=f"{KEY:d}, {DELTA:d}")
    flags, at = read_varint(data, at + 3, _FLAGS_BYTES)
    count, at = read_varint(data, at, _FLAGS_BYTES)
    digest, at = data[at : at + DIGEST_BYTES], at + DIGEST_BYTES
    back, at = read_varint(data, at, _NUMBER_BYTES)
    period_ns, at = read_varint(data, at, _NUMBER_BYTES)
    late_ns, at = read_varint(data, at, _TIME_BYTES)
    length, at = read_varint(data, at, _LENGTH_BYTES)
    if length > min(MAX_BODY_BYTES, len(data) - at):
        raise PacketError("semantics are cut short in a video message", got=f"{len(data) - at} of {length} bytes")
    packet = SemanticPacket(
        kind=kind,
        codec_id=codec_id,
        bundle_digest=digest,
        session_id=carrier.session_id,
        first_seq=carrier.first_seq - unzigzag(back),
        capture_ns=carrier.capture_ns - unzigzag(back) * period_ns + unzigzag(late_ns),
        width=carrier.width,
        height=carrier.height,
        frame_period_ns=period_ns,
        flags=flags,
        quality=quality,
        count=count,
        body=data[at : at + length],
    )
    return packet, at + length
