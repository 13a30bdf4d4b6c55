"""Runs in the environment of litert-torch, as a script: exported programs and calibration in, .tflite files out.

`python litert_worker.py FOLDER` reads FOLDER/job.json: a list of {"program": "x.pt2", "inputs": [names in order],
"outputs": [names in order], "calibration": ["x.000.safetensors", ...], "target": "x.tflite"}, and writes each target.
litert-torch pins packages that nothing else here can live with, hence a process of its own; it imports no scene_edge.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import litert_torch
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer import quantizer, recipe
from ai_edge_quantizer.qtyping import TFLOperationName
from safetensors.numpy import load_file

ARITHMETIC = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL")
MOVES = ("CONCATENATION", "SLICE", "STRIDED_SLICE", "SPLIT", "TRANSPOSE", "RESHAPE", "CAST", "RESIZE_NEAREST_NEIGHBOR")
TOOLS = ("litert-torch", "ai-edge-quantizer", "ai-edge-litert", "torch")


class Named(torch.nn.Module):
    """Gives the graph's inputs and outputs their names in the model's signature."""

    def __init__(self, module: torch.nn.Module, inputs: list[str], outputs: list[str]) -> None:
        super().__init__()
        self.module, self.inputs, self.outputs = module, inputs, outputs

    def forward(self, **given: torch.Tensor) -> dict[str, torch.Tensor]:
        result = self.module(*(given[name] for name in self.inputs))
        tensors = result if isinstance(result, (tuple, list)) else (result,)
        return dict(zip(self.outputs, tensors, strict=True))


def float_scopes(model: bytes) -> list[str]:
    """Patterns of operations that stay in float, for the reasons given in `to_onnx.float_nodes`."""
    tree = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    patterns = []
    for graph in tree.subgraphs:
        producers = {int(tensor): operator for operator in graph.operators for tensor in operator.outputs}
        chosen = {id(op): op for op in graph.operators if _kind(tree, names, op) == "SUB"}
        for output in graph.outputs:
            picture = graph.tensors[output].type == schema.TensorType.UINT8
            stack, visited = [int(output)], set()
            while stack:
                operator = producers.get(stack.pop())
                if operator is None or id(operator) in visited:
                    continue
                kind = _kind(tree, names, operator)
                if kind in ARITHMETIC or not (picture or kind in MOVES):
                    continue
                visited.add(id(operator))
                chosen[id(operator)] = operator
                stack += [int(tensor) for tensor in operator.inputs if tensor >= 0]
        for operator in chosen.values():
            scope = ";".join(graph.tensors[tensor].name.decode() for tensor in operator.outputs)
            patterns.append(f"^{re.escape(scope)};$")
    return patterns


def _kind(tree: Any, names: dict[int, str], operator: Any) -> str:
    code = tree.operatorCodes[operator.opcodeIndex]
    return names[max(code.builtinCode, code.deprecatedBuiltinCode)]


def convert(folder: Path, task: dict[str, Any]) -> None:
    calibration = [load_file(folder / name) for name in task["calibration"]]
    program = torch.export.load(folder / task["program"])
    module = Named(program.module(), task["inputs"], task["outputs"])
    example = {name: torch.from_numpy(calibration[0][name]) for name in task["inputs"]}
    source = folder / "float.tflite"
    litert_torch.convert(module, sample_kwargs=example).export(str(source))
    settings = recipe.static_wi8_ai8()
    for operation in (TFLOperationName.INPUT, TFLOperationName.OUTPUT):
        settings.append({"regex": ".*", "operation": operation, "algorithm_key": "no_quantize"})
    for pattern in float_scopes(source.read_bytes()):
        settings.append({"regex": pattern, "operation": TFLOperationName.ALL_SUPPORTED, "algorithm_key": "no_quantize"})
    worker = quantizer.Quantizer(str(source), settings)
    ranges = worker.calibrate({"serving_default": calibration}, num_threads=1)
    (folder / task["target"]).write_bytes(bytes(worker.quantize(ranges).quantized_model))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for task in json.loads((folder / "job.json").read_text()):
        convert(folder, task)
        print(f"done {task['target']}", flush=True)
    (folder / "versions.json").write_text(json.dumps({name: version(name) for name in TOOLS}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
