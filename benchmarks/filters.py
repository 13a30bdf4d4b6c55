"""Plain filters before the encoder, by FFmpeg's own program: what SCENE is held against."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from types import MappingProxyType

import numpy as np

from scene_edge.codec.errors import EngineError
from scene_edge.codec.planes import Planes

FILTERS = MappingProxyType(
    {
        "sharpen": "unsharp=lx=5:ly=5:la=0.2:cx=5:cy=5:ca=0",
        "denoise": "hqdn3d=1:0.75:1.5:1.1",
    }
)
"""Name -> FFmpeg's filter: weak ones. Sharpening raises x264's rate even so, which BD-rates count."""


def filtered(pictures: Sequence[Planes], graph: str) -> list[Planes]:
    """Pictures after a filter of FFmpeg's, as many and as large. Raises EngineError where it fails."""
    import imageio_ffmpeg

    width, height = pictures[0].width, pictures[0].height
    raw = ["-f", "rawvideo", "-pix_fmt", "yuv420p"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *raw, "-s", f"{width}x{height}", "-i", "-"]
    command += ["-vf", graph, "-threads", "1", *raw, "-"]
    given = b"".join(plane.tobytes() for picture in pictures for plane in (picture.y, picture.u, picture.v))
    done = subprocess.run(command, input=given, capture_output=True, check=False)
    if done.returncode or len(done.stdout) != len(given):
        raise EngineError(f"FFmpeg did not filter with {graph}", got=done.stderr.decode(errors="replace")[-300:])
    luma, half = width * height, (height // 2, width // 2)
    rows = np.frombuffer(done.stdout, np.uint8).reshape(len(pictures), -1)
    return [
        Planes(row[:luma].reshape(height, width), *(part.reshape(half) for part in np.split(row[luma:], 2)))
        for row in rows
    ]
