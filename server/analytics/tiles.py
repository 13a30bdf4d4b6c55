"""Cutting a picture into network inputs and carrying boxes back: square tiles, letterboxes, BGR. Plain arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from scene_edge.codec.planes import U8, Planes
from scene_edge.server.analytics.detections import F32

WIDE = 1.5
"""From this width to height ratio on, a square input wastes so much that two tiles are used."""

PAD_BGR = 114


@dataclass(frozen=True, slots=True)
class Tile:
    """A part of a picture in luma samples: top left corner and size, all even."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Letterbox:
    """A `width` x `height` picture scaled by `scale` and put at (left, top) of a larger input."""

    scale: float
    left: int
    top: int
    width: int
    height: int

    @classmethod
    def fit(cls, width: int, height: int, into_width: int, into_height: int, *, centred: bool = False) -> Letterbox:
        """The largest scale at which all of the picture fits; the scaled size is even for the sake of 4:2:0."""
        scale = min(into_width / width, into_height / height)
        scaled_width = min(into_width, max(2, round(width * scale / 2) * 2))
        scaled_height = min(into_height, max(2, round(height * scale / 2) * 2))
        left = (into_width - scaled_width) // 4 * 2 if centred else 0
        top = (into_height - scaled_height) // 4 * 2 if centred else 0
        return cls(scale, left, top, scaled_width, scaled_height)

    def to_input(self, boxes: F32) -> F32:
        """Boxes [N, 4] of the picture, in samples of the input."""
        offset = np.array([self.left, self.top] * 2, np.float32)
        return np.asarray(boxes * np.float32(self.scale) + offset, np.float32)

    def to_picture(self, boxes: F32) -> F32:
        """Boxes [N, 4] of the input, in samples of the picture: the inverse of `to_input`."""
        offset = np.array([self.left, self.top] * 2, np.float32)
        return np.asarray((boxes - offset) / np.float32(self.scale), np.float32)


def square_tiles(width: int, height: int) -> tuple[Tile, ...]:
    """One tile for an ordinary picture; two overlapping squares, left and right (or top and bottom), for a long one."""
    if width >= WIDE * height:
        side = max(height, -(-width // 4) * 2)
        side = min(side + side % 2, width)
        return Tile(0, 0, side, height), Tile(width - side, 0, side, height)
    if height >= WIDE * width:
        side = max(width, -(-height // 4) * 2)
        side = min(side + side % 2, height)
        return Tile(0, 0, width, side), Tile(0, height - side, width, side)
    return (Tile(0, 0, width, height),)


def crop(planes: Planes, tile: Tile) -> Planes:
    """The tile's samples; a view, nothing is copied."""
    rows, columns = slice(tile.top, tile.top + tile.height), slice(tile.left, tile.left + tile.width)
    half_rows = slice(tile.top // 2, (tile.top + tile.height) // 2)
    half_columns = slice(tile.left // 2, (tile.left + tile.width) // 2)
    return Planes(planes.y[rows, columns], planes.u[half_rows, half_columns], planes.v[half_rows, half_columns])


def scaled(planes: Planes, width: int, height: int) -> Planes:
    """Resized plane by plane: area averaging when shrinking, bilinear when growing."""
    if (planes.width, planes.height) == (width, height):
        return planes
    shrinks = width * height < planes.width * planes.height
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return Planes(
        np.asarray(cv2.resize(planes.y, (width, height), interpolation=how), np.uint8),
        np.asarray(cv2.resize(planes.u, (width // 2, height // 2), interpolation=how), np.uint8),
        np.asarray(cv2.resize(planes.v, (width // 2, height // 2), interpolation=how), np.uint8),
    )


def letterboxed(planes: Planes, box: Letterbox, width: int, height: int, *, luma: int = 112) -> Planes:
    """The picture inside a grey `width` x `height` input, as planes."""
    inside = scaled(planes, box.width, box.height)
    y = np.full((height, width), luma, np.uint8)
    u = np.full((height // 2, width // 2), 128, np.uint8)
    v = u.copy()
    y[box.top : box.top + box.height, box.left : box.left + box.width] = inside.y
    half = slice(box.top // 2, (box.top + box.height) // 2), slice(box.left // 2, (box.left + box.width) // 2)
    u[half], v[half] = inside.u, inside.v
    return Planes(y, u, v)


def bgr_of(planes: Planes) -> U8:
    """BGR u8 [H, W, 3] of limited-range BT.601 planes, as OpenCV's own video reader gives."""
    stacked = np.concatenate([planes.y.reshape(-1), planes.u.reshape(-1), planes.v.reshape(-1)])
    picture = cv2.cvtColor(stacked.reshape(planes.height * 3 // 2, planes.width), cv2.COLOR_YUV2BGR_I420)
    return np.asarray(picture, np.uint8)
