"""Training in INT8: weights that lose less than those of post-training quantisation, and when it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="quantisation needs the extra train: pip install scene-edge[train]")
pytest.importorskip("onnxscript", reason="quantisation needs the extra train: pip install scene-edge[train]")

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import ConfigError
from scene_edge.models.registry import GraphExport
from scene_edge.quantize import qat
from scene_edge.quantize.export import export_bundle
from scene_edge.quantize.graphs import Axes, run_torch
from scene_edge.quantize.qat import FEWEST, trained
from tests.quantize.toys import ToyFilter, filter_sample, toy_graphs

COMMON = {"name": "toy", "kind": "smc", "version": "0.1.0", "counter": 1, "parameters": {}, "training": {}}


class Coarse(nn.Module):
    """Its first layer weighs a channel that hardly speaks a hundred times, so that its other weights have few steps.

    The channel is an input's, whose scale is not free; the layers behind can learn to make up for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 3, 3, 1, 1)
        self.body = nn.ModuleList(nn.Conv2d(8, 8, 3, 1, 1) for _ in range(3))
        with torch.no_grad():
            self.first.weight[:, 2].mul_(100.0)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        for layer in self.body:
            y = y + F.relu(layer(y))
        return self.last(y)


def coarse(count: int = 24) -> GraphExport:
    torch.manual_seed(5)
    pictures = F.avg_pool2d(torch.rand(count, 3, 30, 34), 3, 1)
    pictures[:, 2] /= 100.0
    samples = [{"x": item[None].numpy()} for item in pictures]
    return GraphExport(Coarse().eval(), list(samples[0].items()), ["y"], samples)


def test_trained_weights_lose_less_on_an_engine_and_the_report_says_how_much(tmp_path: Path) -> None:
    errors = {}
    for steps in (0, 120):
        graphs = {"coarse": coarse()}
        report = export_bundle(graphs, **COMMON, out=tmp_path / str(steps), engines=("onnx",), qat_steps=steps)
        (int8,) = (item for item in report.artifacts if item.precision == "int8")
        errors[report.method] = int8.worst[1]
    assert errors["qat"] < 0.95 * errors["ptq"]
    training = report.training["coarse"]
    assert training.taken
    assert training.steps == 120
    assert training.after["y"] < 0.95 * training.before["y"]
    told = Bundle.open(tmp_path / "120").manifest["quantisation"]
    assert told["method"] == "qat"
    assert told["training"]["coarse"]["taken"] is True


def test_the_same_seed_gives_the_same_weights_and_the_teacher_stays_as_it_is() -> None:
    graph = coarse()
    before = {name: value.clone() for name, value in graph.module.state_dict().items()}
    found = [trained(graph, graph, graph.calibration, steps=5, seed=seed).graph.module for seed in (1, 1, 2)]
    one, again, other = (module.state_dict() for module in found)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    assert all(torch.equal(value, before[name]) for name, value in graph.module.state_dict().items())


def test_weights_that_training_made_no_better_are_left_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qat, "RATE", 30.0)
    graph = coarse()
    found = trained(graph, graph, graph.calibration, steps=5, seed=1)
    assert not found.taken
    assert sum(found.after.values()) > sum(found.before.values())
    for name, wanted in run_torch(graph, graph.calibration[0]).items():
        np.testing.assert_array_equal(run_torch(found.graph, graph.calibration[0])[name], wanted)


def test_a_picture_is_judged_by_what_the_network_changes_of_it() -> None:
    """A filter that changes a tenth is off by a tenth: as wrong, though its pictures are nearer to the teacher's."""
    errors = []
    for strength in (1.0, 0.1):
        torch.manual_seed(2)
        samples = [filter_sample(seed) for seed in range(FEWEST)]
        module = ToyFilter().eval()
        with torch.no_grad():
            module.head.weight.mul_(strength)
            module.head.bias.mul_(strength)
        graph = GraphExport(module, list(samples[0].items()), ["y"], samples)
        errors.append(trained(graph, graph, samples, steps=1, seed=1).before["y"])
    assert 0.5 < errors[0] / errors[1] < 2.0


def test_crops_keep_pictures_and_states_in_register() -> None:
    axes = {"x": Axes(1, 2, 8), "state": Axes(2, 3, 2)}
    rows, columns = np.mgrid[0:160, 0:128]
    picture = (rows // 4 * 100 + columns // 4)[None, :, :, None]
    state = picture[:, ::4, ::4, 0][:, None]
    for crop in qat._crops([{"x": picture, "state": state}], axes, seed=3, count=4):
        assert crop["x"].shape == (1, *qat.CROP, 1)
        assert np.array_equal(crop["x"][:, ::4, ::4, 0], crop["state"][:, 0])


@pytest.mark.parametrize(("graph", "count", "message"), [("filter", 24, "kernels a camera"), ("encoder", 7, "too few")])
def test_refusals_come_before_any_work(tmp_path: Path, graph: str, count: int, message: str) -> None:
    graphs = {graph: toy_graphs(count)[graph]}
    told: list[str] = []
    with pytest.raises(ConfigError, match=message) as caught:
        export_bundle(
            graphs,
            **COMMON,
            out=tmp_path / "toy",
            engines=("onnx",),
            qat_steps=3,
            progress=lambda *what: told.append(str(what)),
        )
    assert "--method ptq" in str(caught.value)
    assert caught.value.exit_code == 2
    assert not told
    assert not any(tmp_path.iterdir())
