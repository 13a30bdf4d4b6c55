"""Kept weights come back within half a step of each channel; anything else is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from scene_edge.codec.errors import FormatError  # noqa: E402
from scene_edge.models.keepsake import from_file, to_bytes  # noqa: E402


def test_weights_come_back_within_half_a_step(tmp_path: Path) -> None:
    torch.manual_seed(1)
    loud = torch.randn(4, 3, 3, 3) * torch.tensor([1e-3, 1.0, 50.0, 0.0])[:, None, None, None]
    weights = {"conv.weight": loud, "conv.bias": torch.tensor([0.5, -2.0])}
    (tmp_path / "w").write_bytes(to_bytes(weights))
    found = from_file(tmp_path / "w")
    assert set(found) == set(weights)
    assert torch.equal(found["conv.bias"], weights["conv.bias"])
    steps = loud.flatten(1).abs().amax(1) / 127
    assert bool(((found["conv.weight"] - loud).flatten(1).abs().amax(1) <= 0.501 * steps + 1e-12).all())


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"nothing")
    with pytest.raises(FormatError, match="no weights"):
        from_file(tmp_path / "w")
    from safetensors.torch import save

    (tmp_path / "w").write_bytes(save({"a": torch.zeros(2, 2, dtype=torch.int8)}))
    with pytest.raises(FormatError, match="scale"):
        from_file(tmp_path / "w")
