"""The entropy tables of an export: one set for each quality, fitted to that quality's integers."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="exports are made with torch")

from scene_edge.codec.latents import LatentTables
from scene_edge.codec.quality import tensors_of
from scene_edge.models.registry import _fit_tables


def test_each_quality_has_tables_of_its_own_and_coarser_ones_cost_less() -> None:
    rng = np.random.default_rng(1)
    gops = [rng.laplace(0, 1.0, (6, 4, 9, 12)).astype(np.float32) for _ in range(4)]
    steps = [1.0, 1.5, 3.0]
    tables, mean_bits = _fit_tables(gops, steps)
    assert len(tables) == len(mean_bits) == 3
    assert mean_bits == sorted(mean_bits, reverse=True)
    coarse = [np.rint(gop / 3.0).astype(np.int16) for gop in gops]
    costs = [sum(found.estimate_bits(gop) for gop in coarse) for found in tables]
    assert costs[2] == min(costs)
    tensors = tensors_of(tables)
    assert set(tensors) == {f"q{index}.{name}" for index in range(3) for name in ("flags", "places", "values")}
    assert LatentTables.from_tensors(tensors, "q2.").estimate_bits(coarse[0]) == tables[2].estimate_bits(coarse[0])
