"""A rendered street with exact ground truth: picture and boxes of any frame, from nothing but a seed and a number.

Frame n is a pure function of (size, rate, seed, n): two runs are equal byte for byte, and a test can ask for one frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scene_edge.codec.errors import ConfigError
from scene_edge.codec.planes import Planes
from scene_edge.edge.sources.street.actors import Actor, Pose, cast
from scene_edge.edge.sources.street.backdrop import CAMERA_HEIGHT_M, Camera, backdrop
from scene_edge.edge.sources.street.canvas import U16, Canvas, Real, Sprite

MIN_SIDE, MAX_SIDE = 64, 4096
NOISE_POOL = 64
MOT_CLASSES = {"person": 1, "car": 3}


@dataclass(frozen=True, slots=True)
class TruthBox:
    """One object in one frame: pixels of its box inside the picture, and how much of the object can be seen (0..1)."""

    identity: int
    kind: str
    left: float
    top: float
    width: float
    height: float
    visible: float


@dataclass(frozen=True, slots=True)
class _Placed:
    order_m: float
    sprite: Sprite
    column: int
    row: int
    actor: int
    passing: int


class Street:
    """The street at `width` x `height` (even) and `fps`; `frame(n)` draws it, `truth(n)` says what is in it."""

    def __init__(self, width: int = 960, height: int = 540, fps: float = 30.0, seed: int = 1) -> None:
        if width % 2 or height % 2 or not (MIN_SIDE <= width <= MAX_SIDE and MIN_SIDE <= height <= MAX_SIDE):
            raise ConfigError(
                "the street cannot be drawn at this size",
                got=f"{width}x{height}",
                allowed=f"even sides of {MIN_SIDE}..{MAX_SIDE}",
            )
        if not 0 < fps <= 240:
            raise ConfigError("the street cannot be drawn at this rate", got=fps, allowed="above 0, at most 240 fps")
        rng = np.random.default_rng(seed)
        self.camera = Camera(width, height)
        self.fps = fps
        self._empty = backdrop(self.camera, rng)
        self._base = [np.rint(plane).astype(np.uint8) for plane in self._empty]
        self._actors = cast(self.camera, rng)
        self._furniture = _furniture(self.camera, rng)
        self._shadows: dict[tuple[int, int], U16] = {}
        self._grain = _grain(width, height, rng, 1.7), _grain(width // 2, height // 2, rng, 0.9)
        self._seed = seed

    def warm(self) -> None:
        """Draw every pose now, rather than as each is first needed."""
        for actor in self._actors:
            actor.warm()

    def frame(self, number: int) -> Planes:
        """The picture of frame `number`, counted from 0."""
        time_s = number / self.fps
        y, u, v = (plane.copy() for plane in self._base)
        for actor, pose in self._present(time_s):
            self._shade(y, actor, pose)
        for placed in self._placed(time_s):
            _blend(y, u, v, placed.sprite, placed.column, placed.row)
        gain = 1 + 0.045 * np.sin(2 * np.pi * time_s / 37) + 0.02 * np.sin(2 * np.pi * time_s / 11)
        lut = np.clip(16 + (np.arange(256) - 16) * gain, 16, 235).astype(np.uint8)
        y = lut[y]
        rng = np.random.default_rng((self._seed, number))
        for plane, grain in ((y, self._grain[0]), (u, self._grain[1]), (v, self._grain[1])):
            dy, dx = (int(value) for value in rng.integers(0, NOISE_POOL, 2))
            # The grain is at most 9 and the picture within 16..240: adding modulo 256 cannot wrap.
            np.add(plane, grain[dy : dy + plane.shape[0], dx : dx + plane.shape[1]], out=plane)
        return Planes(y, u, v)

    def truth(self, number: int) -> list[TruthBox]:
        """Every person and vehicle that frame `number` shows, from far to near; what is hidden wholly is left out."""
        placed = self._placed(number / self.fps)
        owner: NDArray[np.int16] = np.full((self.camera.height, self.camera.width), -1, np.int16)
        for index, item in enumerate(placed):
            window = _window(item, owner.shape)
            if window is not None:
                rows, columns, part = window
                owner[rows, columns][item.sprite.solid[part]] = index
        boxes = []
        for index, item in enumerate(placed):
            window = _window(item, owner.shape)
            if item.actor < 0 or window is None:
                continue
            rows, columns, part = window
            solid = item.sprite.solid[part]
            seen = int((owner[rows, columns] == index).sum())
            if seen == 0:
                continue
            covered_rows, covered_columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
            boxes.append(
                TruthBox(
                    1 + item.actor + item.passing * len(self._actors),
                    self._actors[item.actor].kind,
                    float(columns.start + covered_columns[0]),
                    float(rows.start + covered_rows[0]),
                    float(covered_columns[-1] - covered_columns[0] + 1),
                    float(covered_rows[-1] - covered_rows[0] + 1),
                    seen / int(item.sprite.solid.sum()),
                )
            )
        return boxes

    def mot(self, frames: int) -> str:
        """Ground truth of the first `frames` frames as MOT text: frame from 1, id, x, y, w, h, 1, class, visibility."""
        lines = [
            f"{number + 1},{box.identity},{box.left:g},{box.top:g},{box.width:g},{box.height:g},1,"
            f"{MOT_CLASSES[box.kind]},{box.visible:.3f}"
            for number in range(frames)
            for box in self.truth(number)
        ]
        return "\n".join(lines) + "\n"

    def _present(self, time_s: float) -> list[tuple[Actor, Pose]]:
        return [(actor, pose) for actor in self._actors if (pose := actor.pose(time_s)) is not None]

    def _placed(self, time_s: float) -> list[_Placed]:
        """Everything that stands in the street, far to near."""
        placed = list(self._furniture)
        for index, actor in enumerate(self._actors):
            pose = actor.pose(time_s)
            if pose is not None:
                column, row, _ = self.camera.project(pose.x_m, pose.z_m)
                sprite = pose.sprite
                placed.append(
                    _Placed(pose.z_m, sprite, round(column) + sprite.left, round(row) + sprite.top, index, pose.passing)
                )
        return sorted(placed, key=lambda item: -item.order_m)

    def _shade(self, y: NDArray[np.uint8], actor: Actor, pose: Pose) -> None:
        """The soft shadow on the ground; the light comes from the upper left."""
        column, row, scale = self.camera.project(pose.x_m + 0.12, pose.z_m - 0.05)
        size = (
            max(2, round(actor.shadow_m[0] * scale)),
            max(2, round(actor.shadow_m[1] * scale * CAMERA_HEIGHT_M / pose.z_m)),
        )
        if size not in self._shadows:
            self._shadows[size] = _shadow(*size)
        inverse = self._shadows[size]
        item = _Placed(
            0, Sprite(inverse, inverse, inverse, inverse, 0, 0), round(column) - size[0], round(row) - size[1], 0, 0
        )
        window = _window(item, y.shape)
        if window is not None:
            rows, columns, part = window
            y[rows, columns] = 16 + ((y[rows, columns].astype(np.uint16) - 16) * inverse[part] >> 8)


def _shadow(half_width: int, half_height: int) -> U16:
    """256 - alpha of a soft ellipse."""
    x = (np.arange(2 * half_width) + 0.5) / half_width - 1
    y = (np.arange(2 * half_height) + 0.5) / half_height - 1
    inside = np.clip(1 - (x[None, :] ** 2 + y[:, None] ** 2), 0, 1)
    return np.rint(256 * (1 - 0.55 * np.sqrt(inside))).astype(np.uint16)


def _grain(width: int, height: int, rng: np.random.Generator, sigma: float) -> NDArray[np.uint8]:
    """A pool of sensor noise larger than the plane: every frame cuts its own window out. Two's complement in u8."""
    noise = rng.standard_normal((height + NOISE_POOL, width + NOISE_POOL)).astype(np.float32) * sigma
    pool: NDArray[np.uint8] = np.clip(np.rint(noise), -9, 9).astype(np.int8).view(np.uint8)
    return pool


