"""Multiplications counted by hand, in OpenVINO and in PyTorch, and what a row says of an engine that does not open."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from benchmarks import network_cost
from benchmarks.network_cost import bundle_rows, macs_of, parse_sizes, spent_ms, torch_graphs, torch_macs
from scene_edge.codec.bundle import Bundle, shipped_bundles
from scene_edge.codec.errors import ConfigError
from scene_edge.inference import openvino


def test_convolutions_of_openvino_by_hand() -> None:
    module = openvino.load()
    from openvino import opset13 as ops

    x = ops.parameter([1, 4, 8, 6], np.float32, name="x")
    plain = ops.convolution(x, ops.constant(np.zeros((5, 4, 3, 3), np.float32)), [2, 2], [1, 1], [1, 1], [1, 1])
    depthwise = ops.group_convolution(
        plain, ops.constant(np.zeros((5, 1, 1, 3, 3), np.float32)), [1, 1], [1, 1], [1, 1], [1, 1]
    )
    flat = ops.reshape(depthwise, ops.constant(np.array([1, 60])), special_zero=False)
    out = ops.matmul(flat, ops.constant(np.zeros((7, 60), np.float32)), transpose_a=False, transpose_b=True)
    # 4 x 3 places left: 5 * 4 * 9 each, then 5 * 9 each, then 60 products for each of 7.
    assert macs_of(module.Model([out], [x])) == 12 * 180 + 12 * 45 + 420


def test_convolutions_of_torch_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(4, 5, 3, 2, 1), nn.Conv2d(5, 5, 3, 1, 1, groups=5))
    assert torch_macs(net, [torch.zeros(1, 4, 8, 6)]) == 12 * 180 + 12 * 45


def test_a_size_in_pytorch_runs_as_both_graphs() -> None:
    graphs = torch_graphs("smc-s", (64, 64))
    assert all(torch_macs(module, given) > 0 for module, given in graphs.values())


def test_times_are_medians_of_the_runs_after_the_first() -> None:
    calls: list[int] = []
    spent = spent_ms(lambda: calls.append(1), 5)
    assert len(calls) == 5 + network_cost.WARM_UP
    assert set(spent) == {"wall", "cpu"}


def test_sizes_are_read_or_refused() -> None:
    assert parse_sizes("960x540,1920x1080") == [(960, 540), (1920, 1080)]
    for text in ("960", "960xx540", "960x", "16x16"):
        with pytest.raises(ConfigError):
            parse_sizes(text)


@pytest.mark.skipif("smc-s" not in shipped_bundles(), reason="this needs the bundle smc-s in models/zoo")
def test_a_bundle_has_a_row_for_each_engine_and_a_reason_for_what_does_not_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = list(bundle_rows(Bundle.open("smc-s"), [(128, 96)], [1], 1))
    by_engine = {row["engine"]: row for row in rows}
    assert by_engine["openvino"]["ms"]["encoder"]["cpu"] > 0
    for row in rows:
        assert {graph for graph, ms in row["ms"].items() if ms is None} == set(row["reasons"])
    out = io.StringIO()
    monkeypatch.setattr(network_cost, "console", Console(file=out, width=150))
    network_cost.show([], rows, ["128x96"])
    assert "openvino" in out.getvalue()
