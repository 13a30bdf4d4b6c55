"""Bundles: what is good opens; whatever is broken, swapped or hidden in one is refused before a weight is parsed."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from scene_edge.codec import ir
from scene_edge.codec.bundle import (
    Bundle,
    public_key_of,
    shipped_bundles,
    shipped_zoo,
    sign_bundle,
    sign_manifest,
    write_bundle,
)
from scene_edge.codec.errors import BundleError
from scene_edge.codec.manifest import canonical_json, load_manifest

SECRET = bytes(range(32))
OTHER_SECRET = bytes(range(1, 33))

TENSORS = {"in.x": np.zeros((1, 8, 8, 24), np.uint8), "out.y": np.ones((1, 4, 2, 2), np.float32)}


def manifest() -> dict[str, Any]:
    return {
        "format": 1,
        "name": "smc-test",
        "kind": "smc",
        "version": "0.1.0",
        "counter": 3,
        "parameters": {"channels": 4, "tables": "tables.safetensors", "quality_steps": [1.0]},
        "graphs": {
            "encoder": {
                "inputs": [{"name": "x", "dtype": "uint8", "shape": [1, None, None, 24]}],
                "outputs": [{"name": "y", "dtype": "float32", "shape": [1, 4, None, None]}],
                "artifacts": [
                    {"engine": "openvino", "precision": "int8", "file": "encoder.xml.gz", "shape": None},
                    {"engine": "onnx", "precision": "int8", "file": "encoder.onnx"},
                    {"engine": "litert", "precision": "int8", "file": "encoder.tflite", "shape": [136, 240]},
                ],
                "golden": {"file": "encoder.golden.safetensors", "tolerance": 0.05},
            }
        },
        "training": {"steps": 10},
    }


IR = b'<?xml version="1.0"?><net/>'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle whose weights are no real networks: nothing here may ever parse them."""
    path = tmp_path / "smc-test"
    path.mkdir()
    (path / "encoder.xml.gz").write_bytes(ir.deflate(IR))
    (path / "encoder.bin").write_bytes(bytes(64))
    (path / "encoder.onnx").write_bytes(b"\x08\x08not a network")
    (path / "encoder.tflite").write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(20))
    (path / "encoder.golden.safetensors").write_bytes(save(TENSORS))
    (path / "tables.safetensors").write_bytes(save({"a": np.arange(4, dtype=np.uint16)}))
    (path / "card.md").write_text("# A card\n")
    write_bundle(path, manifest())
    return path


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_a_good_bundle(folder: Path) -> None:
    bundle = Bundle.open(folder)
    assert (bundle.name, bundle.kind, bundle.version, bundle.counter) == ("smc-test", "smc", "0.1.0", 3)
    assert len(bundle.digest) == 32
    assert bundle.short_digest == bundle.digest[:8]
    graph = bundle.graph("encoder")
    assert graph.inputs[0].shape == (1, None, None, 24)
    assert [artifact.engine for artifact in graph.artifacts] == ["openvino", "onnx", "litert"]
    assert graph.artifacts[2].shape_hint == (136, 240)
    assert graph.golden is not None
    assert graph.golden.tolerance == 0.05
    assert bundle.parameters["channels"] == 4
    assert bundle.tensors("encoder.golden.safetensors").keys() == TENSORS.keys()
    assert bundle.read("card.md") == b"# A card\n"
    assert not bundle.signed


def test_the_digest_covers_every_file_but_no_white_space(folder: Path) -> None:
    before = Bundle.open(folder).digest
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7))
    assert Bundle.open(folder).digest == before
    (folder / "card.md").write_text("# Another card\n")
    assert write_bundle(folder, manifest()).digest != before


def test_names_resolve_in_the_zoo_and_paths_do_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Bundle.open("smc-test", zoo=folder.parent).path == folder.resolve()
    assert shipped_bundles(folder.parent) == ["smc-test"]
    monkeypatch.chdir(folder.parent)
    assert Bundle.open("smc-test").name == "smc-test"
    with pytest.raises(BundleError, match="one of: smc-test"):
        Bundle.open("smc-none", zoo=folder.parent)
    for name in ("../smc-test", "", "a/b", "/nowhere", "smc-test\x00"):
        with pytest.raises(BundleError):
            Bundle.open(name, zoo=folder.parent / "nothing")
    assert shipped_bundles(folder.parent / "nothing") == []


