"""What an export fits its tables to: latents as a camera sends them."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from scene_edge.models.registry import HOLD, held  # noqa: E402


def test_tables_see_each_latent_for_as_long_as_it_stands() -> None:
    gop = np.arange(2 * HOLD + 1, dtype=np.float32)[:, None, None, None] * np.ones((1, 2, 3, 3), np.float32)
    assert held(gop)[:, 0, 0, 0].tolist() == [0.0] * HOLD + [float(HOLD)] * HOLD + [2.0 * HOLD]
