"""The arrows of the house: which folder may import which, and what never reaches a camera."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data import REPOSITORY

ARROWS: dict[str, set[str]] = {
    "codec": {"codec"},
    "inference": {"inference", "codec"},
    "edge": {"edge", "codec", "inference"},
    "server": {"server", "codec", "inference"},
    "models": {"models", "codec"},
    "quantize": {"quantize", "models", "codec", "inference"},
}
"""Folder -> the folders of scene_edge that it may import."""

BUILD_SIDE = {"torch", "torchvision", "torchao", "onnxscript", "litert_torch", "vmaf_torch", "scipy"}
CODEC_MAY_IMPORT = {"numpy", "av", "safetensors", "google_crc32c", "cryptography", "scene_edge"}
WEB = {"fastapi", "starlette", "uvicorn", "sqlalchemy", "trackers", "cv2", "amqtt"}


def modules(folder: str) -> Iterator[Path]:
    return iter(sorted((REPOSITORY / folder).rglob("*.py")))


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Every dotted name that the file imports anywhere, lazily too, and its line; relative ones made absolute."""
    package = ["scene_edge", *path.relative_to(REPOSITORY).with_suffix("").parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((name.name, node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "scene_edge":
                yield from ((f"scene_edge.{name.name}", node.lineno) for name in node.names)
            else:
                yield module, node.lineno


@pytest.mark.parametrize("folder", ARROWS)
def test_a_folder_imports_only_what_its_arrows_allow(folder: str) -> None:
    wrong = []
    for path in modules(folder):
        for name, line in imported(path):
            parts = name.split(".")
            if parts[0] == "scene_edge" and len(parts) > 1 and parts[1] != "__version__":
                allowed = parts[1] in ARROWS[folder]
            else:
                # From the repository's root the bare folder names import too, as second copies.
                allowed = parts[0] not in ARROWS
            if not allowed:
                wrong.append(f"{path.relative_to(REPOSITORY)}:{line} imports {name}")
    assert not wrong, f"{folder} may import {sorted(ARROWS[folder])}:\n" + "\n".join(wrong)


@pytest.mark.parametrize("folder", ["codec", "inference", "edge", "server"])
def test_no_build_tool_is_imported_by_what_runs_in_the_field(folder: str) -> None:
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{line} imports {name}"
        for path in modules(folder)
        for name, line in imported(path)
        if name.split(".")[0] in BUILD_SIDE
    ]
    assert not wrong, "\n".join(wrong)


def test_codec_needs_little() -> None:
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{line} imports {name}"
        for path in modules("codec")
        for name, line in imported(path)
        if name.split(".")[0] not in CODEC_MAY_IMPORT | sys.stdlib_module_names
    ]
    assert not wrong, "\n".join(wrong)


def test_the_camera_needs_no_web_server() -> None:
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{line} imports {name}"
        for folder in ("codec", "inference", "edge")
        for path in modules(folder)
        for name, line in imported(path)
        if name.split(".")[0] in WEB
    ]
    assert not wrong, "\n".join(wrong)


def test_every_module_of_camera_and_server_loads_without_torch() -> None:
    names = [
        "scene_edge." + ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        for folder in ("codec", "inference", "edge", "server")
        for path in modules(folder)
    ]
    program = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print(sorted(set(sys.modules) & {BUILD_SIDE - {'scipy'}!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
