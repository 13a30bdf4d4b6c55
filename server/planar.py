"""4:2:0 planes as one array, the form in which FFmpeg's encoders take them."""

from __future__ import annotations

import numpy as np

from scene_edge.codec.planes import U8, Planes


def i420(planes: Planes) -> U8:
    """[H * 3/2, W]: luma, then Cb and Cr as they lie in memory.

    >>> i420(Planes(np.zeros((4, 6), np.uint8), np.ones((2, 3), np.uint8), np.ones((2, 3), np.uint8))).shape
    (6, 6)
    """
    chroma = np.concatenate((planes.u.ravel(), planes.v.ravel())).reshape(planes.height // 2, planes.width)
    return np.concatenate((planes.y, chroma))
