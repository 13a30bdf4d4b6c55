"""Reads a camera's settings: profile, then file, then environment, then --set; every error names file and line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import SecretStr, ValidationError

from scene_edge.codec.errors import ConfigError
from scene_edge.edge.board import detect_profile
from scene_edge.edge.config import PROFILES, CameraConfig, without_password

ENVIRONMENT_PREFIX = "SCENE_EDGE_"
MAX_CONFIG_BYTES = 1 << 20

KeyPath = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """One origin of settings: a tree of values, and where each key was written ("camera.yaml:12")."""

    values: dict[str, Any]
    origins: dict[KeyPath, str] = field(default_factory=dict)


def load_config(
    profile: str = "auto",
    file: Path | None = None,
    overrides: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
) -> CameraConfig:
    """The settings of a camera. `overrides` are "section.key=value"; raises ConfigError for anything unknown.

    A file may name its profile; `profile` outweighs it unless it is "auto".

    >>> load_config("cpu", overrides=["video.crf=30"], environment={}).video.crf
    30
    """
    written = file_layer(file) if file is not None else Layer({})
    named = written.values.pop("profile", None)
    if profile == "auto" and named is not None:
        profile = _profile_name(named, written)
    layers = [
        profile_layer(profile),
        written,
        environment_layer(os.environ if environment is None else environment),
        override_layer(overrides),
    ]
    values: dict[str, Any] = {}
    origins: dict[KeyPath, str] = {}
    for layer in layers:
        _merge(values, layer.values)
        origins.update(layer.origins)
    return _validated(values, origins)


def resolve_profile(name: str) -> str:
    """`auto` becomes the profile of this board; any other shipped name stays. Raises ConfigError for the rest."""
    if name not in PROFILES:
        raise ConfigError("no such profile", got=name, allowed=", ".join(PROFILES), hint="See: scene-edge profiles")
    return detect_profile() if name == "auto" else name


def profile_layer(name: str) -> Layer:
    resolved = resolve_profile(name)
    text = profile_text(resolved)
    layer = _parse_yaml(text, f"profile {resolved}")
    layer.values["profile"] = resolved
    return layer


def profile_text(name: str) -> str:
    """The commented YAML of a shipped profile."""
    return resources.files("scene_edge.edge").joinpath("profiles", f"{name}.yaml").read_text(encoding="utf-8")


def file_layer(path: Path) -> Layer:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}", got=error.strerror, hint="Check the path.") from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path} is too large", got=f"{len(raw)} bytes", allowed=f"{MAX_CONFIG_BYTES}")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text", got=f"byte {error.start}") from error
    return _parse_yaml(text, str(path))


def environment_layer(environment: Mapping[str, str]) -> Layer:
    """SCENE_EDGE_VIDEO__CRF=30 sets video.crf. Names outside our sections belong to somebody else and stay alone."""
    layer = Layer({})
    for name in sorted(environment):
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        path = tuple(name[len(ENVIRONMENT_PREFIX) :].lower().split("__"))
        nested = path[0] in CameraConfig.model_fields and (len(path) > 1) == _is_section(path[0])
        if nested and path[0] != "profile":
            _place(layer, path, _scalar(environment[name], path, name), name)
    return layer


def override_layer(overrides: Iterable[str]) -> Layer:
    layer = Layer({})
    for text in overrides:
        key, equals, value = text.partition("=")
        path = tuple(part.strip() for part in key.split("."))
        if not equals or not all(path):
            raise ConfigError("--set wants key=value", got=text, hint="For example: --set video.crf=28")
        _place(layer, path, _scalar(value, path, f"--set {key}"), f"--set {key}")
    return layer


def validate_file(path: Path) -> CameraConfig:
    """A configuration file alone, on the profile that it names (else cpu). Raises ConfigError with the line."""
    profile = "auto" if "profile" in file_layer(path).values else "cpu"
    return load_config(profile, path, environment={})


def _profile_name(value: object, layer: Layer) -> str:
    if not isinstance(value, str) or value not in PROFILES:
        where = layer.origins.get(("profile",), "configuration")
        raise ConfigError(f"{where}: no such profile", got=value, allowed=", ".join(PROFILES))
    return value


def json_schema() -> str:
    """JSON schema of a configuration file, for editors."""
    schema = CameraConfig.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "scene-edge camera"
    return json.dumps(schema, indent=2)


def _is_section(name: str) -> bool:
    annotation = CameraConfig.model_fields[name].annotation
    return hasattr(annotation, "model_fields")


def _scalar(text: str, path: KeyPath, origin: str) -> Any:
    """A value as YAML would read it, so that true, 3 and [a, b] mean what they mean in a file; but `testsrc:` and a
    password of digits stay text, since their keys hold text."""
    annotation = _annotation(path)
    kinds = {annotation, *get_args(annotation)}
    if kinds & {str, SecretStr, Path}:
        return None if text == "null" and type(None) in kinds else text
    try:
        return yaml.safe_load(text) if text else ""
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin} is not a YAML value", got=text) from error


def _annotation(path: KeyPath) -> Any:
    """The type of a key, None where there is no such key."""
    model: Any = CameraConfig
    for part in path:
        fields = getattr(model, "model_fields", {})
        if part not in fields:
            return None
        model = fields[part].annotation
    return model


def _place(layer: Layer, path: KeyPath, value: Any, origin: str) -> None:
    tree = layer.values
    for part in path[:-1]:
        inner = tree.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{origin}: {part} is a value, not a section", got=inner)
        tree = inner
    tree[path[-1]] = value
    layer.origins[path] = origin


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        mine = base.get(key)
        if isinstance(mine, dict) and isinstance(value, dict):
            _merge(mine, value)
        else:
            base[key] = value


def _parse_yaml(text: str, name: str) -> Layer:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigError(f"{where}: not valid YAML", got=getattr(error, "problem", None) or str(error)) from error
    if root is None:
        return Layer({})
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{name}:1: a configuration is a mapping of sections", got=root.tag.rpartition(":")[2])
    origins: dict[KeyPath, str] = {}
    _walk(root, (), name, origins)
    values = yaml.safe_load(text)
    return Layer({str(key): value for key, value in values.items()}, origins)


def _walk(node: yaml.MappingNode, above: KeyPath, name: str, origins: dict[KeyPath, str]) -> None:
    for key, value in node.value:
        path = (*above, str(key.value))
        where = f"{name}:{key.start_mark.line + 1}"
        if path in origins:
            raise ConfigError(f"{where}: {'.'.join(path)} is set twice", got=f"first at {origins[path]}")
        origins[path] = where
        if isinstance(value, yaml.MappingNode):
            _walk(value, path, name, origins)


def _validated(values: dict[str, Any], origins: Mapping[KeyPath, str]) -> CameraConfig:
    try:
        return CameraConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = tuple(str(part) for part in first["loc"])
        origin = next(
            (origins[path[:end]] for end in range(len(path), 0, -1) if path[:end] in origins), "configuration"
        )
        more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
        got = first["input"] if isinstance(first["input"], (str, int, float, bool)) else None
        if isinstance(got, str):
            got = "***" if path[-1] == "password" else without_password(got)
        raise ConfigError(
            f"{origin}: {'.'.join(path)}: {_reason(first)}{more}",
            got=got,
            allowed=_allowed_keys(path) if first["type"] == "extra_forbidden" else None,
            hint="See: scene-edge validate --schema",
        ) from error


def _reason(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return "no such key"
    return str(error["msg"]).removeprefix("Value error, ").rstrip(".")


def _allowed_keys(path: KeyPath) -> str:
    return ", ".join(getattr(_annotation(path[:-1]) or CameraConfig, "model_fields", {}))
