"""Quantisation-aware training: weights that go on learning while what is between layers is rounded as engines round it.

One set of weights for all engines. Each engine's own converter still finds its ranges, so that LiteRT, which takes no
quantised graph of PyTorch's, profits as well; what is trained is only what the weights and biases are. The float
network is the teacher: no labels, no task, crops of the calibration samples. Rounding passes gradients on as if it
were not there (Bengio et al., arXiv:1308.3432). Only activations are rounded here. Weights are rounded afterwards
(`rounding`), each so that it makes up for the others: to train them through their rounding as well makes many flip at
once, and undoes that. Each weight is learnt in steps of its own output's, so that one learning rate fits all layers.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from scene_edge.codec.errors import ConfigError
from scene_edge.models.registry import GraphExport
from scene_edge.quantize.graphs import UNIT, Axes, Sample, dynamic_axes, export_program
from scene_edge.quantize.rounding import STEPS

LEVELS = 255
"""Of 8-bit activations, from the least to the largest value of a tensor over the calibration samples."""

CROP = (64, 96)
"""Packed rows and columns of a training crop."""

FEWEST = 10
"""Samples below which training would learn them by heart."""

HELD_OUT = 10
"""Every how many samples one judges and is not learnt from."""

RATE = 0.001
"""Steps of a weight by which it moves at first in each training step, as Adam goes."""

WATCHED = 24
"""Samples that ranges are taken from; engines take theirs from all."""

WARM = 20
"""Steps in which the rate rises: Adam's first ones know nothing of sizes."""

BIAS_RATE = 0.00005
"""The same for a bias, in standard deviations of what its layer puts out."""

aten: Any = torch.ops.aten
_CONVOLUTIONS = (aten.conv2d.default, aten.conv2d.padding)
_SUMS = (aten.add.Tensor, aten.add_.Tensor)


@dataclass(frozen=True)
class Trained:
    """A graph, and the relative error of each output on samples held out, before and after it was trained.

    Where training made it no better it is the graph from before, and `taken` is False.
    """

    graph: GraphExport
    before: Mapping[str, float]
    after: Mapping[str, float]
    taken: bool


@dataclass
class _Range:
    """Least and largest value of a tensor; 0 is always one of its levels."""

    least: float = 0.0
    largest: float = 0.0

    def see(self, values: Tensor) -> None:
        least, largest = torch.aminmax(values)
        self.least, self.largest = min(self.least, float(least)), max(self.largest, float(largest))

    def rounded(self, values: Tensor) -> Tensor:
        """At the nearest of 255 steps; gradients pass inside the range."""
        step = (self.largest - self.least) / LEVELS
        if step <= 0:
            return values
        return torch.fake_quantize_per_tensor_affine(values, step, round(-self.least / step), 0, LEVELS)


class _Weights(nn.Module):
    """All convolutions' weights in steps, and biases in spreads of their layer's output: what is trained."""

    def __init__(self, module: nn.Module, layers: Mapping[str, str | None], spreads: Mapping[str, float]) -> None:
        super().__init__()
        found = {name: value.detach().clone() for name, value in module.named_parameters()}
        self.start = {name: found[name] for name in layers}
        self.units = {name: found[name].abs().amax((1, 2, 3), keepdim=True) / STEPS for name in layers}
        for name, bias in layers.items():
            if bias in found and bias is not None:
                self.start[bias] = found[bias]
                self.units[bias] = torch.tensor(spreads[name])
        self.moved = nn.ParameterList(torch.zeros_like(value) for value in self.start.values())

    def groups(self) -> list[dict[str, Any]]:
        """For the optimiser: weights and biases, each with the rate at which they start."""
        named = list(zip(self.start.values(), self.moved, strict=True))
        weights, biases = (
            [moved for start, moved in named if (start.dim() == 4) is wanted] for wanted in (True, False)
        )
        return [{"params": weights, "first": RATE}, {"params": biases, "first": BIAS_RATE}]

    def values(self) -> dict[str, Tensor]:
        """By name."""
        named = zip(self.start.items(), self.moved, strict=True)
        return {name: start + moved * self.units[name] for (name, start), moved in named}

    @torch.no_grad()
    def write(self, module: nn.Module) -> None:
        found = dict(module.named_parameters())
        for name, value in self.values().items():
            found[name].copy_(value)


