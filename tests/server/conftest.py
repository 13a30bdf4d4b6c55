"""Fixtures for the server's tests: the tiny SMC bundle, made once, and fakes at the seams."""

from __future__ import annotations

from pathlib import Path

import pytest

from scene_edge.codec.bundle import Bundle
from tests.server.camera import smc_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    pytest.importorskip("onnx", reason="the tiny bundle is built with onnx")
    folder: Path = tmp_path_factory.mktemp("zoo") / "smc-tiny"
    return smc_bundle(folder)
