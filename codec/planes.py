"""YUV 4:2:0 pictures as three u8 planes, and the packed form in which networks take and give them.

A *packed* picture is one u8 array [H/4, W/4, 24]: channels 0..15 are the luma samples of a 4x4 cell in raster
order (dy * 4 + dx), 16..19 the Cb samples of its 2x2 cell, 20..23 the Cr samples. No colour is converted and no
chroma resampled; H and W are the picture's size rounded up to a multiple of ALIGN by repeating the border.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scene_edge.codec.errors import FormatError

U8: TypeAlias = NDArray[np.uint8]

ALIGN = 32
"""Network pictures are padded to a multiple of this many luma samples: the /4 grid can be halved three times."""

MAX_SIDE = 8192
"""Largest width or height accepted anywhere, in luma samples."""

PACKED_CHANNELS = 24


@dataclass(frozen=True, slots=True)
class Planes:
    """One 8-bit YUV 4:2:0 picture of even size: y [H, W], u and v [H/2, W/2], all u8, limited range as in H.264."""

    y: U8
    u: U8
    v: U8

    def __post_init__(self) -> None:
        height, width = self.y.shape if self.y.ndim == 2 else (0, 0)
        if not (2 <= height <= MAX_SIDE and 2 <= width <= MAX_SIDE) or height % 2 or width % 2:
            raise FormatError(
                "a 4:2:0 picture must have even sides",
                got=f"luma of shape {self.y.shape}",
                allowed=f"[H, W], each even and 2..{MAX_SIDE}",
            )
        half = (height // 2, width // 2)
        for name, plane in (("u", self.u), ("v", self.v)):
            if plane.shape != half:
                raise FormatError(f"plane {name} does not fit the luma", got=plane.shape, allowed=half)
        for name, plane in (("y", self.y), ("u", self.u), ("v", self.v)):
            if plane.dtype != np.uint8:
                raise FormatError(f"plane {name} must be 8 bit", got=plane.dtype, allowed="uint8")

    @property
    def width(self) -> int:
        return int(self.y.shape[1])

    @property
    def height(self) -> int:
        return int(self.y.shape[0])


def within(width: int, height: int, most: int, least: int = 2) -> tuple[int, int]:
    """Width and height of a picture in its shape with at most `most` samples on the longer side: never enlarged, even,
    no side below `least`."""
    scale = min(1.0, most / max(width, height))
    return max(least, round(width * scale / 2) * 2), max(least, round(height * scale / 2) * 2)


def aligned(size: int) -> int:
    """`size` rounded up to a multiple of ALIGN."""
    return -(-size // ALIGN) * ALIGN


def _pad(plane: U8, height: int, width: int) -> U8:
    """The plane with its last row and column repeated, contiguous."""
    rows, columns = plane.shape
    if (rows, columns) == (height, width):
        return np.ascontiguousarray(plane)
    padded: U8 = np.empty((height, width), np.uint8)
    padded[:rows, :columns] = plane
    padded[:rows, columns:] = plane[:, -1:]
    padded[rows:] = padded[rows - 1]
    return padded


def _words(packed: U8) -> Iterator[tuple[NDArray[Any], int, type[np.unsignedinteger[Any]], int]]:
    """For Y, U and V: the packed picture as words of one row of a cell, the place of the cell's first row among them,
    the type of a word and how many rows a cell has.

    A cell's row of 4 luma or 2 chroma samples lies together in a plane and in the packed picture: moved as one word, it
    takes a tenth of the time that its bytes take one by one. Nobody looks into a word, so its byte order is no matter.
    """
    quads, pairs = packed.view(np.uint32), packed.view(np.uint16)
    yield quads, 0, np.uint32, 4
    yield pairs, 8, np.uint16, 2
    yield pairs, 10, np.uint16, 2


def pack(planes: Planes) -> U8:
    """Planes -> packed u8 [aligned(H)/4, aligned(W)/4, 24]."""
    height, width = aligned(planes.height), aligned(planes.width)
    packed: U8 = np.empty((height // 4, width // 4, PACKED_CHANNELS), np.uint8)
    for plane, (words, place, word, rows) in zip((planes.y, planes.u, planes.v), _words(packed), strict=True):
        lines = _pad(plane, height * rows // 4, width * rows // 4).view(word)
        for row in range(rows):
            words[..., place + row] = lines[row::rows]
    return packed


def unpack(packed: U8, width: int, height: int) -> Planes:
    """Packed u8 [h, w, 24] -> the top left `width` x `height` of it as planes. Raises FormatError on a misfit."""
    if packed.ndim != 3 or packed.shape[2] != PACKED_CHANNELS or packed.dtype != np.uint8:
        raise FormatError("not a packed picture", got=f"{packed.dtype} {packed.shape}", allowed="uint8 [h, w, 24]")
    if packed.shape[0] * 4 < height or packed.shape[1] * 4 < width:
        raise FormatError("packed picture is too small", got=packed.shape, allowed=f"at least {height}x{width} luma")
    found = []
    for words, place, word, rows in _words(np.ascontiguousarray(packed)):
        lines = np.empty((packed.shape[0] * rows, packed.shape[1]), word)
        for row in range(rows):
            lines[row::rows] = words[..., place + row]
        found.append(np.ascontiguousarray(lines.view(np.uint8)[: height * rows // 4, : width * rows // 4]))
    return Planes(*found)
