"""Free sides, fitted samples, digests, and graphs that cannot be exported."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="quantisation needs the extra train: pip install scene-edge[train]")

import torch
from torch import Tensor, nn

from scene_edge.codec.errors import ConfigError, EngineError
from scene_edge.models.registry import GraphExport
from scene_edge.quantize.graphs import (
    Axes,
    dynamic_axes,
    export_program,
    fitted,
    run_torch,
    samples_digest,
    weights_digest,
)
from tests.quantize.toys import encoder_sample, filter_sample, toy_graphs


def test_sides_are_free_where_samples_or_litert_shapes_differ() -> None:
    graphs = toy_graphs(2)
    assert dynamic_axes(graphs["encoder"]) == {"x": Axes(1, 2, 8), "lossy": Axes(1, 2, 8), "state_sem": Axes(2, 3, 2)}
    assert dynamic_axes(graphs["filter"]) == {"x": Axes(1, 2, 8)}
    fixed = graphs["filter"]
    fixed.litert_shapes = []
    assert dynamic_axes(fixed) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": (1, 24, 40, 24)}, "other inputs"),
        ({"x": (1, 32, 48, 24), "lossy": (1, 32, 48, 24), "state_sem": (1, 48, 6, 10)}, "state_sem"),
        ({"x": (2, 32, 48, 24), "lossy": (1, 32, 48, 24), "state_sem": (1, 48, 8, 12)}, "input x"),
    ],
)
def test_sizes_that_do_not_follow_the_picture_are_refused(change: dict, message: str) -> None:
    graph = toy_graphs(2)["encoder"]
    graph.litert_shapes = [*graph.litert_shapes, change]
    with pytest.raises(ConfigError, match=message):
        dynamic_axes(graph)


def test_fitted_keeps_pictures_and_states_in_register() -> None:
    sample = encoder_sample(1, 24, 40)
    larger = fitted(sample, {"x": (1, 32, 48, 24), "lossy": (1, 32, 48, 24), "state_sem": (1, 48, 8, 12)})
    assert np.array_equal(larger["x"][:, :24, :40], sample["x"])
    assert np.array_equal(larger["x"][:, 24:, :40], sample["x"][:, :8])
    assert np.array_equal(larger["state_sem"][..., 6:, :10], sample["state_sem"][..., :2, :])
    smaller = fitted(larger, {key: value.shape for key, value in sample.items()})
    assert all(np.array_equal(smaller[key], sample[key]) for key in sample)


def test_digests_see_every_change() -> None:
    samples = [filter_sample(0), filter_sample(1)]
    assert samples_digest(samples) == samples_digest([filter_sample(0), filter_sample(1)])
    assert samples_digest(samples) != samples_digest(samples[::-1])
    module = toy_graphs(1)["filter"].module
    before = weights_digest(module)
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] += 1e-3
    assert weights_digest(module) != before


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x


def test_a_graph_that_branches_on_data_is_an_engine_error() -> None:
    x = np.ones((1, 16, 16, 24), np.uint8)
    graph = GraphExport(Branching(), [("x", x)], ["y"], [{"x": x}])
    with pytest.raises(EngineError, match="Branching cannot be exported"):
        export_program(graph, {"x": x}, {})


def test_outputs_must_be_as_many_as_their_names() -> None:
    graph = toy_graphs(1)["encoder"]
    graph.outputs = ["latent"]
    with pytest.raises(ConfigError, match="other outputs"):
        run_torch(graph, encoder_sample(0))
