"""A camera with a key: which bundles it lets near an inference engine, and that an old one never comes back."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scene_edge.codec.bundle import Bundle, public_key_of, sign_bundle, sign_manifest, write_bundle
from scene_edge.codec.errors import BundleError, EngineError, StoreError
from scene_edge.edge import networks
from scene_edge.edge.config import CameraConfig
from scene_edge.edge.counters import Counters
from scene_edge.edge.networks import open_bundle, open_networks
from tests.edge.conftest import Configure

SECRET, OTHER_SECRET = bytes(range(32)), bytes(range(1, 33))
NAME = "scene-tiny"


class Site:
    """A zoo of one signed bundle, a camera's settings with its key, and the counters."""

    def __init__(self, folder: Path, zoo: Path, configure: Configure) -> None:
        self.zoo = folder / "zoo"
        self.bundle = self.zoo / NAME
        shutil.copytree(zoo / NAME, self.bundle)
        self.counters = folder / "state/bundles.json"
        key = folder / "key.hex"
        key.write_text(public_key_of(SECRET).hex())
        self.config: CameraConfig = configure(
            f"bundles.zoo={self.zoo}",
            f"bundles.public_key_file={key}",
            f"bundles.counters_file={self.counters}",
            "semantics.enabled=false",
        )
        self.release(counter=5)

    def release(self, counter: int, secret: bytes = SECRET, **changes: Any) -> None:
        """Another version of the bundle, signed."""
        manifest = json.loads((self.bundle / "manifest.json").read_text())
        del manifest["files"]
        write_bundle(self.bundle, {**manifest, "counter": counter, **changes})
        sign_bundle(self.bundle, secret)

    def edit(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change the manifest and sign it again as it is, as somebody with the key might by mistake."""
        path = self.bundle / "manifest.json"
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))
        (self.bundle / "manifest.sig").write_bytes(sign_manifest(manifest, SECRET))

    def run(self) -> None:
        """Open the networks as a camera's start does."""
        open_networks(self.config, 96, 64, strict=True).close()


@pytest.fixture
def site(tmp_path: Path, zoo: Path, configure: Configure) -> Site:
    return Site(tmp_path, zoo, configure)


def _truncated(site: Site) -> None:
    path = site.bundle / "filter.fp32.onnx"
    path.write_bytes(path.read_bytes()[:-1])


def _unsigned(site: Site) -> None:
    (site.bundle / "manifest.sig").unlink()


def _wrong_key(site: Site) -> None:
    sign_bundle(site.bundle, OTHER_SECRET)


def _downgraded(site: Site) -> None:
    site.run()
    site.release(counter=4)


def _signed_before_a_change(site: Site) -> None:
    signature = (site.bundle / "manifest.sig").read_bytes()
    site.release(counter=9)
    (site.bundle / "manifest.sig").write_bytes(signature)


def _path_out_of_the_folder(site: Site) -> None:
    site.edit(lambda manifest: manifest["files"].update({"../x.onnx": {"sha256": "0" * 64, "bytes": 1}}))


def _symlink(site: Site) -> None:
    path = site.bundle / "filter.fp32.onnx"
    shutil.move(path, site.zoo / "elsewhere.onnx")
    path.symlink_to(site.zoo / "elsewhere.onnx")


def _pickle(site: Site) -> None:
    (site.bundle / "weights.bin").write_bytes(pickle.dumps({"a": 1}))
    (site.bundle / "weights.xml.gz").write_bytes(pickle.dumps({"a": 1}))
    site.release(counter=6)


def _external_data(site: Site) -> None:
    path = site.bundle / "filter.fp32.onnx"
    path.write_bytes(path.read_bytes() + b"\x0a\x08location\x12\x05/x.db")
    site.edit(lambda manifest: manifest["files"].update({path.name: listed(path)}))


def _another_bundle_in_its_place(site: Site) -> None:
    site.release(counter=9, name="scene-old")


def listed(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


@pytest.mark.parametrize(
    "harm",
    [
        _truncated,
        _unsigned,
        _wrong_key,
        _downgraded,
        _signed_before_a_change,
        _path_out_of_the_folder,
        _symlink,
        _external_data,
        _another_bundle_in_its_place,
    ],
    ids=lambda harm: harm.__name__.strip("_"),
)
def test_what_is_refused_is_refused_before_an_engine_sees_it(
    site: Site, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Site], None]
) -> None:
    harm(site)
    monkeypatch.setattr(networks, "open_session", _never)
    with pytest.raises(BundleError):
        site.run()
    camera = open_networks(site.config, 96, 64, strict=False)
    assert camera.scene is None
    assert any("no scene" in reason for reason in camera.degraded), "the camera goes on as H.264, and says so"


