"""The bill of materials: everything that a camera is made of is in it, and the same environment gives the same one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from scene_edge.codec.bundle import Bundle, shipped_bundles
from scene_edge.codec.errors import UsageError
from scene_edge.sbom import closure, document, main
from tests.data import REPOSITORY

pytest.importorskip("packaging", reason="packaging reads requirements: it is in the dev extra")


def test_it_names_what_a_camera_needs_and_nothing_of_the_build_side() -> None:
    made = document()
    assert (made["bomFormat"], made["specVersion"]) == ("CycloneDX", "1.5")
    names = {component["name"] for component in made["components"]}
    assert {"numpy", "av", "paho-mqtt", "pydantic", "pydantic-core", "cryptography", "pyyaml"} <= names
    assert not {"torch", "fastapi", "sqlalchemy", "pytest", "amqtt"} & names
    assert {"smc-s", "scene-s", "ffmpeg"} <= names
    assert all(component["version"] for component in made["components"])


def test_bundles_stand_with_their_digests() -> None:
    models = {item["name"]: item for item in document()["components"] if item["type"] == "machine-learning-model"}
    for name in shipped_bundles():
        assert models[name]["hashes"] == [{"alg": "SHA-256", "content": Bundle.open(name).digest.hex()}]


def test_every_reference_is_there() -> None:
    made = document()
    known = {component["bom-ref"] for component in made["components"]} | {made["metadata"]["component"]["bom-ref"]}
    for entry in made["dependencies"]:
        assert {entry["ref"], *entry["dependsOn"]} <= known


def test_an_extra_adds_its_engine() -> None:
    pytest.importorskip("onnxruntime")
    assert "onnxruntime" in closure(["onnx"]).keys() - closure().keys()


def test_it_is_the_same_every_time() -> None:
    command = [sys.executable, "-m", "scene_edge.sbom"]
    first, second = (
        subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True, timeout=60).stdout for _ in range(2)
    )
    assert first == second
    assert json.loads(first)["metadata"]["component"]["name"] == "scene-edge"


def test_what_is_not_installed_is_no_list_with_a_hole(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="not installed"):
        closure(root="scene-edge-of-another-world")
    assert main([]) == 0
    assert capsys.readouterr().out
