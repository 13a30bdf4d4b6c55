"""LiteRT INT8 at fixed sizes: a subprocess in litert-torch's own environment converts, channel-last, and quantises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch.export import ExportedProgram

from scene_edge.codec.errors import EngineError
from scene_edge.quantize.graphs import Sample

PYTHON_VARIABLE = "SCENE_EDGE_LITERT_PYTHON"
WORKER = Path(__file__).with_name("litert_worker.py")
TIMEOUT_S = 60.0
"""From the last line that the worker prints to its end; conversion itself takes as long as it takes."""


@dataclass(frozen=True)
class LitertTask:
    """One graph at one size: the program was exported at exactly the shapes of the samples."""

    program: ExportedProgram
    inputs: Sequence[str]
    outputs: Sequence[str]
    samples: Sequence[Sample]


def litert_python() -> str:
    """The interpreter that has litert-torch: $SCENE_EDGE_LITERT_PYTHON, else this one. Raises EngineError."""
    named = os.environ.get(PYTHON_VARIABLE)
    if named:
        _check_interpreter(named)
        return named
    if find_spec("litert_torch") is not None:
        return sys.executable
    raise EngineError(
        "no litert-torch to convert to LiteRT with",
        hint="Make an environment of its own (pip install litert-torch ai-edge-quantizer) "
        f"and name its python in {PYTHON_VARIABLE}, or leave out --engine litert.",
    )


@lru_cache(maxsize=4)
def _check_interpreter(python: str) -> None:
    probe = "from importlib.util import find_spec as f; raise SystemExit(0 if f('litert_torch') else 3)"
    try:
        found = subprocess.run([python, "-c", probe], capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        found = False
    if not found:
        raise EngineError(f"{PYTHON_VARIABLE} names no python with litert-torch", got=python)


def quantise_litert(
    tasks: Sequence[LitertTask], done: Callable[[], None] | None = None
) -> tuple[list[bytes], dict[str, str]]:
    """Tasks -> the .tflite bytes of each, and the tools' versions; `done` is called after each. Raises EngineError."""
    python = litert_python()
    with tempfile.TemporaryDirectory(prefix="scene-edge-litert-") as name:
        folder = Path(name)
        (folder / "job.json").write_text(json.dumps([_write(folder, i, task) for i, task in enumerate(tasks)]))
        _work(python, folder, done)
        versions: dict[str, str] = json.loads((folder / "versions.json").read_text())
        return [(folder / f"{index}.tflite").read_bytes() for index in range(len(tasks))], versions


def _write(folder: Path, index: int, task: LitertTask) -> dict[str, object]:
    torch.export.save(task.program, folder / f"{index}.pt2")
    files = []
    for number, sample in enumerate(task.samples):
        files.append(f"{index}.{number:04d}.safetensors")
        save_file({key: np.ascontiguousarray(value) for key, value in sample.items()}, folder / files[-1])
    return {
        "program": f"{index}.pt2",
        "inputs": list(task.inputs),
        "outputs": list(task.outputs),
        "calibration": files,
        "target": f"{index}.tflite",
    }


def _work(python: str, folder: Path, done: Callable[[], None] | None) -> None:
    log = folder / "worker.log"
    command = [python, str(WORKER), str(folder)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, cwd=folder
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                if done and line.startswith("done "):
                    done()
            code = process.wait(timeout=TIMEOUT_S)
        except BaseException:
            process.kill()
            raise
    if code:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise EngineError("litert-torch failed", got=lines[-1][:300] if lines else f"exit code {code}")
