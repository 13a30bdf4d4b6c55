"""What an export fits its tables to: latents as a camera codes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from scene_edge.models.data import GOP  # noqa: E402
from scene_edge.models.operating_point import HOLD  # noqa: E402
from scene_edge.models.registry import _fit_tables, _gops  # noqa: E402


def test_tables_are_fitted_to_the_frames_that_have_latents_of_their_own(tmp_path: Path) -> None:
    frames = GOP + 2  # two of the second GOP, which are not to be taken for late ones of the first
    picture = np.arange(frames, dtype=np.uint8)[:, None, None, None] * np.ones((1, 64, 72, 24), np.uint8)
    for name in ("original", "crf47"):
        np.save(tmp_path / f"000.{name}.npy", picture)
    entry = {"file": "x", "number": 0, "frames": frames, "bpp": {"47": 0.1}}
    (tmp_path / "index.json").write_text(json.dumps([entry]))
    (gop,) = _gops(tmp_path, 1, 1)
    assert gop["lossy"][:, 0, 0, 0].tolist() == list(range(0, GOP, HOLD))
    assert gop["lossy"].shape == (8, 64, 72, 24)


def test_bits_are_counted_for_every_frame_that_a_latent_stands_for() -> None:
    gop = np.random.default_rng(1).normal(0, 2, (8, 2, 4, 4)).astype(np.float32)
    (tables,), (bits,) = _fit_tables([gop], [1.0])
    assert bits == round(tables.estimate_bits(np.rint(gop).astype(np.int16)) / (8 * HOLD), 1)
