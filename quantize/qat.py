"""Quantisation-aware training: weights that go on learning while what is between layers is rounded as engines round it.

One set of weights for all engines. Each engine's own converter still finds its ranges, so that LiteRT, which takes no
quantised graph of PyTorch's, profits as well; what is trained is only what the weights and biases are. They start from
those that post-training quantisation would ship (`equalise`, `rounding`), and the float network is the teacher: no
labels, no task, crops of the calibration samples. Rounding passes gradients on as if it were not there (Bengio et al.,
arXiv:1308.3432). Each weight is learnt in steps of its own output's, so that one learning rate fits all layers, and
the largest weight of an output stays, so that engines find the same steps.
"""

from __future__ import annotations

import copy
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

FEWEST = 8
"""Samples below which training would learn them by heart."""

HELD_OUT = 6
"""Every how many samples one judges and is not learnt from."""

RATE = 0.03
"""Steps of a weight by which it moves at first in each training step, as Adam goes."""

BIAS_RATE = 0.001
"""The same for a bias, in standard deviations of what its layer puts out."""

WORSE = 1.0
"""Trained weights are taken where the error of the samples held out is below this part of what it was before."""

aten: Any = torch.ops.aten
_CONVOLUTIONS = (aten.conv2d.default, aten.conv2d.padding)
_SUMS = (aten.add.Tensor, aten.add_.Tensor)


@dataclass(frozen=True)
class Trained:
    """A trained graph, and the error of each output (see `_errors`) on samples held out, before and after."""

    graph: GraphExport
    before: Mapping[str, float]
    after: Mapping[str, float]


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
        found = dict(module.named_parameters())
        self.steps: dict[str, Tensor] = {}
        self.units: dict[str, float] = {}
        self.start: dict[str, Tensor] = {}
        self.whole, self.biases = nn.ParameterList(), nn.ParameterList()
        self.names: list[str] = []
        self.bias_names: list[str] = []
        for name, bias in layers.items():
            weight = found[name].detach()
            self.steps[name] = (weight.abs().amax((1, 2, 3), keepdim=True) / STEPS).clamp_min(1e-12)
            self.names.append(name)
            self.whole.append(nn.Parameter(weight / self.steps[name]))
            if bias in found:
                self.units[bias] = max(spreads[name], 1e-6)
                self.start[bias] = found[bias].detach().clone()
                self.bias_names.append(bias)
                self.biases.append(nn.Parameter(torch.zeros_like(found[bias])))

    def values(self) -> dict[str, Tensor]:
        """By name: weights at whole steps, biases."""
        taken = {}
        for name, whole in zip(self.names, self.whole, strict=True):
            taken[name] = (whole + (whole.round().clamp(-STEPS, STEPS) - whole).detach()) * self.steps[name]
        for name, moved in zip(self.bias_names, self.biases, strict=True):
            taken[name] = self.start[name] + moved * self.units[name]
        return taken

    @torch.no_grad()
    def write(self, module: nn.Module) -> None:
        """Into a module; the weights that were largest are so again."""
        found, taken = dict(module.named_parameters()), self.values()
        for name in self.names:
            before, after = found[name].flatten(1), taken[name].flatten(1)
            largest = before.abs().argmax(1, keepdim=True)
            after = after.scatter(1, largest, before.gather(1, largest))
            found[name].copy_(after.view_as(found[name]))
        for name in self.bias_names:
            found[name].copy_(taken[name])


class _Rounded(fx.Interpreter):
    """Runs a traced graph as engines do: what convolutions read and sums add is rounded to 8 bits, subtractions are not.

    The way from the last convolution to a u8 picture stays float, and so does the picture.
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


def trained(
    graph: GraphExport,
    start: GraphExport,
    samples: Sequence[Sample],
    *,
    steps: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> Trained:
    """`start`, which computes what `graph` does but for its rounded weights, with weights that take INT8 better.

    `progress` is called with the number of each step. Raises ConfigError for a graph whose kernels a camera changes
    (it would be taught for one setting) and for too few samples.
    """
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
    module = copy.deepcopy(start.module).eval()
    result = GraphExport(module, graph.inputs, graph.outputs, graph.calibration, graph.litert_shapes, graph.kernels)
    axes = dynamic_axes(graph)
    traced: Any = export_program(start, dict(graph.inputs), axes).module()
    runner = _Rounded(traced, _float_nodes(traced))
    runner.watching = True
    learnt, judging = [s for i, s in enumerate(samples) if (i + 1) % HELD_OUT], samples[HELD_OUT - 1 :: HELD_OUT]
    names = [name for name, _ in graph.inputs]
    with torch.no_grad():
        for sample in learnt:
            runner.run(*_tensors(sample, names))
    runner.watching = False
    weights = _Weights(module, _layers(traced, dict(module.named_parameters())), runner.spreads)
    teacher = {name: value.detach() for name, value in graph.module.named_parameters()}
    judge = _Judge(runner, teacher, graph)
    with torch.no_grad():
        before = judge.mean(judging, weights)
        _learn(judge, weights, _crops(learnt, axes, seed, steps), steps, progress)
        after = judge.mean(judging, weights)
    if sum(after.values()) < WORSE * sum(before.values()):
        weights.write(module)
    return Trained(result, before, after)


class _Judge:
    """Runs teacher and learner on a sample; the error of each output."""

    def __init__(self, runner: _Rounded, teacher: Mapping[str, Tensor], graph: GraphExport) -> None:
        self.runner, self.teacher = runner, teacher
        self.names, self.outputs = [name for name, _ in graph.inputs], graph.outputs

    def errors(self, sample: Sample, weights: _Weights) -> dict[str, Tensor]:
        """Of each output, the square of its distance from the teacher's over the square of the teacher's.

        Of a picture, over the square of what the teacher changes of the picture that came in: the rest is no merit.
        """
        given, runner = _tensors(sample, self.names), self.runner
        with torch.no_grad():
            runner.rounding, runner.weights = False, self.teacher
            wanted = runner.run(*given)
        runner.rounding, runner.weights = True, weights.values()
        found = runner.run(*given)
        errors = {}
        for name, one, other in zip(self.outputs, _many(found), _many(wanted), strict=True):
            same = [x.float() for x in given if x.dtype == torch.uint8 and x.shape == other.shape]
            usual = other - same[0] if same else other
            errors[name] = (one - other).square().sum() / usual.square().sum().clamp_min(1e-6)
        return errors

    def mean(self, samples: Sequence[Sample], weights: _Weights) -> dict[str, float]:
        """Over samples, as roots: relative errors."""
        found = [self.errors(sample, weights) for sample in samples]
        return {name: math.sqrt(sum(float(e[name]) for e in found) / len(found)) for name in self.outputs}


def _learn(
    judge: _Judge, weights: _Weights, crops: Iterator[Sample], steps: int, progress: Callable[[int], None] | None
) -> None:
    groups = [{"params": list(weights.whole), "most": RATE}, {"params": list(weights.biases), "most": BIAS_RATE}]
    optimiser = torch.optim.Adam(groups, lr=RATE, betas=(0.9, 0.99))
    for step, crop in enumerate(crops):
        if progress:
            progress(step + 1)
        for group in optimiser.param_groups:
            group["lr"] = group["most"] * 0.5 * (1 + math.cos(math.pi * step / steps))
        with torch.enable_grad():
            loss = torch.stack(list(judge.errors(crop, weights).values())).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
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
