"""The server's configuration: precedence, and errors that name their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from scene_edge.codec.errors import ConfigError
from scene_edge.server.config import cores, load_config, parse_listen


def test_command_line_beats_environment_beats_file(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("join:\n  deadline_ms: 1000\n  max_frames: 100\nlimits:\n  commit_ms: 50\n")
    environ = {"SCENE_EDGE_SERVER_JOIN__DEADLINE_MS": "2000", "SCENE_EDGE_SERVER_DATABASE": "sqlite:///x.db"}
    config = load_config(file, environ=environ, overrides={"limits.commit_ms": 70})
    assert (config.join.deadline_ms, config.join.max_frames, config.limits.commit_ms) == (2000, 100, 70)
    assert config.database == "sqlite:///x.db"


def test_defaults_need_nothing() -> None:
    config = load_config(environ={"SCENE_EDGE_VIDEO__CRF": "30"})
    assert config.web.host == "127.0.0.1"
    assert config.join.deadline_ms == 3000


def test_off_is_a_word(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("analytics:\n  detector: off\n")
    assert load_config(file, environ={}).analytics.detector == "off"


def test_secrets_are_not_shown() -> None:
    config = load_config(environ={}, overrides={"broker.url": "mqtts://me:secret@broker.example:8884"})
    assert "secret" not in repr(config)
    assert config.broker.shown == "mqtts://broker.example:8884"
    assert config.broker.credentials == ("me", "secret")
    assert config.broker.tls
    with pytest.raises(ConfigError) as caught:
        load_config(environ={}, overrides={"broker.url": "http://me:secret@broker"})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("join:\n  deadline_ms: soon\n", r"server.yaml:2: join.deadline_ms"),
        ("web:\n  port: 8080\n\nnonsense: 1\n", r"server.yaml:4: nonsense"),
        ("join: [1, 2\n", r"server.yaml:\d: not YAML"),
        ("- 1\n", r"server.yaml:1: a configuration is a mapping"),
        ("broker:\n  url: 127.0.0.1\n", r"server.yaml:2: broker.url"),
    ],
)
def test_a_wrong_file_names_its_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(file, environ={})


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(ConfigError, match="SCENE_EDGE_SERVER_WEB__PORT"):
        load_config(environ={"SCENE_EDGE_SERVER_WEB__PORT": "70000"})
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(Path("/no/such/file.yaml"), environ={})


def test_addresses() -> None:
    assert parse_listen("0.0.0.0:80") == ("0.0.0.0", 80)
    assert parse_listen(":8080") == ("127.0.0.1", 8080)
    assert parse_listen("[::1]:8080") == ("::1", 8080)
    for wrong in ("", "host", "host:", "host:99999", "host:x"):
        with pytest.raises(ConfigError, match="address"):
            parse_listen(wrong)


@pytest.mark.parametrize(("said", "count"), [(1, 1), (3, 3), ("auto", cores())])
def test_worker_processes(said: object, count: int) -> None:
    assert load_config(environ={}, overrides={"engine.processes": said}).engine.count == count


@pytest.mark.parametrize("said", [0, -1, 257, "many", 1.5])
def test_no_number_of_worker_processes(said: object) -> None:
    with pytest.raises(ConfigError, match=r"engine\.processes"):
        load_config(environ={}, overrides={"engine.processes": said})
