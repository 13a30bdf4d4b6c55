"""The server's configuration: frozen pydantic models, read from defaults < YAML file < environment < command line.

Every key can be set as SCENE_EDGE_SERVER_<SECTION>__<KEY>, such as SCENE_EDGE_SERVER_JOIN__DEADLINE_MS=2000. Errors
name the file and line, or the variable.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from scene_edge.codec.bundle import read_public_key
from scene_edge.codec.errors import ConfigError
from scene_edge.codec.topics import SHARDS

ENV_PREFIX = "SCENE_EDGE_SERVER_"

MAX_PIXELS = 4096 * 2304
"""As large as pictures are that most people send; `limits.max_pixels` is for the others."""

MAX_PROCESSES = 256
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BrokerConfig(_Section):
    """The MQTT broker. `client_id` must stay the same over restarts: the broker keeps messages for it meanwhile."""

    url: str = Field("mqtt://127.0.0.1:1883", repr=False, description="mqtt[s]://[user:password@]host[:port]")
    client_id: str = Field("scene-edge-server", min_length=1, max_length=64)
    keepalive_s: int = Field(60, ge=5, le=600)
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    @field_validator("url")
    @classmethod
    def _is_mqtt(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
            raise ValueError("a broker is mqtt://HOST[:PORT] or mqtts://HOST[:PORT]")
        _ = parts.port  # raises ValueError where it is no port
        return url

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def tls(self) -> bool:
        return urlsplit(self.url).scheme == "mqtts"

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or (8883 if self.tls else 1883)

    @property
    def credentials(self) -> tuple[str, str | None] | None:
        parts = urlsplit(self.url)
        return (parts.username, parts.password) if parts.username else None

    @property
    def shown(self) -> str:
        """The URL without its secrets."""
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"


class WebConfig(_Section):
    """Where the page listens. Port 0 takes a free one."""

    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    history_s: int = Field(300, ge=10, le=3600, description="seconds of bitrate history kept for the charts")
    jpeg_quality: int = Field(85, ge=10, le=100)
    max_listeners: int = Field(32, ge=1, le=1000, description="open pages (event streams) at once")


class JoinConfig(_Section):
    deadline_ms: int = Field(3000, ge=0, le=60_000, description="a frame waits so long for its semantics")
    gap_ms: int = Field(
        10_000, ge=0, le=600_000, description="a missing frame is asked for, and awaited so long, before it is given up"
    )
    max_frames: int = Field(2048, ge=16, le=100_000)
    max_bytes: int = Field(64 << 20, ge=1 << 16)


class FusionConfig(_Section):
    enabled: bool = True
    bundles: tuple[str, ...] = Field((), description="bundle folders besides the shipped ones")
    engines: tuple[str, ...] = ("openvino", "onnx", "litert")
    precision: str = "int8"
    threads: int | None = Field(None, ge=1, le=256)


class BundlesConfig(_Section):
    public_key_file: Path | None = Field(
        None, description="raw or hexadecimal Ed25519 key that must have signed every bundle; null: digests only"
    )


class AnalyticsConfig(_Section):
    """Which networks look at the fused pictures. `off` switches one off."""

    detector: str = Field("detector-s", description="a bundle, a path to a YOLOX-style .onnx, or off")
    detect_fps: float = Field(5.0, gt=0, le=120)
    max_lag_ms: int = Field(
        5000, ge=0, description="a server this far behind looks once a second, until it has caught up"
    )
    detector_score: float = Field(0.4, ge=0, le=1, description="weaker boxes only prolong tracks")
    actions: tuple[str, ...] = Field(("action-arid", "action-fight"), description="bundles; empty: none")
    action_score: float = Field(0.0, ge=0, le=1, description="weaker actions are not reported")
    threads: int | None = Field(None, ge=1, le=256)

    @field_validator("detector", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: object) -> object:
        return "off" if value is False else value  # YAML reads a bare `off` as false


class OwnershipConfig(_Section):
    """Which shards this server works for, alone among all that share its database: the first that comes has them."""

    shards: str = Field("0-255", pattern=r"^\d{1,3}-\d{1,3}$", description="of cameras, by the number in their topics")
    lease_s: float = Field(5.0, ge=0.2, le=600, description="an owner silent for so long is taken over from")

    @field_validator("shards")
    @classmethod
    def _is_range(cls, text: str) -> str:
        first, last = map(int, text.split("-"))
        if not first <= last < SHARDS:
            raise ValueError(f"shards are FIRST-LAST within 0-{SHARDS - 1}")
        return text

    @property
    def shard_range(self) -> range:
        first, last = map(int, self.shards.split("-"))
        return range(first, last + 1)


class EngineConfig(_Section):
    """How the cameras' work is spread. Networks fill the cores from one process; what one process of Python does not
    bear is many hundreds of cameras."""

    processes: int | Literal["auto"] = Field(
        1, description="1: all in the server's own process; more: so many worker processes; auto: one a core"
    )

    @field_validator("processes")
    @classmethod
    def _is_count(cls, processes: int | str) -> int | str:
        if isinstance(processes, int) and not 1 <= processes <= MAX_PROCESSES:
            raise ValueError(f"worker processes are 1 to {MAX_PROCESSES}, or auto")
        return processes

    @property
    def count(self) -> int:
        return cores() if self.processes == "auto" else self.processes


class LimitsConfig(_Section):
    max_cameras: int = Field(256, ge=1, le=100_000)
    queue_messages: int = Field(512, ge=8, le=100_000, description="messages waiting per camera")
    messages_per_s: float = Field(
        60.0, gt=0, le=10_000, description="a camera that sends more, and queue_messages at once, is slowed down to it"
    )
    max_pixels: int = Field(
        MAX_PIXELS, ge=4, le=8192 * 8192, description="a camera's pictures may have so many samples of luma"
    )
    commit_frames: int = Field(10, ge=1, le=1000)
    commit_ms: int = Field(200, ge=1, le=10_000)
    silent_after_s: float = Field(10.0, gt=0)
    retention_days: float = Field(30.0, gt=0)


class ServerConfig(_Section):
    broker: BrokerConfig = BrokerConfig()
    web: WebConfig = WebConfig()
    database: str = "sqlite:///scene-edge.db"
    join: JoinConfig = JoinConfig()
    bundles: BundlesConfig = BundlesConfig()
    fusion: FusionConfig = FusionConfig()
    analytics: AnalyticsConfig = AnalyticsConfig()
    ownership: OwnershipConfig = OwnershipConfig()
    engine: EngineConfig = EngineConfig()
    limits: LimitsConfig = LimitsConfig()
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$")


def load_config(
    path: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> ServerConfig:
    """Read and check the configuration; `overrides` are dotted keys such as {"broker.url": ...}.

    Raises ConfigError naming file and line, variable or option of the first wrong key.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if path is not None:
        values = _read_yaml(path, origins)
    variables = os.environ if environ is None else environ
    for name in sorted(variables):
        if name.startswith(ENV_PREFIX):
            key = name[len(ENV_PREFIX) :].lower().replace("__", ".")
            _put(values, key, _scalar(variables[name]))
            origins[key] = name
    for key, value in (overrides or {}).items():
        _put(values, key, value)
        origins[key] = "command line"
    try:
        return ServerConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        where = origins.get(key) or next((o for k, o in origins.items() if key.startswith(k)), str(path or "defaults"))
        secret = key == "broker.url"
        raise ConfigError(
            f"{where}: {key or 'configuration'}: {first['msg']}", got=None if secret else str(first.get("input"))[:80]
        ) from error


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def public_key_of(config: ServerConfig) -> bytes | None:
    """The key that must have signed every bundle; None: none need be signed. Raises ConfigError."""
    path = config.bundles.public_key_file
    try:
        return None if path is None else read_public_key(path)
    except (OSError, ValueError) as error:
        raise ConfigError("bundles.public_key_file cannot be used", got=str(error)) from error


