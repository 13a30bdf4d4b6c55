"""Fixtures of the camera's tests: a zoo of tiny bundles, settings that use it, a cache of its own for each session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from scene_edge.edge.config import CameraConfig
from scene_edge.edge.settings import load_config
from tests.edge.bundles import scene_bundle, smc_bundle, where_bundle

Configure = Callable[..., CameraConfig]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    """Verdicts of trial encodes go to a folder of this test run, where one trial serves all tests."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnx", reason="the tiny bundles are built with onnx")
    pytest.importorskip("onnxruntime", reason="the tiny bundles run on ONNX Runtime")
    folder = tmp_path_factory.mktemp("zoo")
    scene_bundle(folder / "scene-tiny")
    where_bundle(folder / "where-tiny")
    smc_bundle(folder / "smc-tiny")
    return folder


@pytest.fixture
def configure(zoo: Path) -> Configure:
    """Settings with the tiny bundles at their finest, a small testsrc, short GOPs; any `section.key=value` on top."""

    def make(*overrides: str) -> CameraConfig:
        base = [
            f"bundles.zoo={zoo}",
            "scene.bundle=scene-tiny",
            "semantics.bundle=smc-tiny",
            "scene.engines=[onnx]",
            "semantics.engines=[onnx]",
            "scene.precision=fp32",
            "semantics.precision=fp32",
            "semantics.quality=0",
            "source.url=testsrc:",
            "source.width=96",
            "source.height=64",
            "source.pace=asap",
            "video.gop=5",
            "video.threads=1",
        ]
        return load_config("cpu", overrides=[*base, *overrides], environment={})

    return make


@pytest.fixture
def plain() -> Configure:
    """Settings without networks, for what needs none."""

    def make(*overrides: str) -> CameraConfig:
        base = [
            "scene.enabled=false",
            "semantics.enabled=false",
            "source.url=testsrc:",
            "source.width=96",
            "source.height=64",
            "source.pace=asap",
            "video.gop=5",
            "video.threads=1",
        ]
        return load_config("cpu", overrides=[*base, *overrides], environment={})

    return make