class _Rounded(fx.Interpreter):
    """Runs a traced graph as engines do: what convolutions read and sums add is rounded to 8 bits.

    Subtractions are not, nor is the way from the last convolution to a u8 picture, nor the picture.
    """

    def __init__(self, traced: Any, float_nodes: set[fx.Node]) -> None:
        super().__init__(traced)
        self.float_nodes = float_nodes
        self.ranges: dict[fx.Node, _Range] = {}
        self.spreads: dict[str, float] = {}
        self.watching = self.rounding = False
        self.weights: Mapping[str, Tensor] = {}

    def run_node(self, node: fx.Node) -> Any:
        if node.op == "get_attr" and node.target in self.weights:
            return self.weights[str(node.target)]
        if node.op != "call_function":
            return super().run_node(node)
        if _makes_picture(node):  # a picture's own rounding has no gradient
            return self.fetch_args_kwargs_from_env(node)[0][0]
        if node.target not in (*_CONVOLUTIONS, *_SUMS) or node in self.float_nodes:
            return super().run_node(node)
        arguments: Any = self.fetch_args_kwargs_from_env(node)[0]
        count = 1 if node.target in _CONVOLUTIONS else 2
        read = [self._read(source, value) for source, value in zip(node.args[:count], arguments, strict=False)]
        target: Any = node.target
        result = target(*read, *arguments[count:])
        if self.watching and node.target in _CONVOLUTIONS:
            name, spread = _weight_of(node), float(result.std())
            self.spreads[name] = max(self.spreads.get(name, 0.0), spread)
        return result

    def _read(self, source: Any, value: Any) -> Any:
        if not isinstance(source, fx.Node) or not isinstance(value, Tensor) or value.dim() != 4:
            return value
        known = self.ranges.setdefault(source, _Range())
        if self.watching:
            known.see(value)
        return known.rounded(value) if self.rounding else value


def check_trainable(graph: GraphExport, samples: Sequence[Sample]) -> None:
    """Raises ConfigError for a graph whose kernels a camera changes (it would learn one setting), and few samples."""
    if graph.kernels:
        raise ConfigError(
            "a graph whose kernels a camera changes cannot be trained in INT8",
            got=", ".join(sorted(graph.kernels)),
            hint="Use --method ptq.",
        )
    if len(samples) < FEWEST:
        raise ConfigError(
            "too few calibration samples to train in INT8",
            got=len(samples),
            allowed=f"at least {FEWEST}",
            hint="Point --calibration at a folder with more clips, or use --method ptq.",
        )


def trained(
    graph: GraphExport,
    start: GraphExport,
    samples: Sequence[Sample],
    *,
    steps: int,
    seed: int,
    progress: Callable[[], None] | None = None,
) -> Trained:
    """`start`, which computes what `graph` does, with weights that take INT8 better; they are not rounded.

    `progress` is called before each step. Raises ConfigError where `check_trainable` does.
    """
    check_trainable(graph, samples)
    module = copy.deepcopy(start.module).eval()
    result = GraphExport(module, graph.inputs, graph.outputs, graph.calibration, graph.litert_shapes, graph.kernels)
    axes = dynamic_axes(graph)
    traced: Any = export_program(start, dict(graph.inputs), axes).module()
    constants = itertools.chain(graph.module.named_parameters(), graph.module.named_buffers())
    judge = _Judge(_Rounded(traced, _float_nodes(traced)), {name: value.detach() for name, value in constants}, graph)
    learnt, judging = [s for i, s in enumerate(samples) if (i + 1) % HELD_OUT], samples[HELD_OUT - 1 :: HELD_OUT]
    with torch.no_grad():
        judge.watch(learnt[:: math.ceil(len(learnt) / WATCHED)])
        weights = _Weights(module, _layers(traced, dict(module.named_parameters())), judge.runner.spreads)
        before = judge.mean(judging, weights)
        _learn(judge, weights, _crops(learnt, axes, seed, steps), steps, progress)
        after = judge.mean(judging, weights)
    taken = sum(after.values()) < sum(before.values())
    if taken:
        weights.write(module)
    return Trained(result, before, after, taken)


