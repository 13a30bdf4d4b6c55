"""A toy bundle: what lies in it, that all engines agree with float torch at any size, and when nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="quantisation needs the extra train: pip install scene-edge[train]")
pytest.importorskip("onnxscript", reason="quantisation needs the extra train: pip install scene-edge[train]")

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper

from scene_edge.codec import ir
from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import ConfigError, EngineError
from scene_edge.codec.kernels import Kernel
from scene_edge.inference.golden import golden_error
from scene_edge.inference.session import open_session
from scene_edge.quantize.export import QuantisationReport, export_bundle
from scene_edge.quantize.graphs import export_program, run_torch, samples_digest, to_onnx, weights_digest
from scene_edge.quantize.kernels import slots_of
from tests.quantize.toys import encoder_sample, filter_sample, toy_graphs

Exported = tuple[Bundle, QuantisationReport, list[str]]
COMMON = {"name": "toy", "kind": "smc", "version": "0.1.0", "counter": 1, "parameters": {}, "training": {}}


@pytest.mark.parametrize("engine", ["openvino", "onnx"])
@pytest.mark.parametrize("precision", ["int8", "fp32"])
@pytest.mark.parametrize(("graph", "sample"), [("filter", filter_sample), ("encoder", encoder_sample)])
def test_every_engine_agrees_with_float_torch_at_a_size_that_calibration_never_saw(
    exported: Exported, engine: str, precision: str, graph: str, sample
) -> None:
    bundle, report, _ = exported
    if (engine, precision) == ("openvino", "fp32"):
        assert all(
            item.shipped is False for item in report.artifacts if (item.engine, item.precision) == (engine, "fp32")
        )
        return
    given = sample(77, 40, 64)
    wanted = run_torch(toy_graphs()[graph], given)
    session = open_session(bundle, graph, height=40, width=64, prefer=(engine,), precision=precision, threads=1)
    found = session.run(given)
    session.close()
    assert (session.engine, session.precision) == (engine, precision)
    bound = 1e-5 if precision == "fp32" else bundle.graph(graph).golden.tolerance
    errors = golden_error(found, {f"out.{name}": value for name, value in wanted.items()})
    assert errors.keys() == wanted.keys()
    assert max(errors.values()) <= bound
    if graph == "filter":  # the tail is float: hardly any grey level moves
        assert np.mean(np.abs(found["y"].astype(int) - wanted["y"])) < 0.1


def test_the_engines_agree_with_each_other(exported: Exported) -> None:
    bundle, _, _ = exported
    given = encoder_sample(5)
    results = {}
    for engine in ("openvino", "onnx"):
        session = open_session(bundle, "encoder", height=24, width=40, prefer=(engine,), threads=1)
        results[engine] = session.run(given)
        session.close()
    errors = golden_error(results["onnx"], {f"out.{key}": value for key, value in results["openvino"].items()})
    assert max(errors.values()) <= 2 * bundle.graph("encoder").golden.tolerance


def test_specs_leave_height_and_width_open_and_nothing_else(exported: Exported) -> None:
    bundle, _, _ = exported
    shapes = {spec.name: spec.shape for spec in bundle.graph("encoder").inputs}
    assert shapes == {"x": (1, None, None, 24), "lossy": (1, None, None, 24), "state_sem": (1, 48, None, None)}
    outputs = {spec.name: (spec.dtype, spec.shape) for spec in bundle.graph("encoder").outputs}
    assert outputs == {"latent": ("float32", (1, 8, None, None)), "next_sem": ("float32", (1, 48, None, None))}
    assert {spec.name: spec.shape for spec in bundle.graph("filter").inputs} == {"x": (1, None, None, 24)}
    assert [spec.dtype for spec in bundle.graph("filter").outputs] == ["uint8"]


@pytest.mark.parametrize(("engine", "precision"), [("openvino", "int8"), ("onnx", "int8"), ("onnx", "fp32")])
def test_other_kernels_are_written_into_finished_artefacts(exported: Exported, engine: str, precision: str) -> None:
    bundle, _, _ = exported
    graph, sample = toy_graphs()["filter"], filter_sample(77)
    random = np.random.default_rng(4)
    plain = graph.kernels["middle"]
    other = Kernel(plain.weights * random.uniform(0.3, 1.7, (len(plain.bias), 1, 1, 1)).astype(np.float32), -plain.bias)
    outputs = {}
    for name, kernels in (("own", None), ("other", {"middle": other})):
        session = open_session(
            bundle, "filter", height=24, width=40, prefer=(engine,), precision=precision, threads=1, kernels=kernels
        )
        assert session.precision == precision
        outputs[name] = session.run(sample)["y"].astype(float)
        session.close()
    own = run_torch(graph, sample)["y"].astype(float)
    with torch.no_grad():
        graph.module.middle.weight.copy_(torch.from_numpy(other.weights))
        graph.module.middle.bias.copy_(torch.from_numpy(other.bias))
    wanted = run_torch(graph, sample)["y"].astype(float)
    assert np.abs(own - wanted).mean() > 0.7, "the other kernels must make a difference"
    assert np.abs(outputs["own"] - own).mean() < 0.3
    assert np.abs(outputs["other"] - wanted).mean() < 0.3
    with pytest.raises(EngineError, match="no place for other kernels"):
        open_session(bundle, "filter", height=24, width=40, prefer=(engine,), kernels={"stem": other})


def test_kernels_that_cannot_be_found_again_are_refused() -> None:
    graph = toy_graphs()["filter"]
    kernels = {"middle": Kernel(graph.kernels["middle"].weights + 0.1, graph.kernels["middle"].bias)}
    model = to_onnx(export_program(graph, dict(graph.inputs), {}), ["x"], ["y"])
    with pytest.raises(EngineError, match="0 times"):
        slots_of("onnx", {"f.onnx": model.SerializeToString()}, kernels)


def test_golden_run_is_float_torch_and_the_tolerance_covers_what_was_measured(exported: Exported) -> None:
    bundle, report, _ = exported
    for name, graph in toy_graphs().items():
        golden = bundle.graph(name).golden
        tensors = bundle.tensors(golden.file)
        sample = {key[3:]: value for key, value in tensors.items() if key.startswith("in.")}
        assert max(golden_error(run_torch(graph, sample), tensors).values()) < 1e-5
        worst = max(item.worst[1] for item in report.artifacts if item.graph == name)
        assert worst < golden.tolerance <= max(0.02, 2.001 * worst + 1e-4)


def test_report_names_weights_samples_tools_and_figures_and_stands_in_the_manifest(exported: Exported) -> None:
    bundle, report, steps = exported
    graphs = toy_graphs()
    assert report.weights_sha256["filter"] == weights_digest(graphs["filter"].module)
    assert report.calibration_samples["filter"] + report.evaluation_samples["filter"] == 12
    assert report.calibration_sha256["filter"] != samples_digest(graphs["filter"].calibration)  # some only judge
    assert {"torch", "openvino", "onnxruntime"} <= report.tools.keys()
    by_file = {item.file: item for item in report.artifacts}
    assert by_file["encoder.int8.onnx"].latent_mismatch is not None
    assert by_file["filter.int8.onnx"].latent_mismatch is None
    assert all(item.cpu_ms > 0 and item.grid == (32, 48) and item.errors for item in report.artifacts)
    shipped = {item.file for item in report.artifacts if item.shipped}
    assert shipped == {artifact.file for graph in bundle.graphs.values() for artifact in graph.artifacts}
    assert by_file["encoder.int8.onnx"].size_bytes == bundle.files["encoder.int8.onnx"].size_bytes
    assert bundle.manifest["quantisation"] == json.loads(json.dumps(report.as_dict()))
    assert (bundle.counter, bundle.read("card.md")) == (3, b"# toy\n")
    done = [step.partition(" ")[0] for step in steps]
    assert done == [f"{number}/{len(steps)}" for number in range(1, len(steps) + 1)]


@pytest.mark.parametrize(("file", "activation"), [("filter.int8.onnx", 2), ("filter.tensorrt.int8.onnx", 3)])
def test_qdq_is_explicit_with_symmetric_weights_per_channel(exported: Exported, file: str, activation: int) -> None:
    bundle, _, _ = exported
    model = onnx.load_from_string(bundle.read(file))
    constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    kernels = [name for name, value in constants.items() if value.ndim == 4 and value.dtype == np.int8]
    assert len(kernels) == 3  # stem, middle, head: all of them
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in kernels:
            assert constants[node.input[1]].shape == (constants[node.input[0]].shape[0],)
            assert not constants[node.input[2]].any()
    points = [constants[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert points
    assert {onnx.helper.np_dtype_to_tensor_dtype(point.dtype) for point in points} == {activation}
    if activation == TensorProto.INT8:
        assert not any(point.any() for point in points)  # TensorRT accepts no other zero-point


def test_ir_is_quantised_and_the_way_to_the_picture_is_not(exported: Exported) -> None:
    bundle, _, _ = exported
    openvino = pytest.importorskip("openvino")
    text = ir.inflate(bundle.read("filter.int8.xml.gz"), "filter")
    model = openvino.Core().read_model(text, bundle.read("filter.int8.bin"))
    kinds = [node.get_type_name() for node in model.get_ordered_ops()]
    assert kinds.count("FakeQuantize") >= 3
    weights = [node for node in model.get_ordered_ops() if node.get_type_name() == "Constant"]
    kernels = [node for node in weights if len(node.get_output_shape(0)) == 4]
    assert sum(node.get_element_type().get_type_name() == "i8" for node in kernels) == 3
    left, tail = [model.get_results()[0].input_value(0).get_node()], []
    while left:
        node = left.pop()
        tail.append(node.get_type_name())
        if node.get_type_name() != "FakeQuantize":
            left += [node.input_value(index).get_node() for index in range(node.get_input_size())]
    assert tail.count("FakeQuantize") == 1, "of what the last convolution adds to the picture"
    assert "Parameter" in tail, "the picture itself comes through in float"


def test_no_file_tells_where_it_was_made(exported: Exported) -> None:
    bundle, _, _ = exported
    for file in bundle.files:
        data = bundle.read(file)
        assert b"site-packages" not in data, file
        assert b"toys.py" not in data, file
        assert str(Path.cwd()).encode() not in data, file
        assert b"/tmp/" not in data, file


def test_a_loss_beyond_the_bound_is_refused_and_the_old_bundle_stays(exported: Exported, tmp_path: Path) -> None:
    graphs = {"filter": toy_graphs(4)["filter"]}
    out = tmp_path / "toy"
    export_bundle(graphs, **COMMON, out=out, engines=("onnx",))
    before = Bundle.open(out).digest
    with pytest.raises(EngineError, match="int8 of graph filter on onnx loses too much in output y") as caught:
        export_bundle(graphs, **COMMON, out=out, engines=("onnx",), max_error=1e-7)
    assert caught.value.exit_code == 1
    assert Bundle.open(out).digest == before
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_bad_requests_are_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = toy_graphs(2)
    with pytest.raises(ConfigError, match="unknown engine"):
        export_bundle(graphs, **COMMON, out=tmp_path / "a", engines=("coreml",))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match="no bundle and not empty"):
        export_bundle(graphs, **COMMON, out=tmp_path / "mine", engines=("onnx",))
    graphs["filter"].calibration = []
    with pytest.raises(ConfigError, match="no calibration samples"):
        export_bundle(graphs, **COMMON, out=tmp_path / "a", engines=("onnx",))
    monkeypatch.setenv("SCENE_EDGE_LITERT_PYTHON", str(tmp_path / "python"))
    with pytest.raises(EngineError, match="SCENE_EDGE_LITERT_PYTHON"):
        export_bundle(toy_graphs(2), **COMMON, out=tmp_path / "a", engines=("litert",))
    assert not (tmp_path / "a").exists()
