"""Topics: built and parsed alike, and refused where they are not ours."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scene_edge.codec.errors import ConfigError, PacketError
from scene_edge.codec.identity import new_session_id, session_hex
from scene_edge.codec.topics import ALL_CAMERAS, LEAVES, Topics, parse, shard_filter, shard_of

cameras = st.text("abcXYZ019_-", min_size=1, max_size=64)


@given(cameras)
def test_every_topic_parses_back(camera: str) -> None:
    topics = Topics(camera)
    assert topics.shard == zlib.crc32(camera.encode()) % 256
    for leaf in LEAVES:
        assert parse(getattr(topics, leaf)) == (topics.shard, camera, leaf)
    assert parse(topics.setting("profile")) == (topics.shard, camera, "set/profile")
    assert parse(topics.state("gop.length")) == (topics.shard, camera, "state/gop.length")
    assert topics.setting("profile").count("/") <= 7


@pytest.mark.parametrize("camera", ["", "a" * 65, "a/b", "a+", "#", "käse", "a b", "a\n", "a\x00"])
def test_camera_ids_that_cannot_stand_in_a_topic(camera: str) -> None:
    with pytest.raises(ConfigError, match="camera id"):
        Topics(camera)


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "scene/1",
        "scene/2/105/gate-1/video",
        "other/1/105/gate-1/video",
        "scene/1/104/gate-1/video",
        "scene/1/0105/gate-1/video",
        "scene/1/x/gate-1/video",
        "scene/1/105/gate-1/nothing",
        "scene/1/105/gate-1/video/more",
        "scene/1/105/gate-1/set",
        "scene/1/105/gate-1/set/",
        "scene/1/105/gate-1/set/a/b",
        "scene/1/105/gate+1/video",
        "scene/1/105/gate-1/" + "v" * 400,
    ],
)
def test_foreign_topics_are_refused(topic: str) -> None:
    with pytest.raises(PacketError):
        parse(topic)


@given(st.text(max_size=80))
def test_random_topics_raise_nothing_else(topic: str) -> None:
    with pytest.raises(PacketError):
        parse(topic)


def test_filters_and_keys() -> None:
    assert ALL_CAMERAS == "scene/1/+/+/#"
    assert shard_filter(shard_of("gate-1")) == "scene/1/105/+/#"
    with pytest.raises(ConfigError):
        shard_filter(256)
    with pytest.raises(ConfigError):
        Topics("gate-1").setting("a/b")


def test_sessions_differ_and_have_one_name() -> None:
    ids = {new_session_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(0 < value < 2**64 for value in ids)
    assert session_hex(255) == "00000000000000ff"
