"""Graphs on LiteRT with XNNPACK (`ai_edge_litert`, else `tflite_runtime`): what a Raspberry Pi runs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scene_edge.codec.errors import EngineError
from scene_edge.inference.seam import BROKEN_IMPORT, CheckedSession, Order, TensorInfo, one_line

# tflite_runtime ended at 2.14, which breaks with numpy 2: only where the other is missing.
_RUNTIMES = (("ai_edge_litert.interpreter", "ai-edge-litert"), ("tflite_runtime.interpreter", "tflite-runtime"))

_NUMBERED = re.compile(r"(?:args|output)_(\d+)")


@lru_cache(maxsize=1)
def load() -> tuple[ModuleType, str]:
    """The interpreter's module and its distribution. Raises EngineError where there is none."""
    reasons = []
    for module, distribution in _RUNTIMES:
        try:
            return import_module(module), distribution
        except BROKEN_IMPORT as error:
            reasons.append(one_line(error))
    raise EngineError("LiteRT is not installed", got="; ".join(reasons), hint='pip install "scene-edge[litert]"')


def runtime_version() -> str:
    """Distribution and version of the runtime. Raises EngineError where there is none."""
    _, distribution = load()
    try:
        return f"{distribution} {version(distribution)}"
    except PackageNotFoundError:
        return distribution


class LiteRtSession(CheckedSession):
    """One interpreter with its tensors allocated once."""

    engine = "litert"

    def __init__(self, order: Order) -> None:
        module, _ = load()
        file = order.artifact.file
        try:
            # The interpreter reads the model in place: the bytes live as long as it does.
            self._content = order.read(file)
            self._interpreter = module.Interpreter(model_content=self._content, num_threads=order.threads)
            signature = _signature(self._interpreter)
            inputs = _details(order.inputs, self._interpreter.get_input_details(), signature.get("inputs", {}), file)
            for name, info in order.inputs.items():
                _check_input(name, info, inputs[name], file)
                if tuple(inputs[name]["shape"]) != info.shape:
                    self._interpreter.resize_tensor_input(inputs[name]["index"], info.shape, strict=False)
            self._interpreter.allocate_tensors()
            outputs = _details(
                order.outputs, self._interpreter.get_output_details(), signature.get("outputs", {}), file
            )
        except self.runtime_errors as error:
            raise EngineError(f"LiteRT cannot load {file}", got=one_line(error)) from error
        self._inputs = {name: detail["index"] for name, detail in inputs.items()}
        self._outputs = {name: detail["index"] for name, detail in outputs.items()}
        infos = {
            name: TensorInfo(tuple(int(side) for side in detail["shape"]), np.dtype(detail["dtype"]))
            for name, detail in outputs.items()
        }
        super().__init__(order.artifact.precision, order.inputs, infos)

    def _infer(self, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        for name, array in arrays.items():
            self._interpreter.set_tensor(self._inputs[name], array)
        self._interpreter.invoke()
        # get_tensor copies: the arena is written over by the next run.
        return {name: self._interpreter.get_tensor(index) for name, index in self._outputs.items()}

    def _release(self) -> None:
        del self._interpreter, self._content


def open_engine(order: Order) -> LiteRtSession:
    """A session for an order. Raises EngineError."""
    return LiteRtSession(order)


def _signature(interpreter: Any) -> dict[str, dict[str, int]]:
    """{"inputs": {name: tensor index}, "outputs": ..} of the only signature; {} where the model has none or several."""
    if not hasattr(interpreter, "_get_full_signature_list"):
        return {}
    signatures: dict[str, dict[str, dict[str, int]]] = interpreter._get_full_signature_list()
    return next(iter(signatures.values())) if len(signatures) == 1 else {}


def _details(
    names: Iterable[str], details: list[dict[str, Any]], signature: dict[str, int], file: str
) -> dict[str, dict[str, Any]]:
    """The runtime's details under the manifest's names.

    By the signature's names, by its numbers where a converter named them args_0, output_1 .., by the tensors' own
    names, and last by their order.
    """
    wanted = list(names)
    if len(details) != len(wanted):
        raise EngineError(f"{file} has another number of tensors", got=len(details), allowed=len(wanted))
    by_index = {detail["index"]: detail for detail in details}
    if set(wanted) == signature.keys():
        return {name: by_index[signature[name]] for name in wanted}
    numbered = {int(found[1]): index for name, index in signature.items() if (found := _NUMBERED.fullmatch(name))}
    if len(numbered) == len(wanted):
        return {name: by_index[numbered[number]] for name, number in zip(wanted, sorted(numbered), strict=True)}
    by_name = {_plain(detail["name"]): detail for detail in details}
    if set(wanted) == by_name.keys():
        return {name: by_name[name] for name in wanted}
    return dict(zip(wanted, details, strict=True))


def _plain(name: str) -> str:
    """ "serving_default_x:0" -> "x"."""
    return name.removeprefix("serving_default_").split(":")[0]


def _check_input(name: str, info: TensorInfo, detail: dict[str, Any], file: str) -> None:
    if np.dtype(detail["dtype"]) != info.dtype:
        raise EngineError(f"input {name} of {file} has another type", got=detail["dtype"], allowed=info.dtype)
    if len(detail["shape"]) != len(info.shape):
        raise EngineError(f"input {name} of {file} has another rank", got=list(detail["shape"]), allowed=info.shape)
