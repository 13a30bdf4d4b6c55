"""Settings: what outweighs what, what is refused, and that the refusal names the place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scene_edge.codec.errors import ConfigError
from scene_edge.edge.board import detect_profile
from scene_edge.edge.config import PROFILES, broker_address, public_key_of
from scene_edge.edge.settings import json_schema, load_config, profile_text, validate_file


def test_each_layer_outweighs_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "camera.yaml"
    file.write_text("video:\n  crf: 30\n  gop: 20\n  preset: veryfast\n")
    environment = {"SCENE_EDGE_VIDEO__GOP": "25", "SCENE_EDGE_VIDEO__PRESET": "fast"}
    config = load_config("cpu", file, ["video.preset=medium"], environment)
    assert (config.video.crf, config.video.gop, config.video.preset) == (30, 25, "medium")
    assert config.profile == "cpu"
    assert config.scene.engines == ("auto", "openvino", "onnx", "litert")


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_loads_and_is_commented(name: str) -> None:
    config = load_config(name, environment={})
    assert config.profile == (detect_profile() if name == "auto" else name)
    assert profile_text(name).count("#") >= 5


def test_every_key_can_come_from_the_environment() -> None:
    environment = {
        "SCENE_EDGE_CAMERA": "gate-1",
        "SCENE_EDGE_SOURCE__URL": "testsrc:",
        "SCENE_EDGE_SCENE__ENABLED": "false",
        "SCENE_EDGE_SCENE__ENGINES": "[onnx]",
        "SCENE_EDGE_MQTT__PASSWORD": "1234",
        "SCENE_EDGE_VIDEO__BITRATE_KBPS": "null",
    }
    config = load_config("cpu", environment=environment)
    assert config.camera == "gate-1"
    assert config.source.url == "testsrc:"
    assert not config.scene.enabled
    assert config.scene.engines == ("onnx",)
    assert config.mqtt.password is not None
    assert config.mqtt.password.get_secret_value() == "1234"
    assert "1234" not in repr(config)


def test_a_file_may_name_its_profile(tmp_path: Path) -> None:
    file = tmp_path / "camera.yaml"
    file.write_text("profile: rpi5\nvideo:\n  gop: 20\n")
    for profile, expected, width in (("auto", "rpi5", 960), ("cpu", "cpu", None)):
        config = load_config(profile, file, environment={})
        assert (config.profile, config.video.width, config.video.gop) == (expected, width, 20)


def test_foreign_variables_are_left_alone() -> None:
    load_config("cpu", environment={"SCENE_EDGE_DATA": "/data", "SCENE_EDGE_SERVER_JOIN__DEADLINE_MS": "1"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("video:\n  crf: 99\n", ["camera.yaml:2", "video.crf", "less than or equal to 51", "99"]),
        ("video:\n  quality: 1\n", ["camera.yaml:2", "video.quality", "no such key", "crf"]),
        ("videos: 1\n", ["camera.yaml:1", "videos", "no such key", "video"]),
        ("camera: a b\n", ["camera.yaml:1", "camera"]),
        ("video: 3\n", ["camera.yaml:1", "video"]),
        ("video:\n  crf: 1\n  crf: 2\n", ["camera.yaml:3", "twice"]),
        ("video: [\n", ["camera.yaml:2", "YAML"]),
        ("- a\n", ["camera.yaml:1", "mapping"]),
        ("mqtt:\n  broker: http://x\n", ["camera.yaml:2", "mqtt://"]),
        ("mqtt:\n  broker: mqtt://user:secret@x\n", ["camera.yaml:2", "password"]),
        ("mqtt:\n  cert_file: a.pem\n", ["camera.yaml:1", "key_file"]),
        ("video:\n  candidates: [auto]\n", ["camera.yaml:2", "candidates"]),
        ("camera: a\nprofile: pentium\n", ["camera.yaml:2", "profile", "pentium"]),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "camera.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        validate_file(file)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_secret_is_not_repeated_in_an_error() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("cpu", overrides=["mqtt.broker=mqtt://u:hunter2@h"], environment={})
    assert "must not hold a password" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_files_that_are_no_text_or_missing(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    with pytest.raises(ConfigError, match="cannot read"):
        validate_file(missing)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        validate_file(binary)
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (1 << 20) + b"#")
    with pytest.raises(ConfigError, match="too large"):
        validate_file(large)


def test_an_empty_file_is_the_profile_alone(tmp_path: Path) -> None:
    file = tmp_path / "camera.yaml"
    file.write_text("# nothing\n")
    assert validate_file(file) == load_config("cpu", environment={})


@pytest.mark.parametrize("override", ["video.crf", "=3", "video..crf=3", "camera.x=1", "video.crf=[", "nothing.here=1"])
def test_a_bad_override_is_refused(override: str) -> None:
    with pytest.raises(ConfigError):
        load_config("cpu", overrides=["camera=a", override], environment={})


def test_the_schema_knows_every_section() -> None:
    schema = json.loads(json_schema())
    assert set(schema["properties"]) >= {"camera", "source", "scene", "video", "semantics", "mqtt", "queues", "spool"}
    assert schema["$defs"]["VideoConfig"]["properties"]["crf"]["maximum"] == 51


@pytest.mark.parametrize(
    ("model", "nodes", "profile"),
    [
        ("Raspberry Pi 4 Model B Rev 1.4", [], "rpi4"),
        ("Raspberry Pi 5 Model B Rev 1.0", [], "rpi5"),
        ("NVIDIA Jetson Orin Nano Developer Kit", [], "jetson"),
        ("Intel(R) N100", ["/dev/dri/renderD128"], "intel"),
        ("Intel(R) N100", [], "cpu"),
        ("AMD EPYC", ["/dev/dri/renderD128"], "cpu"),
    ],
)
def test_auto_takes_the_profile_of_the_board(model: str, nodes: list[str], profile: str) -> None:
    assert detect_profile(model, nodes) == profile


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("mqtt://h", ("h", 1883, False)),
        ("mqtts://h", ("h", 8883, True)),
        ("mqtt://[::1]:99", ("::1", 99, False)),
    ],
)
def test_broker_addresses(url: str, address: tuple[str, int, bool]) -> None:
    assert broker_address(url) == address


@pytest.mark.parametrize("url", ["h:1883", "mqtt://", "mqtt://h:99999", "mqtt://h/path", "mqtt://[::1"])
def test_bad_broker_addresses(url: str) -> None:
    with pytest.raises(ValueError):
        broker_address(url)


def test_public_keys_raw_and_hexadecimal(tmp_path: Path) -> None:
    key = bytes(range(32))
    for name, content in (("raw", key), ("hex", key.hex().encode() + b"\n")):
        path = tmp_path / name
        path.write_bytes(content)
        config = load_config("cpu", overrides=[f"bundles.public_key_file={path}"], environment={})
        assert public_key_of(config) == key
    (tmp_path / "short").write_bytes(b"no key")
    config = load_config("cpu", overrides=[f"bundles.public_key_file={tmp_path / 'short'}"], environment={})
    with pytest.raises(ValueError, match="Ed25519"):
        public_key_of(config)
