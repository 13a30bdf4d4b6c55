"""The labelled action clips as small arrays: decoded once, then viewed in parts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from scene_edge.codec.errors import UsageError
from scene_edge.codec.media import read_video
from scene_edge.models.action import FRAMES, HEIGHT, WIDTH, expose, pack_frames
from scene_edge.models.pictures import resize_plane

CACHE_WIDTH, CACHE_HEIGHT = 192, 152
MAX_FPS = 15.0
SETS = {"arid": "action-ARID", "fight": "action-fight"}
REVERSED = {"Sit": "Stand", "Stand": "Sit"}
"""What an action becomes when its clip is played backwards; the others stay what they are."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One labelled clip: planes y [N, H, W], u, v [N, H/2, W/2] at `fps`, its label's index, its source video."""

    file: str
    group: str
    label: int
    fps: float
    y: NDArray[np.uint8]
    u: NDArray[np.uint8]
    v: NDArray[np.uint8]


def load(data: Path, cache: Path, name: str, split: str) -> tuple[list[Clip], tuple[str, ...]]:
    """Clips of the set `name` ("arid" or "fight") and the names of its labels, sorted; decoded into `cache` once."""
    if name not in SETS:
        raise UsageError("no such action set", got=name, allowed=", ".join(SETS))
    every = [entry for entry in json.loads((data / "index.json").read_text()) if entry["category"] == SETS[name]]
    labels = tuple(sorted({entry["label"] for entry in every}))
    cache.mkdir(parents=True, exist_ok=True)
    clips = []
    for entry in track([entry for entry in every if entry["split"] == split], description=f"{name} {split}"):
        file = cache / (entry["file"].replace("/", "-") + ".npz")
        if not file.is_file():
            _decode(data / entry["file"], file, float(entry["fps"]))
        with np.load(file) as arrays:
            planes = [arrays[plane] for plane in "yuv"]
            fps = float(arrays["fps"])
        clips.append(Clip(entry["file"], str(entry["group"]), labels.index(entry["label"]), fps, *planes))
    return clips, labels


def _decode(source: Path, file: Path, fps: float) -> None:
    every = max(1, round(fps / MAX_FPS))
    kept = [planes for index, (planes, _) in enumerate(read_video(source)) if index % every == 0]

    def shrink(planes: Sequence[NDArray[np.uint8]], width: int, height: int) -> NDArray[np.uint8]:
        return np.stack([resize_plane(plane, width, height) for plane in planes])

    y = shrink([planes.y for planes in kept], CACHE_WIDTH, CACHE_HEIGHT)
    u = shrink([planes.u for planes in kept], CACHE_WIDTH // 2, CACHE_HEIGHT // 2)
    v = shrink([planes.v for planes in kept], CACHE_WIDTH // 2, CACHE_HEIGHT // 2)
    np.savez(file, y=y, u=u, v=v, fps=fps / every)


def plain(clip: Clip, start: float = 0.0, span: float = 1.0, flip: bool = False) -> Tensor:
    """FRAMES pictures spread evenly over the part [start, start + span] of the clip, whole view -> packed."""
    count = len(clip.y)
    index = np.linspace(start * (count - 1), (start + span) * (count - 1), FRAMES).round().astype(int)
    return _view(clip, index, (0.0, 0.0, 1.0, 1.0), flip)


def _view(clip: Clip, index: NDArray[np.int64], box: tuple[float, float, float, float], flip: bool) -> Tensor:
    def cut(planes: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
        rows, columns = planes.shape[1:]
        left, top = int(box[0] * columns), int(box[1] * rows)
        right, bottom = left + max(2, int(box[2] * columns)), top + max(2, int(box[3] * rows))
        parts = [resize_plane(planes[i, top:bottom, left:right], width, height) for i in index]
        stacked = np.stack(parts)
        return np.ascontiguousarray(stacked[:, :, ::-1]) if flip else stacked

    y = expose(cut(clip.y, WIDTH, HEIGHT))
    return pack_frames(y, cut(clip.u, WIDTH // 2, HEIGHT // 2), cut(clip.v, WIDTH // 2, HEIGHT // 2))
