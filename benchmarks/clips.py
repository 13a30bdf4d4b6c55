"""The development clips that benchmarks run on, and their ground truth; none of it is part of the repository."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.metrics import Boxes
from scene_edge.codec.errors import FormatError, SourceError
from scene_edge.codec.media import probe

ACTION_SETS = ("action_arid", "action_fight")
"""Reported apart: one is filmed at night, so pooled, the lighting alone would tell them apart."""

BOX_SETS = ("mot", "traffic", "vos", "pedestrian")
"""Where people or vehicles can be seen, so that boxes mean something."""


@dataclass(frozen=True)
class Clip:
    """One development clip: `name` is its path below dev/ without suffix, `label` the class of an action clip.

    `first`: the frame from which on it is looked at; `frames` counts from there.
    """

    name: str
    path: Path
    category: str
    label: str | None
    width: int
    height: int
    fps: float
    frames: int
    first: int = 0

    @property
    def is_action(self) -> bool:
        return self.category in ACTION_SETS

    @property
    def has_boxes(self) -> bool:
        return self.category in BOX_SETS


def data_folder() -> Path:
    """$SCENE_EDGE_DATA, else `shared/data` beside the checkout. Raises SourceError where there is none."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SCENE_EDGE_DATA", default))
    if not (folder / "dev").is_dir():
        raise SourceError(
            "no development clips", got=str(folder), hint="Set SCENE_EDGE_DATA to the folder that holds dev/."
        )
    return folder


def find_clips(patterns: list[str]) -> list[Clip]:
    """Clips whose name, or the category it begins with, matches a pattern such as "mot", "vos/park*" or "*".

    Pictures of one shape follow one another, so that a network opened for one clip serves the next. Raises
    SourceError for a pattern that nothing matches.
    """
    root = data_folder() / "dev"
    paths = {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.mp4"))}
    chosen: dict[str, Path] = {}
    for pattern in patterns:
        found = {name: path for name, path in paths.items() if fnmatch(name, pattern) or fnmatch(name, f"{pattern}/*")}
        if not found:
            categories = ", ".join(sorted({name.partition("/")[0] for name in paths}))
            raise SourceError("no clip matches", got=pattern, allowed=f"{categories}, or a pattern such as vos/park*")
        chosen.update(found)
    clips = [_clip(name, path) for name, path in chosen.items()]
    return sorted(clips, key=lambda clip: (clip.category, clip.height / clip.width, clip.name))


def parts_of_clip(clip: Clip, count: int, frames: int) -> list[Clip]:
    """At most `count` parts of `frames` frames each, evenly spread and apart; a shorter clip is one part.

    A part is named after its first frame, and is a clip of its own: it starts with a key frame.
    """
    count = max(1, min(count, clip.frames // frames))
    length = min(frames, clip.frames)
    starts = [index * (clip.frames - length) // max(1, count - 1) for index in range(count)]
    return [replace(clip, name=f"{clip.name}@{start}", first=start, frames=length) for start in starts]


def _clip(name: str, path: Path) -> Clip:
    info, parts = probe(path), name.split("/")
    label = parts[1] if parts[0] in ACTION_SETS else None
    return Clip(name, path, parts[0], label, info.width, info.height, info.fps, info.frames)


def mot_truth(clip: Clip, width: int) -> dict[int, Boxes] | None:
    """Frame (from 0) -> people with their identities, in samples of a picture `width` wide. None without a .gt.txt.

    MOT Challenge format: frame from 1, identity, left, top, width, height, flag (0 means ignore), ...
    """
    path = clip.path.with_suffix(".gt.txt")
    if not path.is_file():
        return None
    scale = width / clip.width
    rows: dict[int, list[tuple[int, list[float]]]] = defaultdict(list)
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            frame, identity, x, y, w, h, flag = (float(value) for value in line.split(",")[:7])
        except ValueError as error:
            raise FormatError(f"{path}:{number} is not MOT ground truth", got=line[:80]) from error
        if flag:
            rows[int(frame) - 1].append((int(identity), [x * scale, y * scale, (x + w) * scale, (y + h) * scale]))
    return {frame: Boxes.of([box for _, box in found], [name for name, _ in found]) for frame, found in rows.items()}


def has_masks(clip: Clip) -> bool:
    """Whether one object of the clip is annotated sample by sample."""
    return clip.path.with_suffix(".masks").is_dir()


def object_mask(clip: Clip, frame: int, width: int, height: int) -> NDArray[np.bool_]:
    """The annotated object of a frame, as a mask [height, width]. Raises SourceError where the frame has none."""
    from PIL import Image

    paths = sorted(clip.path.with_suffix(".masks").glob("*.png"))
    if not 0 <= frame < len(paths):
        raise SourceError(f"{clip.name} has no mask of this frame", got=frame, allowed=f"0..{len(paths) - 1}")
    with Image.open(paths[frame]) as picture:
        return np.asarray(picture.convert("L").resize((width, height), Image.Resampling.NEAREST)) > 127


def mask_truth(clip: Clip, width: int) -> dict[int, Boxes] | None:
    """Frame (from 0) -> the box around the one annotated object, in samples of a picture `width` wide.

    None without a .masks folder. Other objects of the picture are not annotated, so this gives recall and no more.
    """
    from PIL import Image

    folder = clip.path.with_suffix(".masks")
    if not folder.is_dir():
        return None
    scale = width / clip.width
    truth = {}
    for frame, path in enumerate(sorted(folder.glob("*.png"))):
        rows, columns = np.nonzero(np.asarray(Image.open(path)) > 127)
        if len(rows):
            box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            truth[frame] = Boxes.of([[float(side) * scale for side in box]])
    return truth
