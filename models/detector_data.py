"""Training pictures for the detector: labelled frames scaled, mirrored, cut and joined at random, darkened, noised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scene_edge.codec.planes import Planes, pack
from scene_edge.models.detector import HEIGHT, WIDTH, Truth
from scene_edge.models.pictures import from_i420, resize_plane
from scene_edge.models.pseudo_labels import Sample

SURE = np.array([0.35, 0.55], np.float32)
"""From this teacher's score on a person or vehicle is a label; below it, the place is left out of the loss."""

SHARES = {"action_arid": 0.08, "action_fight": 0.42}
"""How often the action clips are drawn; the others share the rest."""

SMALLEST = 6.0
VISIBLE = 0.35


class Canvas:
    """A network input being filled: planes and the boxes that fell on it."""

    def __init__(self) -> None:
        self.y = np.full((HEIGHT, WIDTH), 112, np.uint8)
        self.u = np.full((HEIGHT // 2, WIDTH // 2), 128, np.uint8)
        self.v = self.u.copy()
        self.boxes: list[NDArray[np.float32]] = []
        self.classes: list[NDArray[np.int64]] = []
        self.ignored: list[NDArray[np.float32]] = []

    def paste(
        self, folder: Path, sample: Sample, region: tuple[int, int, int, int], zoom: float, random: np.random.Generator
    ) -> None:
        """Put the sample at `zoom` times its fitting scale into the region (left, top, right, bottom; all even)."""
        left, top, right, bottom = region
        planes = from_i420(np.load(folder / sample.files[int(random.integers(len(sample.files)))]))
        scale = zoom * min((right - left) / planes.width, (bottom - top) / planes.height)
        stretch = np.exp(random.uniform(-0.12, 0.12))
        width = max(16, round(planes.width * scale * stretch / 2) * 2)
        height = max(16, round(planes.height * scale / stretch / 2) * 2)
        flip = random.random() < 0.5
        shift_x = _offset(right - left, width, random)
        shift_y = _offset(bottom - top, height, random)
        for target, plane, step in ((self.y, planes.y, 1), (self.u, planes.u, 2), (self.v, planes.v, 2)):
            small = resize_plane(plane, width // step, height // step)
            if flip:
                small = small[:, ::-1]
            area = target[top // step : bottom // step, left // step : right // step]
            x, y = shift_x // step, shift_y // step
            part = small[max(0, -y) : area.shape[0] - y, max(0, -x) : area.shape[1] - x]
            area[max(0, y) : max(0, y) + part.shape[0], max(0, x) : max(0, x) + part.shape[1]] = part
        boxes = sample.boxes.copy()
        if flip:
            boxes[:, [0, 2]] = 1 - boxes[:, [2, 0]]
        boxes = boxes * np.array([width, height] * 2, np.float32)
        boxes += np.array([left + shift_x, top + shift_y] * 2, np.float32)
        clipped = np.clip(boxes, np.array([left, top] * 2), np.array([right, bottom] * 2)).astype(np.float32)
        sides = clipped[:, 2:] - clipped[:, :2]
        share = sides.prod(1) / np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(1), 1e-6)
        there = (sides > 1).all(1)
        sure = (sample.scores >= SURE[sample.classes]) & (sides.max(1) >= SMALLEST) & (share >= VISIBLE) & there
        self.boxes.append(clipped[sure])
        self.classes.append(sample.classes[sure])
        self.ignored.append(clipped[there & ~sure])

    def finish(self, random: np.random.Generator) -> tuple[Tensor, Truth]:
        """Light and noise, then packed u8 [h, w, 24] and its truth."""
        dark = float(self.y.mean()) < 50
        night = not dark and random.random() < 0.2
        gamma = np.exp(random.uniform(-0.4, 0.4))
        gain = random.uniform(0.15, 0.6) if night else random.uniform(0.7, 4.0 if dark else 1.25)
        curve = np.clip((np.arange(256) - 16) / 219, 0, 1) ** gamma * gain * 219 + 16
        y = curve[self.y] + random.normal(0, random.uniform(0, 5), 1)
        if random.random() < 0.5:
            y = y + np.asarray(random.standard_normal((HEIGHT, WIDTH), dtype=np.float32)) * random.uniform(0, 6)
        saturation = random.uniform(0.0, 1.4) * (0.4 if night else 1.0)
        shift = random.uniform(-6, 6, 2)
        u = (self.u - 128.0) * saturation + 128 + shift[0]
        v = (self.v - 128.0) * saturation + 128 + shift[1]
        planes = Planes(*(np.clip(plane, 0, 255).astype(np.uint8) for plane in (y, u, v)))
        boxes, classes, ignored = (np.concatenate(parts) for parts in (self.boxes, self.classes, self.ignored))
        truth = Truth(torch.from_numpy(boxes), torch.from_numpy(classes), torch.from_numpy(ignored))
        return torch.from_numpy(pack(planes)), truth


def _offset(room: int, size: int, random: np.random.Generator) -> int:
    """Even shift of a picture of `size` in `room`: anywhere that loses no more than need be."""
    low, high = sorted((0, room - size))
    return int(random.integers(low // 2, high // 2 + 1)) * 2


def draw(
    folder: Path, samples: list[Sample], weights: NDArray[np.float64], random: np.random.Generator
) -> tuple[Tensor, Truth]:
    """One training picture: a single frame, or four around a random cross."""
    canvas = Canvas()
    chosen = [samples[i] for i in random.choice(len(samples), 4, p=weights)]
    if random.random() < 0.5:
        canvas.paste(folder, chosen[0], (0, 0, WIDTH, HEIGHT), float(np.exp(random.uniform(-0.5, 0.7))), random)
    else:
        x = int(random.uniform(0.3, 0.7) * WIDTH / 2) * 2
        y = int(random.uniform(0.3, 0.7) * HEIGHT / 2) * 2
        regions = ((0, 0, x, y), (x, 0, WIDTH, y), (0, y, x, HEIGHT), (x, y, WIDTH, HEIGHT))
        for sample, region in zip(chosen, regions, strict=True):
            canvas.paste(folder, sample, region, float(np.exp(random.uniform(-0.2, 0.8))), random)
    return canvas.finish(random)


def sampling_weights(samples: list[Sample]) -> NDArray[np.float64]:
    """SHARES between the sets; within one, labelled frames count five times, long clips go by the square root."""
    lengths: dict[str, int] = {}
    for sample in samples:
        lengths[sample.clip] = lengths.get(sample.clip, 0) + 1
    labelled = [bool((sample.scores >= SURE[sample.classes]).any()) for sample in samples]
    weights = np.array(
        [(5.0 if has else 1.0) / np.sqrt(lengths[one.clip]) for one, has in zip(samples, labelled, strict=True)]
    )
    groups = np.array([next((name for name in SHARES if name in sample.clip), "") for sample in samples])
    for group in np.unique(groups):
        member = groups == group
        weights[member] *= SHARES.get(str(group), 1.0 - sum(SHARES.values())) / weights[member].sum()
    return np.asarray(weights / weights.sum(), np.float64)