def shown(config: ServerConfig) -> dict[str, Any]:
    """All settings as plain values, as they may be shown: passwords in URLs are `***`."""
    values = config.model_dump(mode="json")
    values["broker"]["url"] = _without_password(config.broker.url)
    values["database"] = _without_password(config.database)
    return values


def _without_password(url: str) -> str:
    # Up to the last @, since a password may hold one, or a slash: rather too much than a part of it.
    return re.sub(r"//.*@", "//***@", url)


def parse_listen(text: str) -> tuple[str, int]:
    """HOST:PORT, or :PORT, or PORT -> (host, port)."""
    host, _, port = text.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise ConfigError("not an address to listen on", got=text, allowed="HOST:PORT, such as 127.0.0.1:8080")
    return host.strip("[]") or "127.0.0.1", int(port)


def _read_yaml(path: Path, origins: dict[str, str]) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read configuration {path}", got=str(error)) from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not YAML", got=str(getattr(error, "problem", error))) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}:1: a configuration is a mapping", got=type(values).__name__, allowed="key: value")
    _note_lines(root, "", path, origins)
    return values


def _note_lines(node: Any, prefix: str, path: Path, origins: dict[str, str]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            origins[name] = f"{path}:{key.start_mark.line + 1}"
            _note_lines(value, f"{name}.", path, origins)


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        child = values.setdefault(section, {})
        if not isinstance(child, dict):
            child = values[section] = {}
        values = child
    values[last] = value


def _scalar(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
