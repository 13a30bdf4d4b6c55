"""Choosing an engine: the first that really runs, every reason kept, and clear errors where none does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from scene_edge.codec import ir
from scene_edge.codec.bundle import Bundle, write_bundle
from scene_edge.codec.errors import BundleError, EngineError
from scene_edge.inference import onnxruntime as onnx_engine
from scene_edge.inference import openvino as openvino_engine
from scene_edge.inference.fake import FakeSession
from scene_edge.inference.golden import KEPT, fitted, golden_error, kept_at, sampled
from scene_edge.inference.session import Session, TensorInfo, available_engines, open_session
from tests.inference import tiny

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.write_tiny(tmp_path / "tiny")
    return tmp_path / "tiny"


def rewrite(folder: Path, artifacts: list[dict[str, Any]] | None = None, **graph: Any) -> Bundle:
    document = tiny.manifest(tiny.ARTIFACTS if artifacts is None else artifacts)
    document["graphs"]["tiny"] |= graph
    return write_bundle(folder, document)


def test_every_engine_has_a_version_or_a_reason() -> None:
    found = available_engines()
    assert set(found) == {"openvino", "onnx", "litert", "tensorrt"}
    assert found["onnx"][0].isdigit()


def test_tensorrt_says_why_it_is_absent(folder: Path) -> None:
    if not available_engines()["tensorrt"].startswith("absent"):
        pytest.skip("TensorRT is here")
    assert "JetPack" in available_engines()["tensorrt"]
    session = open_session(
        Bundle.open(folder), "tiny", height=16, width=24, prefer=["tensorrt", "onnx"], precision="fp32"
    )
    assert session.engine == "onnx"
    assert "TensorRT is not installed" in session.fallbacks[0]


@pytest.mark.parametrize("engine", ["openvino", "onnx"])
@pytest.mark.parametrize("grid", [(8, 8), (24, 40)])
def test_any_size_of_the_grid(folder: Path, engine: str, grid: tuple[int, int]) -> None:
    if available_engines()[engine].startswith("absent"):
        pytest.skip(available_engines()[engine])
    session = open_session(
        Bundle.open(folder), "tiny", height=grid[0], width=grid[1], prefer=[engine], precision="fp32", threads=1
    )
    assert session.inputs["state"].shape == (1, 4, grid[0] // 4, grid[1] // 4)
    given = tiny.inputs(1, grid)
    np.testing.assert_allclose(session.run(given)["y"], tiny.truth(given)["y"], rtol=2e-3, atol=2e-2)


def test_litert_at_a_size_that_was_not_exported(folder: Path) -> None:
    """Resized where the graph allows it; if not, that is an error, never a wrong number."""
    if available_engines()["litert"].startswith("absent"):
        pytest.skip(available_engines()["litert"])
    session = open_session(
        Bundle.open(folder), "tiny", height=32, width=40, prefer=["litert", "onnx"], precision="fp32"
    )
    assert session.engine == "litert" or session.fallbacks[0].startswith("litert fp32: ")
    given = tiny.inputs(1, (32, 40))
    np.testing.assert_allclose(session.run(given)["y"], tiny.truth(given)["y"], rtol=2e-3, atol=2e-2)


def test_another_precision_is_announced(folder: Path) -> None:
    session = open_session(Bundle.open(folder), "tiny", height=16, width=24, prefer=["onnx"])
    assert session.precision == "fp32"
    assert session.fallbacks == ("onnx: runs at fp32 instead of int8",)


def test_the_asked_precision_comes_first(folder: Path) -> None:
    (folder / "small.onnx").write_bytes(tiny.onnx_bytes())
    bundle = rewrite(folder, [*tiny.ARTIFACTS, {"engine": "onnx", "precision": "int8", "file": "small.onnx"}])
    session = open_session(bundle, "tiny", height=16, width=24, prefer=["onnx"])
    assert (session.precision, session.fallbacks) == ("int8", ())


def test_an_engine_that_computes_something_else_is_passed_over(folder: Path) -> None:
    (folder / "wrong.onnx").write_bytes(tiny.onnx_bytes(tiny.WEIGHTS[::-1].copy()))
    bundle = rewrite(folder, [{"engine": "onnx", "precision": "int8", "file": "wrong.onnx"}, *tiny.ARTIFACTS])
    session = open_session(bundle, "tiny", height=24, width=24, prefer=["onnx"])
    assert session.precision == "fp32"
    assert "does not reproduce the golden output" in session.fallbacks[0]
    unchecked = open_session(bundle, "tiny", height=24, width=24, prefer=["onnx"], verify=False)
    assert unchecked.precision == "int8"


def test_every_reason_is_listed_where_nothing_runs(folder: Path) -> None:
    (folder / "broken.onnx").write_bytes(b"\x08\x08 this is no network")
    bundle = rewrite(folder, [{"engine": "onnx", "precision": "int8", "file": "broken.onnx"}])
    with pytest.raises(EngineError) as caught:
        open_session(bundle, "tiny", height=16, width=24)
    for part in ("openvino: bundle tiny has no artifact", "onnx int8: ", "litert: bundle tiny", "extras"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["tiny.xml.gz", "tiny.bin", "tiny.onnx", "tiny.tflite"])
def test_a_model_that_is_cut_or_garbled_behind_a_good_digest(folder: Path, file: str) -> None:
    path = folder / file
    if not path.exists():
        pytest.skip("no OpenVINO here")
    engine = {"xml": "openvino", "bin": "openvino", "onnx": "onnx", "tflite": "litert"}[file.split(".")[1]]
    if available_engines()[engine].startswith("absent"):
        pytest.skip(available_engines()[engine])
    packed = file.endswith(ir.SUFFIX)
    whole = ir.inflate(path.read_bytes(), file) if packed else path.read_bytes()
    for data in (whole[: len(whole) // 2], whole[:20], whole[: len(whole) // 3] + bytes(len(whole) - len(whole) // 3)):
        path.write_bytes(ir.deflate(data) if packed else data)
        with pytest.raises(EngineError):
            open_session(rewrite(folder), "tiny", height=16, width=24, prefer=[engine], precision="fp32")


def test_an_engine_that_is_not_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (openvino_engine, onnx_engine):
        module.load.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    try:
        with pytest.raises(EngineError) as caught:
            open_session(Bundle.open(folder), "tiny", height=16, width=24, prefer=["openvino", "onnx"])
    finally:
        for module in (openvino_engine, onnx_engine):
            module.load.cache_clear()
    assert "openvino is not installed" in str(caught.value)
    assert "onnxruntime is not installed" in str(caught.value)
    assert 'pip install "scene-edge[onnx]"' in str(caught.value)


def test_bad_requests(folder: Path) -> None:
    bundle = Bundle.open(folder)
    for arguments, complaint in (
        ({"prefer": ["cuda"]}, "unknown inference engine"),
        ({"prefer": []}, "no engine to try"),
        ({"height": 0}, "out of range"),
        ({"height": 1 << 20}, "out of range"),
        ({"height": None}, "no fixed size"),
        ({"threads": 0}, "threads"),
    ):
        with pytest.raises(EngineError, match=complaint):
            open_session(bundle, "tiny", **{"height": 16, "width": 24, **arguments})  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="no such graph"):
        open_session(bundle, "huge", height=16, width=24)


def test_a_golden_run_that_does_not_fit_its_graph(folder: Path) -> None:
    path = folder / "tiny.golden.safetensors"
    good = load_file(path)
    for change in ({"in.x": good["in.x"].astype(np.float32)}, {"in.state": good["in.state"][:, :3]}):
        save_file({**good, **change}, path)
        with pytest.raises(BundleError, match="golden run"):
            open_session(rewrite(folder), "tiny", height=16, width=24)
    save_file({name: array for name, array in good.items() if name != "out.y"}, path)
    with pytest.raises(BundleError, match=r"out\.y"):
        open_session(rewrite(folder), "tiny", height=16, width=24)


def test_without_a_golden_run_open_sizes_of_states_are_unknown(folder: Path) -> None:
    bundle = rewrite(folder, golden=None)
    with pytest.raises(EngineError, match="golden run"):
        open_session(bundle, "tiny", height=16, width=24, prefer=["onnx"])


def test_fixed_shapes_need_neither_size_nor_golden_run(folder: Path) -> None:
    inputs = tiny.tensor_specs("x", "state")
    inputs[0]["shape"], inputs[1]["shape"] = [1, 16, 24, 24], [1, 4, 4, 6]
    bundle = rewrite(folder, inputs=inputs, golden=None)
    session = open_session(bundle, "tiny", height=None, width=None, prefer=["onnx"], precision="fp32")
    given = tiny.inputs(2)
    np.testing.assert_allclose(session.run(given)["y"], tiny.truth(given)["y"], rtol=2e-3, atol=2e-2)


def test_not_a_number_for_zeros_is_refused(folder: Path) -> None:
    bad = tiny.WEIGHTS.copy()
    bad[0, 0] = np.nan
    (folder / "nan.onnx").write_bytes(tiny.onnx_bytes(bad))
    inputs = tiny.tensor_specs("x", "state")
    inputs[0]["shape"], inputs[1]["shape"] = [1, 16, 24, 24], [1, 4, 4, 6]
    bundle = rewrite(folder, [{"engine": "onnx", "precision": "fp32", "file": "nan.onnx"}], inputs=inputs, golden=None)
    with pytest.raises(EngineError, match="not finite"):
        open_session(bundle, "tiny", height=None, width=None, prefer=("onnx",), precision="fp32")


def test_other_inputs_and_outputs_than_the_manifest_says(folder: Path) -> None:
    specs = tiny.tensor_specs("x", "state")
    specs[1]["dtype"] = "float16"
    for graph in (
        {"inputs": tiny.tensor_specs("x"), "golden": None},
        {"outputs": [{"name": "z", "dtype": "float32", "shape": [1, 4, 4, 6]}], "golden": None},
        {"inputs": specs, "golden": None},
    ):
        for spec in graph.get("inputs") or []:
            spec["shape"] = [1, 16, 24, 24] if spec["name"] == "x" else [1, 4, 4, 6]
        fixed = tiny.tensor_specs("x", "state")
        fixed[0]["shape"], fixed[1]["shape"] = [1, 16, 24, 24], [1, 4, 4, 6]
        bundle = rewrite(folder, **{"inputs": fixed, **graph})
        for engine in ("openvino", "onnx", "litert"):
            with pytest.raises(EngineError, match=engine):
                open_session(bundle, "tiny", height=None, width=None, prefer=[engine], precision="fp32")


def test_golden_error_is_relative() -> None:
    golden = {"in.x": np.ones(3), "out.y": np.asarray([3.0, 4.0])}
    assert golden_error({"y": np.asarray([3.0, 4.0])}, golden) == {"y": 0.0}
    assert golden_error({"y": np.asarray([3.3, 4.4])}, golden)["y"] == pytest.approx(0.1)
    assert golden_error({"y": np.asarray([np.nan, 4.0])}, golden)["y"] == float("inf")
    for outputs in ({}, {"y": np.ones(3)}):
        with pytest.raises(EngineError, match="golden"):
            golden_error(outputs, golden)


@pytest.mark.parametrize("engine", ["onnx", "litert"])
def test_an_artefact_of_another_size_is_held_to_what_is_kept_of_a_run_at_its_own(folder: Path, engine: str) -> None:
    """Nothing kept: finite numbers are all that can be asked. Something kept: it must be reproduced."""
    if available_engines()[engine].startswith("absent"):
        pytest.skip(available_engines()[engine])
    small = tiny.inputs(9, (8, 12))
    golden = {f"in.{name}": value for name, value in small.items()}
    golden |= {f"out.{name}": value for name, value in tiny.truth(small).items()}
    file = {"onnx": "tiny.onnx", "litert": "tiny.tflite"}[engine]
    fixed = [{"engine": engine, "precision": "fp32", "file": file, "shape": [16, 24]}]
    outputs = tiny.truth(fitted(small, {name: value.shape for name, value in tiny.inputs().items()}))

    def opened(scale: float | None) -> Session:
        kept = {} if scale is None else kept_at((16, 24), {name: value * scale for name, value in outputs.items()})
        save_file({**golden, **kept}, folder / "tiny.golden.safetensors")
        bundle = rewrite(folder, fixed)
        return open_session(bundle, "tiny", height=16, width=24, prefer=[engine], precision="fp32")

    assert not opened(None).proven
    assert opened(1.0).proven
    with pytest.raises(EngineError, match="does not reproduce the golden output"):
        opened(np.float32(1.1))


def test_kept_values_are_few_and_always_the_same() -> None:
    values = np.arange(100_000, dtype=np.float32).reshape(10, 10_000)
    kept = sampled(values)
    assert kept.shape == (KEPT,)
    assert len(np.unique(kept)) > 0.95 * KEPT
    assert np.ptp(kept) > 0.99 * values.size
    assert sampled(values[0, :7]).tolist() == [0, 5, 3, 1, 6, 4, 2]
    assert np.array_equal(sampled(values.ravel()), kept)


def test_runtime_errors_come_out_as_engine_errors() -> None:
    info = {"x": TensorInfo((2,), np.dtype(np.float32))}

    def fail(given: object) -> dict[str, Any]:
        raise RuntimeError("line one\nline two")

    session = FakeSession(fail, inputs=info, outputs=info)
    with pytest.raises(EngineError, match="line one line two"):
        session.run({"x": np.zeros(2, np.float32)})
    other = FakeSession(lambda given: {}, inputs=info, outputs=info)
    with pytest.raises(EngineError, match="other outputs"):
        other.run({"x": np.zeros(2, np.float32)})


@pytest.fixture(scope="module")
def modules_with_openvino() -> set[str]:
    """What a process has loaded once it opened OpenVINO through us."""
    if available_engines()["openvino"].startswith("absent"):
        pytest.skip(available_engines()["openvino"])
    script = (
        "import sys, json; from scene_edge.inference.openvino import load; load();"
        "print(json.dumps(sorted(name for name, module in sys.modules.items() if module is not None)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    return set(json.loads(done.stdout))


def test_openvino_is_loaded_without_its_telemetry(modules_with_openvino: set[str]) -> None:
    assert "openvino" in modules_with_openvino
    assert not {name for name in modules_with_openvino if name.startswith("openvino_telemetry")}


def test_no_training_package_comes_along(modules_with_openvino: set[str]) -> None:
    assert not modules_with_openvino & {
        "torch",
        "scene_edge.models",
        "scene_edge.edge",
        "scene_edge.server",
    }
