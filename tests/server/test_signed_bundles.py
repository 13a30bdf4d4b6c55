"""A server with a key: every bundle bears its signature, or is refused before an engine sees a weight of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from scene_edge.codec.bundle import Bundle, public_key_of, shipped_zoo, sign_bundle
from scene_edge.codec.errors import BundleError, ConfigError, EngineError
from scene_edge.server.analytics.action import open_recogniser
from scene_edge.server.analytics.detector import open_detector
from scene_edge.server.config import FusionConfig, ServerConfig
from scene_edge.server.fusion import BundleShelf
from scene_edge.server.pictures import fusion_factory
from scene_edge.server.service import Server

SECRET, OTHER_SECRET = bytes(range(32)), bytes(range(1, 33))
KEY = public_key_of(SECRET)


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.path, tmp_path / "smc-tiny"))


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whatever is opened."""
    opened: list[str] = []

    def opens(found: Bundle, *_args: Any, **_options: Any) -> Any:
        opened.append(found.name)
        raise BundleError("the end of the test")

    for module in ("fusion", "analytics.detector", "analytics.action"):
        monkeypatch.setattr(f"scene_edge.server.{module}.open_session", opens)
    return opened


def shelf(folder: Path, tmp_path: Path) -> BundleShelf:
    return BundleShelf([str(folder)], tmp_path / "no-zoo", public_key=KEY)


def test_what_is_signed_is_used(folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    sign_bundle(folder, SECRET)
    assert shelf(folder, tmp_path).find(bundle.digest).signed


def unsigned(folder: Path) -> None:
    pass


def by_another(folder: Path) -> None:
    sign_bundle(folder, OTHER_SECRET)


def altered(folder: Path) -> None:
    """The weights are others than those whose digest was signed."""
    sign_bundle(folder, SECRET)
    weights = folder / "decoder.fp32.onnx"
    weights.write_bytes(weights.read_bytes() + b"\0")


def cut_short(folder: Path) -> None:
    sign_bundle(folder, SECRET)
    signature = folder / "manifest.sig"
    signature.write_bytes(signature.read_bytes()[:-1])


@pytest.mark.parametrize("harm", [unsigned, by_another, altered, cut_short])
def test_what_is_not_signed_is_not_opened(
    harm: Any, folder: Path, bundle: Bundle, tmp_path: Path, engines: list[str]
) -> None:
    harm(folder)
    build = fusion_factory(shelf(folder, tmp_path), FusionConfig())
    with pytest.raises(BundleError, match="does not have"):
        build(bundle.short_digest, 96, 64)
    with pytest.raises(BundleError):
        open_detector(folder, public_key=KEY)
    with pytest.raises(BundleError):
        open_recogniser(folder, public_key=KEY)
    assert engines == []


def test_what_changes_after_the_check_is_refused(folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    sign_bundle(folder, SECRET)
    build = fusion_factory(shelf(folder, tmp_path), FusionConfig(engines=("onnx",), precision="fp32"))
    build(bundle.short_digest, 96, 64).close()
    (folder / "decoder.fp32.onnx").write_bytes(b"swapped")
    with pytest.raises(EngineError, match="cut short"):
        build(bundle.short_digest, 96, 64)


def test_a_bare_network_has_no_signature(tmp_path: Path) -> None:
    file = tmp_path / "yolox.onnx"
    file.write_bytes(b"weights")
    with pytest.raises(BundleError, match="no signature"):
        open_detector(file, public_key=KEY)


def server(tmp_path: Path, key: bytes, **analytics: Any) -> Server:
    file = tmp_path / "key"
    file.write_bytes(key)
    settings = {
        "database": "sqlite://",
        "web": {"port": 0},
        "bundles": {"public_key_file": file},
        "analytics": {"actions": [], **analytics},
    }
    return Server(ServerConfig.model_validate(settings))


@pytest.mark.skipif(not (shipped_zoo() / "detector-s").is_dir(), reason="the shipped bundles are not here")
def test_with_a_key_the_shipped_detector_which_nobody_signed_is_left_out_and_missed(tmp_path: Path) -> None:
    made = server(tmp_path, KEY)
    assert "no detection" in made._workshop._missing["detector"]
    made.store.close()
    with pytest.raises(BundleError, match="not signed"):
        server(tmp_path, KEY, detector="detector-s")


def test_a_key_that_is_none_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="public_key_file"):
        server(tmp_path, b"short", detector="off")