class _Judge:
    """Runs teacher and learner on a sample; the error of each output."""

    def __init__(self, runner: _Rounded, teacher: Mapping[str, Tensor], graph: GraphExport) -> None:
        self.runner, self.teacher = runner, teacher
        self.names, self.outputs = [name for name, _ in graph.inputs], graph.outputs
        self.energies: dict[str, float] = {}

    def watch(self, samples: Sequence[Sample]) -> None:
        """Ranges of the learner's tensors as it starts, and what the teacher says on the mean.

        Of a picture that is what it changes of the one that came in: the rest is no merit.
        """
        sums: dict[str, list[float]] = {name: [] for name in self.outputs}
        for sample in samples:
            given = _tensors(sample, self.names)
            self.runner.watching, self.runner.rounding, self.runner.weights = True, False, {}
            self.runner.run(*given)
            self.runner.watching = False
            for name, wanted in zip(self.outputs, self._taught(given), strict=True):
                same = [x.float() for x in given if x.dtype == torch.uint8 and x.shape == wanted.shape]
                sums[name].append(float((wanted - same[0] if same else wanted).square().mean()))
        self.energies = {name: max(sum(values) / len(values), 1e-12) for name, values in sums.items()}

    def _taught(self, given: Sequence[Tensor]) -> list[Tensor]:
        self.runner.rounding, self.runner.weights = False, self.teacher
        with torch.no_grad():
            return _many(self.runner.run(*given))

    def errors(self, sample: Sample, weights: _Weights) -> dict[str, Tensor]:
        """Of each output, the mean square of its distance from the teacher's over the usual one of the teacher's."""
        given = _tensors(sample, self.names)
        taught = self._taught(given)
        self.runner.rounding, self.runner.weights = True, weights.values()
        pairs = zip(_many(self.runner.run(*given)), taught, strict=True)
        distances = [(found - wanted).square().mean() for found, wanted in pairs]
        return {name: far / self.energies[name] for name, far in zip(self.outputs, distances, strict=True)}

    def mean(self, samples: Sequence[Sample], weights: _Weights) -> dict[str, float]:
        """Over samples, as roots: relative errors."""
        found = [self.errors(sample, weights) for sample in samples]
        return {name: math.sqrt(sum(float(e[name]) for e in found) / len(found)) for name in self.outputs}


def _learn(
    judge: _Judge, weights: _Weights, crops: Iterator[Sample], steps: int, progress: Callable[[], None] | None
) -> None:
    optimiser = torch.optim.Adam(weights.groups(), lr=RATE, betas=(0.9, 0.99))
    for step, crop in enumerate(crops):
        if progress:
            progress()
        for group in optimiser.param_groups:
            group["lr"] = group["first"] * min(1.0, (step + 1) / WARM) * 0.5 * (1 + math.cos(math.pi * step / steps))
        with torch.enable_grad():
            loss = torch.stack(list(judge.errors(crop, weights).values())).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()


def _crops(samples: Sequence[Sample], axes: Mapping[str, Axes], seed: int, count: int) -> Iterator[Sample]:
    """Random parts of random samples, all inputs in register."""
    random = np.random.default_rng(seed)
    order = [index for _ in range(-(-count // len(samples))) for index in random.permutation(len(samples))]
    for index in order[:count]:
        sample = dict(samples[index])
        if axes:
            name, axis = next(iter(axes.items()))
            shape = sample[name].shape
            sizes = shape[axis.rows] // axis.per_unit, shape[axis.columns] // axis.per_unit
            sides = [min(side // UNIT, size) for side, size in zip(CROP, sizes, strict=True)]
            places = [int(random.integers(size - side + 1)) for side, size in zip(sides, sizes, strict=True)]
            for key, at in axes.items():
                for dimension, place, side in zip((at.rows, at.columns), places, sides, strict=True):
                    chosen = np.arange(place * at.per_unit, (place + side) * at.per_unit)
                    sample[key] = np.take(sample[key], chosen, dimension)
        yield sample


def _tensors(sample: Sample, names: Sequence[str]) -> list[Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(sample[name])) for name in names]


def _many(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, tuple | list) else [result]


def _weight_of(convolution: fx.Node) -> str:
    weight: Any = convolution.args[1]
    return str(weight.target)


def _makes_picture(node: fx.Node) -> bool:
    return node.target == aten.to.dtype and torch.uint8 in node.args


def _layers(traced: Any, parameters: Mapping[str, Tensor]) -> dict[str, str | None]:
    """Trained convolutions: the names of weight and bias. Constants, such as those that choose channels, are none."""
    layers = {}
    for node in traced.graph.nodes:
        if node.target in _CONVOLUTIONS and _weight_of(node) in parameters:
            bias = (node.args[2:] or (None,))[0]
            layers[_weight_of(node)] = None if bias is None else bias.target
    return layers


def _float_nodes(traced: Any) -> set[fx.Node]:
    """What lies between the last convolutions and a u8 picture."""
    found: set[fx.Node] = set()
    stack = [node for node in traced.graph.nodes if _makes_picture(node)]
    while stack:
        node = stack.pop()
        if node not in found and node.target not in _CONVOLUTIONS:
            found.add(node)
            stack += node.all_input_nodes
    return found