def test_nobody_can_sign_a_pickle(site: Site) -> None:
    with pytest.raises(BundleError, match="pickle"):
        _pickle(site)


def _never(*_arguments: object, **_names: object) -> None:
    pytest.fail("an engine was asked to open something that should have been refused")


def test_swapped_after_the_check(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the check and the moment in which an engine reads it: the bytes are hashed again, and not used."""
    check = networks.open_bundle

    def swap(config: CameraConfig, name: str) -> Bundle:
        bundle = check(config, name)
        other = site.bundle / "prior.fp32.onnx"
        os.replace(other, site.bundle / "filter.fp32.onnx")
        return bundle

    monkeypatch.setattr(networks, "open_bundle", swap)
    with pytest.raises((BundleError, EngineError), match=r"differs|cut short|larger|cannot read"):
        site.run()


def test_the_counter_rises_with_what_runs(site: Site) -> None:
    site.run()
    assert json.loads(site.counters.read_text()) == {NAME: 5}
    site.release(counter=7)
    site.run()
    assert json.loads(site.counters.read_text()) == {NAME: 7}
    site.run()
    for counter in (6, 0):
        site.release(counter)
        with pytest.raises(BundleError, match="older"):
            site.run()
    assert json.loads(site.counters.read_text()) == {NAME: 7}


def test_a_new_bundle_that_does_not_run_leaves_the_way_back(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.run()
    site.release(counter=8)

    def broken(*_arguments: object, **_names: object) -> None:
        raise EngineError("this board cannot run it")

    with monkeypatch.context() as patch:
        patch.setattr(networks, "open_session", broken)
        with pytest.raises(EngineError):
            site.run()
    site.release(counter=5)
    site.run()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"scene-tiny": -1}', b'{"a": true}', b"[" * 60_000, b" " * 70_000]
)
def test_counters_that_cannot_be_read_let_nothing_in(site: Site, content: bytes) -> None:
    site.counters.parent.mkdir()
    site.counters.write_bytes(content)
    with pytest.raises(BundleError, match="holds no counters"):
        site.run()


def test_counters_that_cannot_be_reached_are_spoken_of(site: Site) -> None:
    site.counters.parent.write_text("a file where a folder should be")
    camera = open_networks(site.config, 96, 64, strict=False)
    assert any(str(site.counters) in reason for reason in camera.degraded)
    camera.close()


def test_without_a_key_nothing_is_remembered(site: Site) -> None:
    """Anybody could raise the counter of an unsigned bundle out of reach."""
    unsigned = site.config.model_copy(
        update={"bundles": site.config.bundles.model_copy(update={"public_key_file": None})}
    )
    open_networks(unsigned, 96, 64, strict=True).close()
    assert not site.counters.exists()
    assert not open_bundle(unsigned, NAME).signed


def test_a_write_that_fails_leaves_the_old_counters(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.run()
    site.release(counter=6)
    bundle = open_bundle(site.config, NAME)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="No space"):
            Counters(site.counters).raise_to(bundle)
    assert json.loads(site.counters.read_text()) == {NAME: 5}
