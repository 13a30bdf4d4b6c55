"""Weights rounded to the 8 bits that every engine will give them, each so that it makes up for those before it.

Engines take the nearest of 255 steps for each weight, as if inputs were independent. Neighbouring samples of a picture
are almost the same, and errors that could cancel add up: in Sem-Net's first layer they are a fifth of what SMC codes.
GPTQ's order of business (Frantar et al., ICLR 2023) for convolutions: weights of an output are rounded one after the
other, and what one is off by is put onto those that are left, by the inputs' covariance over the calibration samples.
What remains of it on average goes into the bias. The largest weight of an output stays, so that its step does.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from scene_edge.models.registry import GraphExport
from scene_edge.quantize.graphs import Sample, export_program, fitted, shapes_of

STEPS = 127
DAMPING = 0.01
"""Of the mean variance, added to each input's: what was never seen must not be trusted too far."""

POSITIONS = 1024
"""Places of each picture at which a layer's inputs are looked at."""

aten: Any = torch.ops.aten


@dataclass
class _Inputs:
    """Sums over all places that were looked at: of inputs [G, N], of their products [G, N, N]."""

    count: int
    total: Tensor
    products: Tensor


def rounded(graph: GraphExport, samples: Sequence[Sample]) -> GraphExport:
    """A copy of the graph whose convolutions have weights of 255 steps for each output, biases put right."""
    module = copy.deepcopy(graph.module).eval()
    result = GraphExport(module, graph.inputs, graph.outputs, graph.calibration, graph.litert_shapes, graph.kernels)
    example = dict(graph.inputs)
    traced: Any = export_program(result, example, {}).module()
    parameters = dict(module.named_parameters())
    layers: dict[str, tuple[str | None, _Inputs]] = {}

    class Watch(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            value = super().run_node(node)
            if node.target in (aten.conv2d.default, aten.conv2d.padding):
                arguments: Any = node.args
                weight, bias = arguments[1], (arguments[2:] or (None,))[0]
                if weight.target in parameters:
                    seen = _seen(self.env[arguments[0]], parameters[weight.target], arguments)
                    _add(layers, weight.target, None if bias is None else bias.target, seen)
            return value

    shapes = shapes_of(example)
    with torch.no_grad():
        for sample in samples:
            given = fitted(sample, shapes)
            interpreter = Watch(traced, garbage_collect_values=False)
            interpreter.run(*(torch.from_numpy(given[name]) for name, _ in graph.inputs))
        for name, (bias, seen) in layers.items():
            weight = parameters[name]
            steps, scale = _quantised(weight.flatten(1), seen)
            lost = (weight.flatten(1) - steps * scale).double()
            weight.copy_((steps * scale).view_as(weight))
            if bias in parameters:
                mean = _for_outputs(seen.total / seen.count, len(lost))
                parameters[bias].add_((lost * mean).sum(1).float())
    return result


def _seen(given: Tensor, weight: Tensor, arguments: Any) -> _Inputs:
    """What the layer's outputs are made of at some places: the same ones in every picture of a size."""
    rest = [*arguments[3:], *(None,) * 4]
    stride, padding, dilation, groups = (
        rest[0] or 1,
        rest[1] if rest[1] is not None else 0,
        rest[2] or 1,
        rest[3] or 1,
    )
    (high, wide), (down, right), (apart, beside) = (_pair(item) for item in (weight.shape[2:], stride, dilation))
    above, left = (0, 0) if isinstance(padding, str) else _pair(padding)
    padded = F.pad(given, (left, left, above, above))
    rows_out = (padded.shape[2] - apart * (high - 1) - 1) // down + 1
    columns_out = (padded.shape[3] - beside * (wide - 1) - 1) // right + 1
    places = torch.arange(min(POSITIONS, rows_out * columns_out)) * 2654435761 % (rows_out * columns_out)
    y, x = places // columns_out * down, places % columns_out * right
    near = [padded[:, :, y + apart * row, x + beside * column] for row in range(high) for column in range(wide)]
    rows = torch.stack(near, 2).permute(1, 2, 0, 3).reshape(groups, -1, len(given) * len(places)).double()
    return _Inputs(
        rows.shape[2], rows.sum(2), rows @ rows.transpose(1, 2)
    )  # in double: a variance may be a mean's 1e-6


def _pair(value: Any) -> tuple[int, int]:
    first, *rest = value if isinstance(value, tuple | list | torch.Size) else (value,)
    return int(first), int(rest[0] if rest else first)


def _add(layers: dict[str, tuple[str | None, _Inputs]], name: str, bias: str | None, seen: _Inputs) -> None:
    if name not in layers:
        layers[name] = (bias, seen)
        return
    known = layers[name][1]
    known.count += seen.count
    known.total += seen.total
    known.products += seen.products


def _quantised(weight: Tensor, seen: _Inputs) -> tuple[Tensor, Tensor]:
    """Weights [O, N] -> whole numbers [O, N] from -127 to 127, and the step of each output [O, 1]."""
    mean = seen.total / seen.count
    covariance = seen.products / seen.count - mean[:, :, None] * mean[:, None, :]
    variance = covariance.diagonal(dim1=1, dim2=2)
    damping = DAMPING * variance.mean(1, keepdim=True) + 1e-9
    covariance = covariance + torch.diag_embed(damping.expand_as(variance))
    upper = _for_outputs(torch.linalg.cholesky(torch.linalg.inv(covariance), upper=True), len(weight))
    left = weight.double().clone()
    step = (weight.abs().amax(1, keepdim=True) / STEPS).clamp_min(1e-12).double()
    whole = torch.zeros_like(left)
    for index in range(left.shape[1]):
        whole[:, index] = (left[:, index] / step[:, 0]).round().clamp(-STEPS, STEPS)
        off = (left[:, index] - whole[:, index] * step[:, 0]) / upper[:, index, index]
        left[:, index:] -= off[:, None] * upper[:, index, index:]
    largest = weight.abs().argmax(1, keepdim=True)
    whole.scatter_(1, largest, weight.gather(1, largest).sign().double() * STEPS)
    return whole.float(), step.float()


def _for_outputs(of_groups: Tensor, outputs: int) -> Tensor:
    """What each output has of its group's; where there is one group, all have the same."""
    return of_groups if len(of_groups) == 1 else of_groups.repeat_interleave(outputs // len(of_groups), 0)