def _window(item: _Placed, shape: tuple[int, ...]) -> tuple[slice, slice, tuple[slice, slice]] | None:
    """Rows and columns of the picture that the sprite falls on, and the matching part of the sprite."""
    top, left = max(item.row, 0), max(item.column, 0)
    bottom = min(item.row + item.sprite.y.shape[0], shape[0])
    right = min(item.column + item.sprite.y.shape[1], shape[1])
    if top >= bottom or left >= right:
        return None
    part = slice(top - item.row, bottom - item.row), slice(left - item.column, right - item.column)
    return slice(top, bottom), slice(left, right), part


def _halved(plane: U16) -> U16:
    total = plane[::2, ::2] + plane[1::2, ::2] + plane[::2, 1::2] + plane[1::2, 1::2] + 2
    mean: U16 = total >> np.uint16(2)
    return mean


def _blend(
    y: NDArray[np.uint8], u: NDArray[np.uint8], v: NDArray[np.uint8], sprite: Sprite, column: int, row: int
) -> None:
    """Lay a sprite over the planes, cut at the picture's border; chroma by means over 2x2."""
    window = _window(_Placed(0, sprite, column, row, 0, 0), y.shape)
    if window is None:
        return
    rows, columns, part = window
    y[rows, columns] = sprite.y[part] + (y[rows, columns] * sprite.inverse[part] >> 8)
    top, left = rows.start // 2 * 2, columns.start // 2 * 2
    bottom, right = -(-rows.stop // 2) * 2, -(-columns.stop // 2) * 2
    margin = ((rows.start - top, bottom - rows.stop), (columns.start - left, right - columns.stop))
    inverse = _halved(np.pad(sprite.inverse[part], margin, constant_values=256))
    small = slice(top // 2, bottom // 2), slice(left // 2, right // 2)
    for plane, cover in ((u, sprite.u), (v, sprite.v)):
        plane[small] = _halved(np.pad(cover[part], margin)) + (plane[small] * inverse >> 8)


def _furniture(camera: Camera, rng: np.random.Generator) -> list[_Placed]:
    """What stands still and hides the others: a street lamp at the far kerb, a tree at the near one."""
    placed = []
    for x, z, draw in ((-1.4, 18.65, _lamp), (6.1, 11.75, _tree)):
        column, row, scale = camera.project(x, z)
        canvas = Canvas(-1.9, 1.9, 5.2, scale)
        draw(canvas, rng)
        sprite = canvas.sprite()
        placed.append(_Placed(z, sprite, round(column) + sprite.left, round(row) + sprite.top, -1, 0))
    return placed


def _at(x: float, y: float) -> Real:
    return np.array([x, y], np.float32)


def _lamp(canvas: Canvas, rng: np.random.Generator) -> None:
    iron = (0.13, 0.15, 0.15)
    canvas.capsule(_at(0, 0), _at(0, 0.5), 0.12, 0.09, iron)
    canvas.capsule(_at(0, 0.4), _at(0, 4.2), 0.06, 0.045, iron)
    canvas.capsule(_at(0, 4.2), _at(0.9, 4.5), 0.04, 0.035, iron)
    canvas.capsule(_at(0.75, 4.45), _at(1.15, 4.48), 0.07, 0.07, (0.88, 0.88, 0.80))


def _tree(canvas: Canvas, rng: np.random.Generator) -> None:
    canvas.capsule(_at(0, 0), _at(0.05, 3.6), 0.15, 0.09, (0.33, 0.26, 0.20))
    for _ in range(700):
        angle, reach = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random()) * 1.5
        x, y = reach * np.cos(angle), 4.25 + 0.75 * reach * np.sin(angle)
        green = float(rng.uniform(0.7, 1.1)) * (0.75 + 0.12 * (y - 3.2))
        spot = _at(float(x), float(y))
        radius = float(rng.uniform(0.05, 0.15))
        canvas.capsule(spot, spot, radius, radius, (0.22 * green, 0.40 * green, 0.13 * green))
