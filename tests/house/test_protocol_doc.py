"""docs/protocol.md against the code: somebody who reads only the tables finds every field where they say it is."""

from __future__ import annotations

import re
import struct
import zlib

import pytest

from scene_edge.codec.identity import AccessUnit
from scene_edge.codec.packet import KEY, SemanticPacket
from scene_edge.codec.sei import ANCHOR_UUID, SEMANTIC_UUID, Anchor
from scene_edge.codec.topics import Topics
from scene_edge.codec.videomessage import VideoMessage, split_video
from tests.data import REPOSITORY

TEXT = (REPOSITORY / "docs/protocol.md").read_text()
TYPES = {"u8": "<B", "u16": "<H", "u32": "<I", "u64": "<Q", "i64": "<q"}


def fields(section: str, data: bytes) -> dict[str, object]:
    """Read `data` by the table of the section: the field's first words -> value."""
    table = TEXT.partition(f"## {section}")[2].partition("\n## ")[0]
    found: dict[str, object] = {}
    for offset, kind, name in re.findall(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \|$", table, re.MULTILINE):
        at, label = int(offset), re.split(r"[:,]", name)[0].strip()
        if kind.strip().endswith("bytes"):
            count = int(kind.split()[0])
            found[label] = data[at : at + count]
        elif kind.strip() in TYPES:
            (found[label],) = struct.unpack_from(TYPES[kind.strip()], data, at)
        elif kind.strip() == "u16, u16":
            found["size"] = struct.unpack_from("<HH", data, at)
    assert found, f"no table in {section}"
    return found


def test_semantic_packet() -> None:
    packet = SemanticPacket(
        KEY, 2, bytes(range(8)), 0x1122334455667788, 77, -5, 960, 540, 33_333_333, 1, 3, 30, b"ab" + b"c" * 200
    )
    data = packet.to_bytes()
    read = fields("Semantic packet", data)
    assert read["`SCE1`"] == b"SCE1"
    assert (read["version"], read["kind"], read["codec id"], read["quality"], read["flags"]) == (1, 1, 2, 3, 1)
    assert read["number of frames"] == 30
    assert read["the first 8 bytes of the bundle's digest"] == bytes(range(8))
    assert read["session"] == 0x1122334455667788
    assert (read["sequence of the first frame"], read["frame period"]) == (77, 33_333_333)
    assert (read["capture time of the first frame"], read["size"]) == (-5, (960, 540))
    assert data[48:-4] == b"ab" + b"c" * 200


def test_video_message() -> None:
    data = VideoMessage(9, 8, 7, 6, 5, 1, 3, 640, 360, b"\0\0\1\x65").to_bytes()
    read = fields("Video message", data)
    assert read["`SCV1`"] == b"SCV1"
    assert (read["flags"], read["number of this fragment"], read["number of fragments"]) == (1, 1, 3)
    assert (read["number of access units"], read["session"]) == (5, 9)
    assert (read["sequence of the first"], read["capture time of the first"], read["size"]) == (8, 7, (640, 360))
    assert read["UTC offset of the first"] == 6
    assert data[40:-4] == b"\0\0\1\x65"


def test_the_table_of_a_video_message() -> None:
    units = [
        AccessUnit(b"k" * 200, 8, 1000, True, 6),
        AccessUnit(b"a", 9, 1100, False, 6),
        AccessUnit(b"bc", 10, 1190, False, 4),
    ]
    (message,) = split_video(units, session_id=9, width=640, height=360)
    entries = [0x91, 0x03, 2, 0xC8, 0x01, 0, 4, 2 * 10 - 1, 2 * 2 - 1]
    assert message.body == bytes(entries) + b"k" * 200 + b"abc"


def test_anchor() -> None:
    data = Anchor(5, 4, 3, 2, 1).to_bytes()
    assert struct.unpack("<BQIqqB", data) == (1, 5, 4, 3, 2, 1)


@pytest.mark.parametrize("uuid", [ANCHOR_UUID, SEMANTIC_UUID])
def test_uuids(uuid: object) -> None:
    assert f"`{uuid}`" in TEXT


def test_topics() -> None:
    topics = Topics("gate-1")
    assert topics.semantic == f"scene/1/{zlib.crc32(b'gate-1') % 256}/gate-1/semantic"
    for leaf in ("video", "semantic", "status", "birth", "ledger", "ack", "tracks", "actions"):
        assert f"/{leaf}`" in TEXT
        assert getattr(topics, leaf).endswith(f"/{leaf}")
