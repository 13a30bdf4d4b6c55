"""Channels of one tensor brought to one range before a graph is quantised, without any change to what it computes.

INT8 gives a tensor one step for all its channels, and a channel whose values are small drowns in the step of the
largest. Between two convolutions a channel's scale is free: what is multiplied in the first is divided out in the
second, and rectifiers, pools and concatenations in between do not mind. Depth-wise convolutions with folded batch
norms, of which Sem-Net is full, are the worst case (Nagel et al., Data-free quantization, ICCV 2019, for weights; here
it is activations that are equalised, over the calibration samples).
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from scene_edge.codec.errors import EngineError
from scene_edge.models.registry import GraphExport
from scene_edge.quantize.graphs import Sample, export_program, fitted, shapes_of

LARGEST = 64.0
"""By which a channel is enlarged at most: what hardly ever speaks may stay quiet."""

STRENGTH = 0.75
"""0: as it was; 1: all channels of one range. Weights that read a channel shrink as it grows, and drown in turn."""

aten: Any = torch.ops.aten
_PASSING = {
    aten.relu.default,
    aten.relu_.default,
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.upsample_nearest2d.vec,
    aten.upsample_nearest2d.default,
    aten.dropout.default,
    aten.contiguous.default,
    aten.clone.default,
    aten.detach_.default,
    aten._assert_tensor_metadata.default,
}
"""What computes each channel from itself, and twice as much from twice as much."""

_JOINING = {aten.add.Tensor, aten.sub.Tensor, aten.maximum.default}
"""What needs its operands in one scale, and keeps it."""


@dataclass
class _Channels:
    """Channels by number; those with one scale are joined, and a pinned one keeps its own."""

    parents: list[int] = field(default_factory=list)
    pinned: set[int] = field(default_factory=set)

    def new(self, count: int) -> list[int]:
        first = len(self.parents)
        self.parents += range(first, first + count)
        return list(range(first, first + count))

    def root(self, channel: int) -> int:
        while self.parents[channel] != channel:
            self.parents[channel] = self.parents[self.parents[channel]]
            channel = self.parents[channel]
        return channel

    def join(self, one: int, other: int) -> None:
        one, other = self.root(one), self.root(other)
        if one != other:
            self.parents[other] = one
            if other in self.pinned:
                self.pinned.add(one)

    def pin(self, channels: Sequence[int]) -> None:
        self.pinned |= {self.root(channel) for channel in channels}

    def free(self, channel: int) -> bool:
        return self.root(channel) not in self.pinned


@dataclass(frozen=True)
class _Layer:
    """A convolution: names of its tensors, and the channels that it reads and writes."""

    weight: str
    bias: str | None
    groups: int
    reads: list[int]
    writes: list[int]


def equalised(graph: GraphExport, samples: Sequence[Sample]) -> GraphExport:
    """A copy of the graph that computes the same with channels that are closer in range.

    Raises EngineError where the copy does not compute the same.
    """
    module = copy.deepcopy(graph.module).eval()
    result = GraphExport(module, graph.inputs, graph.outputs, graph.calibration, graph.litert_shapes, graph.kernels)
    example = dict(graph.inputs)
    shapes = shapes_of(example)
    traced = export_program(result, example, {}).module()
    channels, layers, tensors = _read(traced)
    ranges = _ranges(traced, tensors, channels, [fitted(sample, shapes) for sample in samples], graph)
    gains = _gains(channels, tensors, ranges)
    before = _run(traced, graph, example)
    _write(module, layers, {c: gains[channels.root(c)] for layer in layers for c in layer.reads + layer.writes
                            if channels.root(c) in gains})  # fmt: skip
    after = _run(module, graph, example)
    for name, one, other in zip(graph.outputs, before, after, strict=True):
        wrong = float((one.double() - other.double()).norm() / one.double().norm().clamp_min(1e-6))
        if not wrong < 1e-3:
            raise EngineError(f"equalising channels changes output {name}", got=f"relative error {wrong:.3g}")
    return result


def _read(traced: Any) -> tuple[_Channels, list[_Layer], dict[fx.Node, list[int]]]:
    """Convolutions, and the channels of each tensor that they read or write."""
    channels, layers = _Channels(), list[_Layer]()
    carried: dict[fx.Node, list[int]] = {}
    tensors: dict[fx.Node, list[int]] = {}

    def stop(node: fx.Node) -> None:
        for source in node.all_input_nodes:
            channels.pin(carried.get(source, []))

    for node in traced.graph.nodes:
        layer = _convolution(node, traced, carried, channels)
        if layer is not None:
            for earlier in layers:  # one kernel that is used twice has one scale
                if earlier.weight == layer.weight:
                    for one, other in zip(earlier.reads + earlier.writes, layer.reads + layer.writes, strict=True):
                        channels.join(one, other)
                    break
            else:
                layers.append(layer)
            carried[node] = tensors[node] = layer.writes
            tensors[node.all_input_nodes[0]] = layer.reads
        elif not _carry(node, carried, channels):
            stop(node)
            shape = _shape(node)
            if len(shape) == 4:
                carried[node] = channels.new(shape[1])
                channels.pin(carried[node])
    return channels, layers, tensors


def _convolution(node: fx.Node, traced: Any, carried: dict[fx.Node, list[int]], channels: _Channels) -> _Layer | None:
    if node.op != "call_function" or node.target not in (aten.conv2d.default, aten.conv2d.padding):
        return None
    arguments: Any = node.args
    source, weight, *rest = arguments
    bias = rest[0] if rest else None
    groups = int(rest[4]) if len(rest) > 4 else 1
    constants = [item for item in (weight, bias) if item is not None]
    known = all(isinstance(item, fx.Node) and item.op == "get_attr" for item in constants)
    if not known or source not in carried:
        return None
    rows, columns = _attribute(traced, weight.target).shape[:2]
    if groups != 1 and not (columns == 1 and rows == groups):
        return None
    name = None if bias is None else str(bias.target)
    return _Layer(str(weight.target), name, groups, carried[source], channels.new(rows))


def _carry(node: fx.Node, carried: dict[fx.Node, list[int]], channels: _Channels) -> bool:
    """Whether a node leaves scales alone; its channels are then those of what it is made of."""
    if node.op == "get_attr":
        return True
    if node.op != "call_function":
        return False
    arguments: Any = node.args
    sources = [source for source in node.all_input_nodes if source in carried]
    shape = _shape(node)
    if node.target is aten.cat.default and len(sources) == len(arguments[0]) and (arguments[1:] or (0,))[0] == 1:
        carried[node] = [channel for source in arguments[0] for channel in carried[source]]
        return True
    if node.target is aten.slice.Tensor and sources:
        source, axis, *ends = arguments
        carried[node] = carried[source][slice(*ends)] if axis == 1 else carried[source]
        return len(carried[node]) == shape[1]
    if node.target in _JOINING and len(sources) == 2 and all(len(carried[s]) == shape[1] for s in sources):
        for one, other in zip(*(carried[source] for source in sources), strict=True):
            channels.join(one, other)
        carried[node] = carried[sources[0]]
        return True
    padding = node.target in (aten.pad.default, aten.constant_pad_nd.default)
    zeros = padding and all(item in (0, 0.0, "constant", None) for item in arguments[2:])
    if (node.target in _PASSING or zeros) and len(sources) == 1:
        carried[node] = carried[sources[0]]
        return True
    return False


def _shape(node: fx.Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _attribute(module: nn.Module, name: str) -> Tensor:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _ranges(
    traced: Any,
    tensors: dict[fx.Node, list[int]],
    channels: _Channels,
    samples: Sequence[Sample],
    graph: GraphExport,
) -> dict[int, float]:
    """Largest value of each channel, rectified where it is rectified next, over all samples."""
    largest: defaultdict[int, float] = defaultdict(float)

    class Watch(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            value = super().run_node(node)
            if node in tensors and not _rectified(node):
                for channel, peak in zip(tensors[node], value.abs().amax((0, 2, 3)).tolist(), strict=True):
                    largest[channels.root(channel)] = max(largest[channels.root(channel)], peak)
            return value

    with torch.no_grad():
        for sample in samples:
            Watch(traced).run(*(torch.from_numpy(sample[name]) for name, _ in graph.inputs))
    return largest


def _rectified(node: fx.Node) -> bool:
    return bool(node.users) and all(user.target in (aten.relu.default, aten.relu_.default) for user in node.users)


def _gains(channels: _Channels, tensors: dict[fx.Node, list[int]], ranges: dict[int, float]) -> dict[int, float]:
    """By what each free channel is multiplied so that it reaches as far as the largest of those that it lies beside.

    Channels of several tensors lie beside many: the tensors that share a channel are one group with one range.
    """
    groups = _Channels(list(range(len(channels.parents))))
    for members in tensors.values():
        for channel in members:
            groups.join(channels.root(members[0]), channels.root(channel))
    target: defaultdict[int, float] = defaultdict(float)
    for channel in {channels.root(c) for members in tensors.values() for c in members}:
        group = groups.root(channel)
        target[group] = max(target[group], ranges.get(channel, 0.0))
    return {
        channel: min(LARGEST, target[groups.root(channel)] / reach) ** STRENGTH
        for channel, reach in ranges.items()
        if channels.free(channel) and reach > 0 and math.isfinite(reach)
    }


@torch.no_grad()
def _write(module: nn.Module, layers: Sequence[_Layer], gains: dict[int, float]) -> None:
    for layer in layers:
        out = torch.tensor([gains.get(channel, 1.0) for channel in layer.writes])
        into = torch.tensor([gains.get(channel, 1.0) for channel in layer.reads])
        weight = _attribute(module, layer.weight)
        weight.mul_(out.view(-1, 1, 1, 1))
        weight.div_(into.view(-1, 1, 1, 1) if layer.groups > 1 else into.view(1, -1, 1, 1))
        if layer.bias is not None:
            _attribute(module, layer.bias).mul_(out)


@torch.no_grad()
def _run(module: Callable[..., Any], graph: GraphExport, sample: Sample) -> list[Tensor]:
    result = module(*(torch.from_numpy(sample[name]) for name, _ in graph.inputs))
    return list(result) if isinstance(result, tuple | list) else [result]
