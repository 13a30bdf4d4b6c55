"""The TensorRT session against a stand-in for the runtime: our half of the conversation. No substitute for a board."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import EngineError
from scene_edge.inference import tensorrt as engine
from scene_edge.inference.session import available_engines, open_session
from tests.inference import tiny


class Device:
    """GPU memory and the builder. The CUDA runtime's calls give (status, value ..)."""

    def __init__(self) -> None:
        self.memory: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.builds = 0
        self.fail = self.refuse = False

    def malloc(self, size: int) -> tuple[int, int]:
        buffer = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(buffer)] = buffer
        return 0, ctypes.addressof(buffer)

    def copy(self, to: int, source: int, size: int, direction: str, stream: int) -> tuple[int]:
        ctypes.memmove(to, source, size)
        return (700 if self.fail else 0,)

    def free(self, address: int) -> tuple[int]:
        del self.memory[address]
        return (0,)

    def build(self, network: object, config: object) -> bytes:
        self.builds += 1
        return b"a plan"


class Context:
    """One execution context; `truth` of the tiny graph is its kernel."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shapes[name] = shape

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes["state"]

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def array(self, name: str, dtype: type) -> np.ndarray[Any, Any]:
        shape = self.shapes.get(name, self.shapes["state"])
        return np.frombuffer(self.device.memory[self.addresses[name]], dtype)[: int(np.prod(shape))].reshape(shape)

    def execute_async_v3(self, stream: int) -> bool:
        found = tiny.truth({"x": self.array("x", np.uint8), "state": self.array("state", np.float32)})
        for name, out in found.items():
            self.array(name, np.float32)[...] = out
        return not self.device.refuse


def stand_ins(device: Device) -> dict[str, ModuleType]:
    trt, runtime = ModuleType("tensorrt"), ModuleType("cuda.bindings.runtime")
    trt.__dict__.update(
        __version__="10.16.1",
        Logger=type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None}),
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
        MemoryPoolType=SimpleNamespace(WORKSPACE=0),
        nptype=lambda dtype: dtype,
        Builder=lambda logger: SimpleNamespace(
            create_network=lambda flags: SimpleNamespace(),
            create_builder_config=lambda: SimpleNamespace(
                set_memory_pool_limit=lambda pool, size: None, add_optimization_profile=lambda profile: 0
            ),
            create_optimization_profile=lambda: SimpleNamespace(set_shape=lambda name, low, best, high: None),
            build_serialized_network=device.build,
        ),
        OnnxParser=lambda network, logger: SimpleNamespace(
            parse=lambda model: model.startswith(b"\x08"), num_errors=1, get_error=lambda index: "no ONNX"
        ),
        Runtime=lambda logger: SimpleNamespace(
            deserialize_cuda_engine=lambda plan: SimpleNamespace(
                create_execution_context=lambda: Context(device), get_tensor_dtype=lambda name: np.float32
            )
        ),
    )
    runtime.__dict__.update(
        cudaMalloc=device.malloc,
        cudaFree=device.free,
        cudaMemcpyAsync=device.copy,
        cudaMemcpyKind=SimpleNamespace(cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out"),
        cudaStreamCreate=lambda: (0, 1),
        cudaStreamSynchronize=lambda stream: (0,),
        cudaStreamDestroy=lambda stream: (0,),
    )
    return {
        "tensorrt": trt,
        "cuda": ModuleType("cuda"),
        "cuda.bindings": ModuleType("cuda.bindings"),
        "cuda.bindings.runtime": runtime,
    }


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    device = Device()
    for name, module in stand_ins(device).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    engine.load.cache_clear()
    yield device
    engine.load.cache_clear()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    pytest.importorskip("onnx")
    return tiny.write_tiny(tmp_path / "tiny")


def test_it_runs_the_golden_input_and_gives_its_memory_back(device: Device, bundle: Bundle) -> None:
    assert available_engines()["tensorrt"] == "10.16.1"
    session = open_session(bundle, "tiny", height=16, width=24, prefer=["tensorrt"], precision="fp32")
    assert (session.engine, session.device, session.fallbacks) == ("tensorrt", "CUDA", ())
    first, kept = session.run(tiny.inputs(1)), tiny.truth(tiny.inputs(1))
    session.run(tiny.inputs(2))
    assert all(np.array_equal(first[name], kept[name]) for name in kept)
    session.close()
    assert not device.memory


def test_an_engine_is_built_once_for_each_size(device: Device, bundle: Bundle) -> None:
    for expected in (1, 1):
        open_session(bundle, "tiny", height=16, width=24, prefer=["tensorrt"], precision="fp32").close()
        assert device.builds == expected
    open_session(bundle, "tiny", height=24, width=24, prefer=["tensorrt"], precision="fp32").close()
    assert device.builds == 2
    assert not device.memory


def test_failures_are_engine_errors(device: Device, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session(bundle, "tiny", height=16, width=24, prefer=["tensorrt"], precision="fp32")
    device.fail = True
    with pytest.raises(EngineError, match="CUDA failed"):
        session.run(tiny.inputs())
    device.fail, device.refuse = False, True
    with pytest.raises(EngineError, match="refused"):
        session.run(tiny.inputs())
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "8.6.1")
    engine.load.cache_clear()
    assert "too old" in available_engines()["tensorrt"]
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    engine.load.cache_clear()
    assert "cuda-python" in available_engines()["tensorrt"]
