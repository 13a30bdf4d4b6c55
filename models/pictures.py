"""Planes resized, padded and flattened for training and its caches. What runs on camera and server lives with them."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from scene_edge.codec.planes import Planes

U8 = NDArray[np.uint8]


def resize_plane(plane: U8, width: int, height: int) -> U8:
    """Area averaging when shrinking, bilinear when growing."""
    shrinks = width * height < plane.shape[0] * plane.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(plane, (width, height), interpolation=how), np.uint8)


def resize(planes: Planes, width: int, height: int) -> Planes:
    if (width, height) == (planes.width, planes.height):
        return planes
    half = (width // 2, height // 2)
    return Planes(resize_plane(planes.y, width, height), resize_plane(planes.u, *half), resize_plane(planes.v, *half))


def letterbox(planes: Planes, width: int, height: int) -> tuple[Planes, float]:
    """The picture scaled into the top left of a grey `width` x `height` one, and its scale."""
    scale = min(width / planes.width, height / planes.height)
    inside = resize(planes, round(planes.width * scale / 2) * 2, round(planes.height * scale / 2) * 2)
    y = np.full((height, width), 112, np.uint8)
    u = np.full((height // 2, width // 2), 128, np.uint8)
    v = u.copy()
    for target, plane in ((y, inside.y), (u, inside.u), (v, inside.v)):
        target[: plane.shape[0], : plane.shape[1]] = plane
    return Planes(y, u, v), scale


def to_i420(planes: Planes) -> U8:
    """u8 [H * 3 / 2, W]: luma, then the chroma planes flattened into rows of that width. H is a multiple of four."""
    parts = [planes.y.ravel(), planes.u.ravel(), planes.v.ravel()]
    return np.concatenate(parts).reshape(planes.height * 3 // 2, planes.width)


def from_i420(picture: U8) -> Planes:
    height, width = picture.shape[0] * 2 // 3, picture.shape[1]
    chroma = picture[height:].reshape(2, height // 2, width // 2)
    return Planes(picture[:height], chroma[0], chroma[1])
