"""Where tests find the real clips, which are no part of the repository: without them they skip, and say so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def data_folder() -> Path:
    """$SCENE_EDGE_DATA, else `shared/data` beside the checkout. It may not exist."""
    named = os.environ.get("SCENE_EDGE_DATA")
    return Path(named) if named else REPOSITORY.parent / "shared" / "data"


def data_file(relative: str) -> Path:
    """A file of the data set by its path in it, such as "models/yolox_nano.onnx"; skips the test without it."""
    path = data_folder() / relative
    if not path.is_file():
        pytest.skip(f"no {relative} in {data_folder()}: set SCENE_EDGE_DATA to the folder with the clips")
    return path


def dev_clip(name: str) -> Path:
    """A development clip by its path below dev/ or by its bare file name, such as "adl_rundle6.mp4" or "highway"."""
    folder = data_folder() / "dev"
    if (folder / name).is_file():
        return folder / name
    found = sorted(folder.rglob(name if "." in name else f"{name}.mp4"))
    if not found:
        pytest.skip(f"no clip {name} in {folder}: set SCENE_EDGE_DATA to the folder with the clips")
    return found[0]


def dev_clips() -> list[Path]:
    """Every development clip, sorted; empty where there is no data."""
    return sorted((data_folder() / "dev").rglob("*.mp4"))
