"""Shipped bundles with float32 artefacts beside those in INT8, so that both can be compared through the product's code.

They share manifest, tables and digest: what a camera codes in one precision, a server decodes in another.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.network_cost import torch_graphs
from scene_edge.codec.bundle import MANIFEST_FILE, Bundle, write_bundle
from scene_edge.codec.errors import ConfigError
from scene_edge.models.registry import GraphExport
from scene_edge.models.sizes import build_smc
from scene_edge.models.smc import SmcEncoder
from scene_edge.models.train_smc import load_start
from scene_edge.quantize.graphs import dynamic_axes, export_program, to_onnx, weights_digest
from scene_edge.quantize.to_openvino import to_ir

INPUTS = {
    "encoder": (("x", "lossy", "state_sem", "state_lossy"), ("latent", "next_sem", "next_lossy")),
    "decoder": (("lossy", "latent", "state_lossy", "state_fuse"), ("fused", "next_lossy", "next_fuse")),
}
EXPORT_SIZES = (96, 64), (160, 128)
"""Two sizes tell the exporter which sides are free."""


def smc_onnx(name: str, run: Path) -> dict[str, bytes]:
    """Graph -> float32 ONNX of the network that the bundle `name` was made of.

    Raises ConfigError where `run` is another training's.
    """
    model: Any = build_smc(name).eval()
    load_start(model, run)
    made = Bundle.open(name).manifest.get("quantisation", {}).get("weights_sha256", {}).get("encoder")
    if weights_digest(SmcEncoder(model)) != made:
        raise ConfigError(f"{run} is not the run that {name} was made of", hint="Name the run with --run.")
    files = {}
    for graph, (inputs, outputs) in INPUTS.items():
        found = [torch_graphs(name, size, model)[graph] for size in EXPORT_SIZES]
        samples = [dict(zip(inputs, (tensor.numpy() for tensor in given), strict=True)) for _, given in found]
        export = GraphExport(found[0][0], list(samples[0].items()), list(outputs), samples)
        program = export_program(export, samples[0], dynamic_axes(export))
        files[graph] = to_onnx(program, inputs, outputs).SerializeToString()
    return files


def add_float(bundle: Bundle, folder: Path, files: dict[str, bytes]) -> Bundle:
    """A copy of `bundle` in `folder` with `files`, graph -> float32 ONNX, for ONNX Runtime and OpenVINO."""
    shutil.copytree(bundle.path, folder)
    document = json.loads((folder / MANIFEST_FILE).read_text())
    for graph, data in files.items():
        plain = to_ir(data)
        written = {f"{graph}.float{suffix}": content for suffix, content in plain.items()}
        artefacts = [("openvino", next(iter(written))), ("onnx", f"{graph}.float.onnx")]
        for file, content in {**written, f"{graph}.float.onnx": data}.items():
            (folder / file).write_bytes(content)
        document["graphs"][graph]["artifacts"] += [
            {"engine": engine, "precision": "fp32", "file": file, "shape": None} for engine, file in artefacts
        ]
    del document["files"]
    return write_bundle(folder, document)


@contextmanager
def smc_with_float(name: str, run: Path) -> Iterator[Bundle]:
    """The shipped bundle `name` with float32 beside it, for as long as the context lasts."""
    with TemporaryDirectory(prefix="scene-edge-float-") as folder:
        yield add_float(Bundle.open(name), Path(folder) / name, smc_onnx(name, run))
