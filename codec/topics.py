"""MQTT topic names of one camera, built and parsed; 3.1.1 features only, at most seven slashes."""

from __future__ import annotations

import re
import zlib
from typing import NamedTuple

from scene_edge.codec.errors import ConfigError, PacketError

PREFIX = "scene/1"
ALL_CAMERAS = f"{PREFIX}/+/+/#"
"""The filter with which a server that owns every shard subscribes."""

SHARDS = 256
MAX_TOPIC_CHARS = 256

LEAVES = frozenset({"semantic", "video", "status", "birth", "ledger", "ack", "tracks", "actions"})
KEYED_LEAVES = frozenset({"set", "state"})

_CAMERA = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KEY = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class TopicName(NamedTuple):
    """What a topic says. `leaf` holds the key too where there is one: "set/profile"."""

    shard: int
    camera: str
    leaf: str


def shard_of(camera: str) -> int:
    """The shard that owns a camera, 0..255.

    >>> shard_of("gate-1")
    105
    """
    return zlib.crc32(camera.encode("ascii")) % SHARDS


def shard_filter(shard: int) -> str:
    """The subscription filter for every camera of one shard."""
    if not 0 <= shard < SHARDS:
        raise ConfigError("no such shard", got=shard, allowed=f"0..{SHARDS - 1}")
    return f"{PREFIX}/{shard}/+/#"


class Topics:
    """The topics of one camera.

    >>> Topics("gate-1").semantic
    'scene/1/105/gate-1/semantic'

    Raises ConfigError for a camera id that cannot stand in a topic.
    """

    __slots__ = (
        "ack",
        "actions",
        "birth",
        "camera",
        "ledger",
        "root",
        "semantic",
        "shard",
        "status",
        "tracks",
        "video",
    )

    def __init__(self, camera: str) -> None:
        if not _CAMERA.fullmatch(camera):
            raise ConfigError("camera id is not usable in a topic", got=camera[:80], allowed="[A-Za-z0-9_-]{1,64}")
        self.camera = camera
        self.shard = shard_of(camera)
        self.root = f"{PREFIX}/{self.shard}/{camera}"
        self.semantic = f"{self.root}/semantic"
        self.video = f"{self.root}/video"
        self.status = f"{self.root}/status"
        self.birth = f"{self.root}/birth"
        self.ledger = f"{self.root}/ledger"
        self.ack = f"{self.root}/ack"
        self.tracks = f"{self.root}/tracks"
        self.actions = f"{self.root}/actions"

    def setting(self, key: str) -> str:
        """Where a wish for `key` is published; the camera answers on `state(key)`."""
        return f"{self.root}/set/{_checked_key(key)}"

    def state(self, key: str) -> str:
        """Where the camera keeps the retained value of `key`."""
        return f"{self.root}/state/{_checked_key(key)}"


def parse(topic: str) -> TopicName:
    """Split a topic into (shard, camera, leaf).

    >>> parse("scene/1/105/gate-1/set/profile")
    TopicName(shard=105, camera='gate-1', leaf='set/profile')

    Raises PacketError for anything but a topic of ours, a camera under a foreign shard included.
    """
    if len(topic) > MAX_TOPIC_CHARS:
        raise PacketError("topic is too long", got=len(topic), allowed=f"at most {MAX_TOPIC_CHARS} characters")
    parts = topic.split("/")
    if len(parts) not in (5, 6) or parts[:2] != PREFIX.split("/"):
        raise PacketError("not a topic of scene-edge", got=topic, allowed=f"{PREFIX}/<shard>/<camera>/<leaf>")
    shard, camera = parts[2], parts[3]
    if not _CAMERA.fullmatch(camera):
        raise PacketError("topic with a bad camera id", got=topic, allowed="[A-Za-z0-9_-]{1,64}")
    if shard != str(shard_of(camera)):
        raise PacketError("topic with a shard that does not own the camera", got=topic, allowed=str(shard_of(camera)))
    leaf = parts[4]
    if len(parts) == 5 and leaf in LEAVES:
        return TopicName(int(shard), camera, leaf)
    if len(parts) == 6 and leaf in KEYED_LEAVES and _KEY.fullmatch(parts[5]):
        return TopicName(int(shard), camera, f"{leaf}/{parts[5]}")
    raise PacketError(
        "topic with an unknown leaf", got=topic, allowed=", ".join(sorted(LEAVES)) + ", set/<key>, state/<key>"
    )


def _checked_key(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ConfigError("key is not usable in a topic", got=key[:80], allowed="[A-Za-z0-9_.-]{1,64}")
    return key
