"""What happens to a network before it is quantised: it computes the same, and loses less."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="quantisation needs the extra train: pip install scene-edge[train]")

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scene_edge.codec.errors import EngineError
from scene_edge.models.registry import GraphExport
from scene_edge.quantize import equalise
from scene_edge.quantize.equalise import equalised
from scene_edge.quantize.graphs import run_torch
from scene_edge.quantize.rounding import STEPS, rounded
from tests.quantize.toys import toy_graphs


class Uneven(nn.Module):
    """A depth-wise convolution of very uneven channels between two others; its input also goes out as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(16, 4, 1)
        self.middle = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.open = nn.Conv2d(3, 8, 1)
        with torch.no_grad():
            self.middle.weight.mul_(torch.logspace(-2, 1, 8).view(-1, 1, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        seen = F.relu(self.open(x))
        return self.last(torch.cat([self.middle(F.relu(self.first(x))), seen], 1)), seen


def uneven() -> GraphExport:
    torch.manual_seed(1)
    smooth = F.avg_pool2d(torch.rand(9, 3, 20, 24), 5, 1)
    samples = [{"x": (3 * item[None]).numpy()} for item in smooth]
    return GraphExport(Uneven().eval(), list(samples[0].items()), ["y", "seen"], samples)


def peaks(layer: nn.Conv2d, module: Uneven, sample: dict) -> Tensor:
    """Largest value of each channel that a layer reads."""
    found: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _layer, given, _out: found.append(given[0].abs().amax((0, 2, 3))))
    with torch.no_grad():
        module(torch.from_numpy(sample["x"]))
    hook.remove()
    return found[0]


def test_equalising_changes_ranges_and_nothing_else() -> None:
    graph = uneven()
    result = equalised(graph, graph.calibration)
    for sample in graph.calibration:
        for name, wanted in run_torch(graph, sample).items():
            np.testing.assert_allclose(run_torch(result, sample)[name], wanted, rtol=1e-4, atol=1e-5)
    before, after = (peaks(g.module.last, g.module, graph.calibration[0])[:8] for g in (graph, result))
    assert float(after.max() / after.min()) < 0.3 * float(before.max() / before.min())
    assert torch.equal(result.module.open.weight, graph.module.open.weight), "an output's scale is what it is"
    assert not torch.equal(result.module.first.weight, graph.module.first.weight)


def test_every_toy_computes_the_same() -> None:
    for graph in toy_graphs().values():
        result = equalised(graph, graph.calibration)
        for name, wanted in run_torch(graph, graph.calibration[3]).items():
            found = run_torch(result, graph.calibration[3])[name].astype(float)
            assert np.abs(found - wanted).max() <= max(1e-3 * np.abs(wanted).max(), wanted.dtype == np.uint8)


def test_a_graph_that_would_compute_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    write = equalise._write
    monkeypatch.setattr(equalise, "_write", lambda module, layers, gains: write(module, layers[-1:], gains))
    with pytest.raises(EngineError, match="changes output"):
        equalised(uneven(), uneven().calibration)


def nearest(graph: GraphExport) -> GraphExport:
    """Each weight of each convolution at the nearest of its 255 steps."""
    found = uneven()
    found.module.load_state_dict(graph.module.state_dict())
    with torch.no_grad():
        for layer in found.module.children():
            step = layer.weight.abs().amax((1, 2, 3), keepdim=True) / STEPS
            layer.weight.copy_((layer.weight / step).round() * step)
    return found


def test_rounded_weights_are_what_engines_take_and_lose_less_than_the_nearest() -> None:
    graph = uneven()
    result = rounded(graph, graph.calibration[::2])
    for name, weight in result.module.named_parameters():
        if weight.dim() == 4:
            step = dict(graph.module.named_parameters())[name].abs().amax((1, 2, 3), keepdim=True) / STEPS
            assert torch.allclose(weight / step, (weight / step).round(), atol=1e-3), name
            assert torch.allclose(weight.abs().amax((1, 2, 3), keepdim=True), STEPS * step, rtol=1e-5), name

    def error(candidate: GraphExport) -> float:
        pairs = [(run_torch(candidate, s)["y"], run_torch(graph, s)["y"]) for s in graph.calibration[1::2]]
        return float(np.mean([np.square(found - wanted).mean() for found, wanted in pairs]))

    assert error(result) < 0.5 * error(nearest(graph))


def test_a_channel_that_is_nearly_constant_does_not_spoil_the_others() -> None:
    """Its variance is what is left of the difference of two large sums."""
    graph = uneven()
    with torch.no_grad():
        graph.module.first.weight[:4].mul_(1e-5)
        graph.module.first.bias[:4] = 50.0
    result = rounded(graph, graph.calibration)
    wanted, found = (run_torch(g, graph.calibration[1])["y"] for g in (graph, result))
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()
