"""One tiny recurrent graph in every engine's form, and in plain numpy as the truth.

    f = relu(conv3x3(x)); next_state = state / 2 + mean of each 4x4 of f; y = 2 * next_state

x u8 [1, h, w, 24], state f32 [1, 4, h/4, w/4]. tests/golden/tiny.tflite holds it fixed to 16x24, made with
litert-torch 0.10 from a module with these weights.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from scene_edge.codec import ir
from scene_edge.codec.bundle import Bundle, write_bundle
from scene_edge.codec.errors import EngineError
from scene_edge.inference.openvino import load

GRID = (16, 24)
TFLITE = Path(__file__).parents[1] / "golden" / "tiny.tflite"
WEIGHTS = (((np.arange(4 * 24 * 9) * 37) % 101 - 50) / 1000).astype(np.float32).reshape(4, 24, 3, 3)


def inputs(seed: int = 0, grid: tuple[int, int] = GRID) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    h, w = grid
    return {
        "x": rng.integers(0, 256, (1, h, w, 24), dtype=np.uint8),
        "state": rng.normal(size=(1, 4, h // 4, w // 4)).astype(np.float32),
    }


def truth(given: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    x = np.pad(given["x"][0].astype(np.float64), ((1, 1), (1, 1), (0, 0)))
    h, w = given["x"].shape[1:3]
    taps = [(dy, dx) for dy in range(3) for dx in range(3)]
    f = sum(np.einsum("hwc,oc->ohw", x[dy : dy + h, dx : dx + w], WEIGHTS[:, :, dy, dx]) for dy, dx in taps)
    pooled = np.maximum(f, 0).reshape(4, h // 4, 4, w // 4, 4).mean(axis=(2, 4))
    following = (0.5 * given["state"] + pooled[None]).astype(np.float32)
    return {"y": 2 * following, "next_state": following}


def onnx_bytes(weights: NDArray[np.float32] = WEIGHTS) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    state_shape = [1, 4, "h4", "w4"]
    nodes = [
        helper.make_node("Cast", ["x"], ["as_float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["as_float"], ["planar"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planar", "weights"], ["linear"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["linear"], ["f"]),
        helper.make_node("AveragePool", ["f"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Mul", ["state", "half"], ["fading"]),
        helper.make_node("Add", ["fading", "pooled"], ["next_state"]),
        helper.make_node("Mul", ["next_state", "two"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("x", TensorProto.UINT8, [1, "h", "w", 24]),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, state_shape),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, state_shape) for name in ("y", "next_state")],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.float32(0.5), "half"),
            numpy_helper.from_array(np.float32(2.0), "two"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def tensor_specs(*names: str) -> list[dict[str, Any]]:
    packed = {"dtype": "uint8", "shape": [1, None, None, 24]}
    state = {"dtype": "float32", "shape": [1, 4, None, None]}
    return [{"name": name, **(packed if name == "x" else state)} for name in names]


def manifest(artifacts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "format": 1,
        "name": "tiny",
        "kind": "smc",
        "version": "0.1.0",
        "counter": 1,
        "parameters": {},
        "graphs": {
            "tiny": {
                "inputs": tensor_specs("x", "state"),
                "outputs": tensor_specs("y", "next_state"),
                "artifacts": artifacts,
                "golden": {"file": "tiny.golden.safetensors", "tolerance": 0.01},
            }
        },
    }


ARTIFACTS = [
    {"engine": "openvino", "precision": "fp32", "file": "tiny.xml.gz", "shape": None},
    {"engine": "onnx", "precision": "fp32", "file": "tiny.onnx", "shape": None},
    {"engine": "litert", "precision": "fp32", "file": "tiny.tflite", "shape": list(GRID)},
    {"engine": "tensorrt", "precision": "fp32", "file": "tiny.onnx", "shape": None},
]


def write_golden(folder: Path, *, scale: float = 1.0) -> None:
    given = inputs(seed=42)
    tensors = {f"in.{name}": array for name, array in given.items()}
    tensors |= {f"out.{name}": (array * scale).astype(np.float32) for name, array in truth(given).items()}
    save_file(tensors, folder / "tiny.golden.safetensors")


def write_tiny(folder: Path) -> Bundle:
    """The whole bundle, in a new folder."""
    folder.mkdir(parents=True)
    (folder / "tiny.onnx").write_bytes(onnx_bytes())
    shutil.copy(TFLITE, folder / "tiny.tflite")
    write_golden(folder)
    artifacts = list(ARTIFACTS)
    try:
        openvino = load()
        plain = folder / "tiny.xml"
        openvino.save_model(openvino.Core().read_model(onnx_bytes(), b""), plain, compress_to_fp16=False)
        (folder / "tiny.xml.gz").write_bytes(ir.deflate(plain.read_bytes()))
        plain.unlink()
    except EngineError as error:
        # openvino is an extra: without it the other engines are still tested
        print(f"no OpenVINO IR in this run: {error}")
        artifacts = [artifact for artifact in artifacts if artifact["engine"] != "openvino"]
    return write_bundle(folder, manifest(artifacts))
