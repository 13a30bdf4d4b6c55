"""Tiny SCENE and SMC bundles in ONNX, built here, whose outputs a test can work out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from scene_edge.codec.bundle import Bundle, write_bundle
from scene_edge.codec.kernels import Kernel
from scene_edge.codec.latents import LatentTables
from scene_edge.codec.quality import tensors_of
from scene_edge.quantize.kernels import slots_of

CHANNELS = 2
FLOAT, UINT8 = 1, 2

Spec = tuple[str, int, list[int | str]]


def scene_bundle(folder: Path, *, shift: float = 10.0) -> Bundle:
    """y = x - strength * a * shift, clipped, where a = 1 in a picture whose mean is at most 150, and 2 at 200.

    Where the CRF is known, (CRF - 35) / 10 is added to a.
    """
    from onnx import helper, numpy_helper
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    thumb: Spec = ("thumb", UINT8, [1, 18, 32, 24])
    coefficients: Spec = ("coefficients", FLOAT, [1, 24, 1, 1])
    x: Spec = ("x", UINT8, [1, "h", "w", 24])
    y: Spec = ("y", UINT8, [1, "h", "w", 24])
    one = np.eye(24, dtype=np.float32)[..., None, None]
    kernels = {
        "shade": Kernel(1e-5 * one, np.ones(24, np.float32)),
        "head": Kernel(-np.float32(shift) * one, np.full(24, 1e-3, np.float32)),
    }
    prior = [
        helper.make_node("Cast", ["thumb"], ["t"], to=FLOAT),
        helper.make_node("ReduceMean", ["t"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["mean", "bright"], ["above"]),
        helper.make_node("Relu", ["above"], ["excess"]),
        helper.make_node("Mul", ["excess", "slope"], ["more"]),
        helper.make_node("Add", ["more", "one"], ["a"]),
        helper.make_node("Expand", ["a", "outputs"], ["coefficients"]),
    ]
    numbers = [helper.make_tensor(*item) for item in (("bright", FLOAT, [], [150.0]), ("slope", FLOAT, [], [0.02]))]
    numbers += [helper.make_tensor("one", FLOAT, [], [1.0]), helper.make_tensor("outputs", 7, [4], [1, 24, 1, 1])]
    filtered = [
        helper.make_node("Cast", ["x"], ["f"], to=FLOAT),
        helper.make_node("Transpose", ["f"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "shade.weight", "shade.bias"], ["shade"]),
        helper.make_node("Conv", ["shade", "head.weight", "head.bias"], ["added"]),
        helper.make_node("Add", ["planes", "added"], ["sum"]),
        helper.make_node("Transpose", ["sum"], ["packed"], perm=[0, 2, 3, 1]),
        helper.make_node("Round", ["packed"], ["whole"]),
        helper.make_node("Clip", ["whole", "zero", "top"], ["clipped"]),
        helper.make_node("Cast", ["clipped"], ["y"], to=UINT8),
    ]
    constants = [
        helper.make_tensor("zero", FLOAT, [], [0.0]),
        helper.make_tensor("top", FLOAT, [], [255.0]),
    ]
    tensors = {f"{name}.weight": kernel.weights for name, kernel in kernels.items()}
    tensors |= {f"{name}.bias": kernel.bias for name, kernel in kernels.items()}
    constants += [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    _save(folder / "prior.fp32.onnx", "prior", prior, [thumb], [coefficients], numbers)
    _save(folder / "filter.fp32.onnx", "filter", filtered, [x], [y], constants)
    slopes = np.zeros((2, 48), np.float32)
    slopes[0, :24] = 1.0
    save_file({**tensors, "slopes": slopes}, folder / "weights.safetensors")
    graphs = {"prior": _graph("prior", [thumb], [coefficients]), "filter": _graph("filter", [x], [y])}
    file = graphs["filter"]["artifacts"][0]["file"]
    graphs["filter"]["artifacts"][0]["kernels"] = slots_of("onnx", {file: (folder / file).read_bytes()}, kernels)
    parameters = {"grid": 4, "prior_period_ms": 1000, "prior_size": [72, 128]}
    parameters |= {"config": {"bases": 1}, "kernels": [["shade", "shade"]], "residual": ["head", "head"]}
    parameters["coarseness"] = {"slopes": "slopes", "centre": 35.0, "unit": 10.0, "range": [25.0, 45.0]}
    return write_bundle(folder, _manifest("scene-tiny", "scene", graphs, parameters))


def where_bundle(folder: Path, **use: Any) -> Bundle:
    """Something is where the picture is bright: the map is the mean of all samples of a cell, over 255."""
    from onnx import helper

    folder.mkdir(parents=True)
    x: Spec = ("x", UINT8, [1, "h", "w", 24])
    there: Spec = ("there", FLOAT, [1, 1, "h4", "w4"])
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=FLOAT),
        helper.make_node("Transpose", ["f"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("ReduceMean", ["planes"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("AveragePool", ["mean"], ["cells"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Div", ["cells", "top"], ["there"]),
    ]
    constants = [helper.make_tensor("top", FLOAT, [], [255.0])]
    _save(folder / "where.fp32.onnx", "where", nodes, [x], [there], constants)
    settings = {"width": 640, "period_ms": 125, "low": 0.3, "high": 0.6, "fade": 0.5, "coarse": 4}
    settings |= {"off_crf": 27, "on_crf": 37} | use
    graphs = {"where": _graph("where", [x], [there])}
    return write_bundle(folder, _manifest("where-tiny", "scene", graphs, {"where": settings}))


def smc_bundle(folder: Path) -> Bundle:
    """latent = mean of (x - lossy) over 4x4 cells of two luma channels, plus the frames since the keyframe."""
    import onnxruntime
    from onnx import helper
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    inputs: list[Spec] = [
        ("x", UINT8, [1, "h", "w", 24]),
        ("lossy", UINT8, [1, "h", "w", 24]),
        ("state_sem", FLOAT, [1, CHANNELS, "h4", "w4"]),
        ("state_lossy", FLOAT, [1, CHANNELS, "h4", "w4"]),
    ]
    outputs: list[Spec] = [
        ("latent", FLOAT, [1, CHANNELS, "h4", "w4"]),
        ("next_sem", FLOAT, [1, CHANNELS, "h4", "w4"]),
        ("next_lossy", FLOAT, [1, CHANNELS, "h4", "w4"]),
    ]
    constants = [
        helper.make_tensor("one", FLOAT, [1], [1.0]),
        helper.make_tensor("from", 7, [1], [0]),
        helper.make_tensor("to", 7, [1], [CHANNELS]),
        helper.make_tensor("axis", 7, [1], [1]),
    ]
    nodes = [
        helper.make_node("Cast", ["x"], ["fx"], to=FLOAT),
        helper.make_node("Cast", ["lossy"], ["fl"], to=FLOAT),
        helper.make_node("Sub", ["fx", "fl"], ["lost"]),
        helper.make_node("Transpose", ["lost"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Slice", ["pooled", "from", "to", "axis"], ["two"]),
        helper.make_node("Add", ["two", "state_sem"], ["latent"]),
        helper.make_node("Add", ["state_sem", "one"], ["next_sem"]),
        helper.make_node("Add", ["state_lossy", "one"], ["next_lossy"]),
    ]
    _save(folder / "encoder.fp32.onnx", "encoder", nodes, inputs, outputs, constants)
    random = np.random.default_rng(5)
    dense, sparse = random.integers(-4, 5, (8, CHANNELS, 4, 6)), random.integers(-1, 2, (8, CHANNELS, 4, 6))
    tables = [LatentTables.fit([dense], max_abs=6), LatentTables.fit([dense // 2]), LatentTables.fit([sparse])]
    save_file(tensors_of(tables), folder / "tables.safetensors")
    parameters = {
        "channels": CHANNELS,
        "stride": 16,
        "tables": "tables.safetensors",
        "quality_steps": [1.0, 2.0, 8.0],
    }
    golden = {
        "x": random.integers(0, 255, (1, 16, 24, 24), dtype=np.uint8),
        "lossy": random.integers(0, 255, (1, 16, 24, 24), dtype=np.uint8),
        "state_sem": np.zeros((1, CHANNELS, 4, 6), np.float32),
        "state_lossy": np.zeros((1, CHANNELS, 4, 6), np.float32),
    }
    model = onnxruntime.InferenceSession(str(folder / "encoder.fp32.onnx"))
    ran = zip((name for name, _, _ in outputs), model.run(None, golden), strict=True)
    tensors = {f"in.{name}": value for name, value in golden.items()} | {f"out.{name}": value for name, value in ran}
    save_file(tensors, folder / "encoder.golden.safetensors")
    encoder = {
        **_graph("encoder", inputs, outputs),
        "golden": {"file": "encoder.golden.safetensors", "tolerance": 0.01},
    }
    graphs = {"encoder": encoder}
    return write_bundle(folder, _manifest("smc-tiny", "smc", graphs, parameters))


def _save(
    path: Path, name: str, nodes: list[Any], inputs: list[Spec], outputs: list[Spec], constants: list[Any]
) -> None:
    import onnx
    from onnx import helper

    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(*spec) for spec in inputs],
        [helper.make_tensor_value_info(*spec) for spec in outputs],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))


def _graph(name: str, inputs: list[Spec], outputs: list[Spec]) -> dict[str, Any]:
    return {
        "inputs": _specs(inputs),
        "outputs": _specs(outputs),
        "artifacts": [{"engine": "onnx", "precision": "fp32", "file": f"{name}.fp32.onnx", "shape": None}],
    }


def _specs(specs: list[Spec]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "dtype": {FLOAT: "float32", UINT8: "uint8"}[kind],
            "shape": [None if isinstance(side, str) else side for side in shape],
        }
        for name, kind, shape in specs
    ]


def _manifest(name: str, kind: str, graphs: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": 1,
        "name": name,
        "kind": kind,
        "version": "0.0.1",
        "counter": 1,
        "graphs": graphs,
        "parameters": parameters,
        "quantisation": {},
        "training": {},
    }