def test_the_shipped_zoo_lies_in_the_package_and_all_of_it_opens() -> None:
    assert shipped_zoo().parts[-3:] == ("scene_edge", "models", "zoo")
    for name in shipped_bundles():
        assert Bundle.open(name).name == name


def test_every_truncation_of_every_file_is_refused(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for end in {0, 1, len(whole) // 2, len(whole) - 1} - {len(whole)}:
            if path.name == "manifest.json" and end == len(whole) - 1:
                continue  # a missing line break at the end of JSON changes nothing
            path.write_bytes(whole[:end])
            with pytest.raises(BundleError):
                Bundle.open(folder)
        path.write_bytes(whole)
        assert Bundle.open(folder)


def test_every_flipped_bit_of_a_file_is_refused(folder: Path) -> None:
    for name in ("encoder.bin", "encoder.onnx"):
        whole = bytearray((folder / name).read_bytes())
        for bit in range(0, len(whole) * 8, 5):
            whole[bit // 8] ^= 1 << bit % 8
            (folder / name).write_bytes(whole)
            with pytest.raises(BundleError, match="SHA-256"):
                Bundle.open(folder)
            whole[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(whole)


def test_swapped_files_and_swapped_digests(folder: Path) -> None:
    edit(folder, lambda m: m["files"]["encoder.bin"].update(sha256="0" * 64))
    with pytest.raises(BundleError, match="SHA-256"):
        Bundle.open(folder)
    write_bundle(folder, manifest())
    (folder / "encoder.bin").write_bytes(b"\x01" + bytes(63))
    with pytest.raises(BundleError, match="SHA-256"):
        Bundle.open(folder)


def test_a_file_swapped_after_the_check_is_refused_when_read(folder: Path) -> None:
    bundle = Bundle.open(folder)
    (folder / "encoder.onnx").write_bytes(b"\x08\x08not a networK")
    with pytest.raises(BundleError, match="SHA-256"):
        bundle.read("encoder.onnx")
    (folder / "tables.safetensors").unlink()
    (folder / "tables.safetensors").symlink_to("/etc/passwd")
    with pytest.raises(BundleError, match="cannot read"):
        bundle.tensors("tables.safetensors")


def test_signatures(folder: Path) -> None:
    key = public_key_of(SECRET)
    with pytest.raises(BundleError, match="not signed"):
        Bundle.open(folder, public_key=key)
    sign_bundle(folder, SECRET)
    assert Bundle.open(folder, public_key=key).signed
    assert not Bundle.open(folder).signed
    with pytest.raises(BundleError, match="does not fit"):
        Bundle.open(folder, public_key=public_key_of(OTHER_SECRET))
    with pytest.raises(BundleError, match="wrong length"):
        Bundle.open(folder, public_key=key[:-1])
    signature = folder / "manifest.sig"
    good = signature.read_bytes()
    for bad in (good[:-1], b"", bytes(64), good + b"\x00", bytes([good[0] ^ 1]) + good[1:]):
        signature.write_bytes(bad)
        with pytest.raises(BundleError):
            Bundle.open(folder, public_key=key)
    signature.write_bytes(good)
    edit(folder, lambda m: m.update(counter=4))
    with pytest.raises(BundleError, match="does not fit"):
        Bundle.open(folder, public_key=key)
    write_bundle(folder, {**manifest(), "counter": 4})
    assert not signature.exists(), "a stale signature must not survive a new manifest"
    signature.symlink_to("/etc/hostname")
    with pytest.raises(BundleError):
        Bundle.open(folder, public_key=key)


def test_signing_needs_a_whole_key() -> None:
    with pytest.raises(BundleError, match="wrong length"):
        sign_manifest(manifest(), b"short")
    assert len(sign_manifest(manifest(), SECRET)) == 64


def test_an_older_bundle_is_refused_where_a_newer_was_in_use(folder: Path) -> None:
    assert Bundle.open(folder, least_counter=3)
    with pytest.raises(BundleError, match="older"):
        Bundle.open(folder, least_counter=4)


def test_links_and_special_files_are_refused(folder: Path) -> None:
    outside = folder.parent / "outside.md"
    outside.write_bytes((folder / "card.md").read_bytes())
    (folder / "card.md").unlink()
    (folder / "card.md").symlink_to(outside)
    with pytest.raises(BundleError, match="plain file"):
        Bundle.open(folder)
    (folder / "card.md").unlink()
    os.mkfifo(folder / "card.md")
    with pytest.raises(BundleError, match="plain file"):
        Bundle.open(folder)
    (folder / "card.md").unlink()
    (folder / "card.md").mkdir()
    with pytest.raises(BundleError, match="plain file"):
        Bundle.open(folder)


def test_a_linked_manifest_is_refused(folder: Path) -> None:
    shutil.move(folder / "manifest.json", folder.parent / "manifest.json")
    (folder / "manifest.json").symlink_to(folder.parent / "manifest.json")
    with pytest.raises(BundleError):
        Bundle.open(folder)


@pytest.mark.parametrize(
    "name", ["../evil.onnx", "/etc/passwd", "a/b.onnx", "..", ".hidden.onnx", "a\\b.onnx", "é.onnx"]
)
def test_paths_in_the_manifest_are_refused(folder: Path, name: str) -> None:
    entry = {"sha256": "0" * 64, "bytes": 1}
    edit(folder, lambda m: m["files"].update({name: entry}))
    with pytest.raises(BundleError, match="file name"):
        Bundle.open(folder)
    write_bundle(folder, manifest())
    edit(folder, lambda m: m["graphs"]["encoder"]["artifacts"][1].update(file=name))
    with pytest.raises(BundleError, match="file name"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", ["evil.pkl", "model.pt", "weights.npz", "run.py", "lib.so", "x.onnx.data", "noend"])
def test_unknown_suffixes_are_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(BundleError, match="not allowed"):
        Bundle.open(folder)
    with pytest.raises(BundleError, match="not allowed"):
        write_bundle(folder, manifest())


def test_files_that_nobody_listed_are_refused(folder: Path) -> None:
    (folder / "extra.onnx").write_bytes(b"\x08\x08")
    with pytest.raises(BundleError, match="does not list"):
        Bundle.open(folder)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.abort, ()  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["encoder.bin", "encoder.onnx", "card.md"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_in_disguise_are_refused_even_with_a_good_digest(folder: Path, name: str, protocol: int) -> None:
    (folder / name).write_bytes(pickle.dumps(Evil(), protocol=protocol))
    with pytest.raises(BundleError, match="pickle"):
        write_bundle(folder, manifest())
    with pytest.raises(BundleError, match="pickle"):
        Bundle.open(folder)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("encoder.bin", b"PK\x03\x04 an archive, as torch.save writes it"),
        ("encoder.xml.gz", IR),
        ("encoder.xml.gz", ir.deflate(b"#!/bin/sh")),
        ("encoder.xml.gz", ir.deflate(IR)[:-1]),
        ("encoder.xml.gz", ir.deflate(IR) + b"more"),
        ("encoder.xml.gz", ir.deflate(IR + bytes(ir.MAX_IR_BYTES))),
        ("encoder.tflite", bytes(30)),
        ("tables.safetensors", bytes(30)),
        ("encoder.onnx", b"\x08\x08 tensor\x6a\x12\x0a\x08location\x12\x06/etc/x"),
    ],
)
def test_content_that_is_not_what_its_suffix_says(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    with pytest.raises(BundleError):
        write_bundle(folder, manifest())
    with pytest.raises(BundleError):
        Bundle.open(folder)


def test_broken_safetensors_behind_a_good_digest(folder: Path) -> None:
    for body in (b"\xff" * 8 + b"{}", (5).to_bytes(8, "little") + b"{]xyz", (2).to_bytes(8, "little") + b"{}trail"):
        (folder / "tables.safetensors").write_bytes(body)
        bundle = write_bundle(folder, manifest())
        with pytest.raises(BundleError, match="no tensors"):
            bundle.tensors("tables.safetensors")


def test_asking_for_what_is_not_there(folder: Path) -> None:
    bundle = Bundle.open(folder)
    with pytest.raises(BundleError, match="no such graph"):
        bundle.graph("decoder")
    with pytest.raises(BundleError, match="no such file"):
        bundle.read("../outside")
    with pytest.raises(BundleError, match="tensors"):
        bundle.tensors("card.md")
    with pytest.raises(BundleError):
        Bundle.open(folder / "encoder.onnx")
    empty = folder.parent / "empty"
    empty.mkdir()
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.open(empty)


def test_files_larger_than_stated_are_not_read_whole(folder: Path) -> None:
    with (folder / "encoder.bin").open("r+b") as file:
        file.truncate(1 << 32)
    with pytest.raises(BundleError, match="larger"):
        Bundle.open(folder)


BROKEN: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("lacks keys", lambda m: m.pop("files")),
    ("unknown keys", lambda m: m.update(extra=1)),
    ("another format", lambda m: m.update(format=2)),
    ("another format", lambda m: m.update(format=True)),
    ("name", lambda m: m.update(name="../x")),
    ("kind", lambda m: m.update(kind="weapon")),
    ("version", lambda m: m.update(version=1)),
    ("counter", lambda m: m.update(counter=-1)),
    ("counter", lambda m: m.update(counter=1.5)),
    ("graphs", lambda m: m.update(graphs=[])),
    ("files", lambda m: m.update(files={f"{i}.md": {"sha256": "0" * 64, "bytes": 1} for i in range(200)})),
    ("too large", lambda m: m["files"].update({f"{i}.md": {"sha256": "0" * 64, "bytes": 1 << 29} for i in range(3)})),
    ("sha256", lambda m: m["files"]["card.md"].update(sha256="0" * 63)),
    ("bytes", lambda m: m["files"]["card.md"].update(bytes=1 << 40)),
    ("bytes", lambda m: m["files"]["card.md"].update(bytes=True)),
    (r"without its \.xml", lambda m: m["files"].update({"lone.bin": {"sha256": "0" * 64, "bytes": 1}})),
    ("engine", lambda m: m["graphs"]["encoder"]["artifacts"][0].update(engine="torch")),
    ("precision", lambda m: m["graphs"]["encoder"]["artifacts"][0].update(precision="int3")),
    ("suffix", lambda m: m["graphs"]["encoder"]["artifacts"][0].update(file="encoder.onnx")),
    ("not among the files", lambda m: m["graphs"]["encoder"]["artifacts"][0].update(file="other.xml.gz")),
    ("shape", lambda m: m["graphs"]["encoder"]["artifacts"][2].update(shape=[1, 2, 3])),
    ("shape", lambda m: m["graphs"]["encoder"]["artifacts"][2].update(shape=[0, 2])),
    ("dtype", lambda m: m["graphs"]["encoder"]["inputs"][0].update(dtype="object")),
    ("shape", lambda m: m["graphs"]["encoder"]["inputs"][0].update(shape=[1] * 9)),
    ("shape", lambda m: m["graphs"]["encoder"]["inputs"][0].update(shape=[1 << 40])),
    ("different names", lambda m: m["graphs"]["encoder"]["inputs"].append(m["graphs"]["encoder"]["inputs"][0])),
    ("tolerance", lambda m: m["graphs"]["encoder"]["golden"].update(tolerance=0)),
    ("golden", lambda m: m["graphs"]["encoder"]["golden"].update(file="card.md")),
    ("parameters", lambda m: m.update(parameters=None)),
]


@pytest.mark.parametrize(("complaint", "change"), BROKEN)
def test_broken_manifests_say_what_is_wrong(
    folder: Path, complaint: str, change: Callable[[dict[str, Any]], object]
) -> None:
    edit(folder, change)
    with pytest.raises(BundleError, match=complaint):
        Bundle.open(folder)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"format": NaN}',
        b'{"format": 1, "format": 1}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"1" * 5000,
        b" " * ((1 << 20) + 1),
    ],
)
def test_what_is_no_manifest(data: bytes) -> None:
    with pytest.raises(BundleError):
        load_manifest(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(json_values, st.integers(0, 2**32))
def test_random_values_anywhere_raise_nothing_else(value: object, seed: int) -> None:
    rng = random.Random(seed)
    document: Any = {**manifest(), "files": {"a.md": {"sha256": "0" * 64, "bytes": 1}}}
    node = document
    while True:
        key = rng.choice(sorted(node)) if isinstance(node, dict) else rng.randrange(len(node))
        if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.3:
            break
        node = node[key]
    node[key] = value
    with contextlib.suppress(BundleError):
        load_manifest(json.dumps(document).encode())


def test_canonical_json_has_one_form() -> None:
    assert canonical_json({"b": [1, {"z": None, "a": "é"}], "a": 1.5}) == b'{"a":1.5,"b":[1,{"a":"\\u00e9","z":null}]}'
    for bad in ({"a": float("nan")}, {"a": b"bytes"}):
        with pytest.raises(BundleError):
            canonical_json(bad)
