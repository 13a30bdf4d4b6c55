"""FastestDet's output decoded by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.second_judge import FastestDet, decode_fastestdet
from scene_edge.codec.errors import FormatError, SourceError
from scene_edge.server.analytics.tiles import Tile

NAMES = ("person", "car")


def test_one_cell_by_hand() -> None:
    output = np.zeros((7, 2, 4), np.float32)
    # Row 1, column 2: half a cell to the right, in the cell's top; half as wide as the tile, a quarter as high.
    output[:, 1, 2] = [0.81, np.arctanh(0.5), 0, 0, -np.log(3), 0.1, 0.64]
    found = decode_fastestdet(output, Tile(100, 40, 400, 200), 0.3, NAMES)
    assert found.classes.tolist() == [1]
    assert found.scores == pytest.approx([0.81**0.6 * 0.64**0.4])
    # centre x 100 + 400 * 2.5 / 4, y 40 + 200 * 1 / 2
    assert found.boxes[0] == pytest.approx([350 - 100, 140 - 25, 350 + 100, 140 + 25], abs=1e-3)
    assert not len(decode_fastestdet(output, Tile(0, 0, 400, 200), 0.8, NAMES))


def test_misfits_are_refused() -> None:
    with pytest.raises(FormatError, match="no FastestDet"):
        decode_fastestdet(np.zeros((85, 22, 22), np.float32), Tile(0, 0, 352, 352), 0.3, NAMES)


def test_a_missing_file_is_named(tmp_path: object) -> None:
    from pathlib import Path

    with pytest.raises(SourceError, match="no such detector"):
        FastestDet(Path(str(tmp_path)) / "none.onnx")
