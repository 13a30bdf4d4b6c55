"""The header path: what is parsed of every message before anything is decoded. Millions of mutants a minute."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

from scene_edge.codec.errors import BundleError, PacketError, SeiError
from scene_edge.codec.manifest import load_manifest
from scene_edge.codec.packet import SemanticPacket
from scene_edge.codec.riders import carrier_of, read_riders
from scene_edge.codec.sei import ANCHOR_UUID, SEMANTIC_UUID, Anchor, read_anchor, read_sei, strip_sei
from scene_edge.codec.topics import Topics, parse
from scene_edge.codec.videomessage import VideoMessage
from scene_edge.edge.clock import SystemClock
from scene_edge.edge.config import MqttConfig
from scene_edge.edge.ledger import Ledger
from scene_edge.edge.publisher import Publisher, Voice
from scene_edge.edge.spool import Limits, MemorySpool, Record
from scene_edge.edge.spool_file import Head
from scene_edge.edge.transport import MemoryTransport
from tests.fuzz.engine import Target
from tests.fuzz.mutate import Documents, Place, Plain, Sealed
from tests.golden import recipes

# magic 4 | version, kind, codec, quality | flags, count | digest 8 | session | sequence, period | time | width, height
PACKET_PLACES: tuple[Place, ...] = (
    (4, 1), (5, 1), (6, 1), (7, 1), (8, 2), (10, 2), (20, 8), (28, 4), (32, 4), (36, 8), (44, 2), (46, 2),
)  # fmt: skip
# magic 4 | flags, fragment, fragments, count | session | sequence | time | width, height | UTC offset, or the body
VIDEO_PLACES: tuple[Place, ...] = (
    (4, 1), (5, 1), (6, 1), (7, 1), (8, 8), (16, 4), (20, 8), (28, 2), (30, 2), (32, 8), (40, 2),
)  # fmt: skip
ANCHOR_PLACES: tuple[Place, ...] = ((0, 1), (1, 8), (9, 4), (13, 8), (21, 8), (29, 1))
HEAD_PLACES: tuple[Place, ...] = ((0, 8), (8, 4), (12, 4), (16, 8), (24, 1), (25, 2), (27, 4))


class ChangedBytesError(Exception):
    """A message was taken that is not the one that its parts make: two byte strings say the same."""


def golden(*names: str) -> tuple[bytes, ...]:
    return tuple((recipes.FOLDER / name).read_bytes() for name in names)


def read_packet(data: bytes) -> SemanticPacket:
    packet = SemanticPacket.from_bytes(data)
    if packet.to_bytes() != data:
        raise ChangedBytesError(data.hex())
    return packet


def read_video(data: bytes) -> list[SemanticPacket]:
    """Table, access units and riders of a message; of a fragment the header."""
    message = VideoMessage.from_bytes(data)
    if message.to_bytes() != data:
        raise ChangedBytesError(data.hex())
    if message.fragments > 1:
        return []
    if sum(len(unit.data) for unit in message.units) > len(data):
        raise ChangedBytesError("access units longer than their message")
    return read_riders(message.riders, carrier_of(message))


def read_anchors(annexb: bytes) -> None:
    read_anchor(annexb)
    if read_sei(strip_sei(annexb, SEMANTIC_UUID), SEMANTIC_UUID):
        raise ChangedBytesError("a message is still there after it was taken out")
    strip_sei(annexb, ANCHOR_UUID)


def read_anchor_alone(data: bytes) -> None:
    if Anchor.from_bytes(data).to_bytes() != data:
        raise ChangedBytesError(data.hex())


def read_head(data: bytes) -> None:
    head = Head.from_bytes(data)
    if head is not None and head.to_bytes() != data:
        raise ChangedBytesError(data.hex())


def read_topic(data: bytes) -> None:
    parse(data.decode("utf-8", "surrogateescape"))


def read_manifest(data: bytes) -> None:
    if len(load_manifest(data).digest) != 32:
        raise ChangedBytesError("a digest of another length")


def ack_reader() -> Callable[[bytes], None]:
    """A publisher as it takes acknowledgements: it counts what it cannot use, and nothing comes out."""
    spool = MemorySpool(Limits(1_000_000), session=recipes.SESSION)
    voice = Voice(lambda: "online", lambda: b"{}", lambda: b"{}")
    publisher = Publisher(
        MemoryTransport(), spool, Ledger(), MqttConfig(), camera="gate-1", voice=voice, clock=SystemClock()
    )
    topic = Topics("gate-1").ack
    return lambda data: publisher._on_message(topic, data)


def heads() -> tuple[bytes, ...]:
    item = Record("video", b"", 7, (1, 2, 3), 6, session=recipes.SESSION, size=900)
    return tuple(Head(record, 123).to_bytes() for record in (item, replace(item, leaf="semantic", taken_ns=())))


def header_targets() -> list[Target]:
    packets = golden("packet_key.bin", "packet_delta.bin", "packet_birth.bin")
    videos = golden("video_key.bin", "video_batch.bin", "video_fragment.bin", "video_laden.bin")
    streams = golden("anchored.h264")
    anchors = golden("anchor.bin")
    topics = tuple(
        topic.encode() for topic in (Topics("gate-1").semantic, Topics("a").setting("crf"), Topics("b_2").state("x"))
    )
    manifest = {
        "format": 1, "name": "m", "kind": "smc", "version": "1", "counter": 3, "parameters": {"channels": 4},
        "files": {name: {"sha256": "0" * 64, "bytes": 4} for name in ("e.onnx", "g.safetensors")},
        "graphs": {"e": {
            "inputs": [{"name": "x", "dtype": "uint8", "shape": [1, None]}],
            "outputs": [{"name": "y", "dtype": "float32", "shape": [1]}],
            "artifacts": [{"engine": "onnx", "precision": "int8", "file": "e.onnx", "shape": [8, 8]}],
            "golden": {"file": "g.safetensors", "tolerance": 0.05},
        }},
    }  # fmt: skip
    ack = {"session": f"{recipes.SESSION:016x}", "seq": 3, "epoch": 1}
    return [
        Target("packet", Sealed(packets, PACKET_PLACES), read_packet, packets, (PacketError,), weight=40),
        Target("video", Sealed(videos, VIDEO_PLACES), read_video, videos, (PacketError,), weight=34),
        Target("anchor", Plain(anchors, ANCHOR_PLACES), read_anchor_alone, anchors, (SeiError,), weight=4),
        Target("sei", Plain(streams), read_anchors, streams, (SeiError,), weight=6),
        Target("head", Sealed(heads(), HEAD_PLACES), read_head, heads(), (), weight=8),
        Target("topic", Plain(topics), read_topic, topics, (PacketError,), weight=5),
        Target("ack", Documents([ack]), ack_reader(), (json.dumps(ack).encode(),), (), weight=2),
        Target(
            "manifest", Documents([manifest]), read_manifest, (json.dumps(manifest).encode(),), (BundleError,), weight=1
        ),
    ]
