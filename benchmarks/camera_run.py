"""One run of the camera side for `camera.py`, in a process that imports no more than a camera does."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _report
from scene_edge.codec.errors import SceneEdgeError
from scene_edge.codec.h264 import H264Decoder
from scene_edge.codec.latents import LatentEncoder
from scene_edge.codec.planes import Planes
from scene_edge.edge.attention import AttentionFilter
from scene_edge.edge.clip import encode_clip
from scene_edge.edge.encoders import LibavEncoder
from scene_edge.edge.networks import open_networks
from scene_edge.edge.scene import SceneFilter
from scene_edge.edge.semantics import SemanticEncoder
from scene_edge.edge.settings import load_config

STAGES = (
    (SceneFilter, "apply", "scene"),
    (AttentionFilter, "apply", "scene"),
    (LibavEncoder, "encode", "x264"),
    (H264Decoder, "decode", "local decode"),
    (SemanticEncoder, "encode", "semantics"),
    (LatentEncoder, "encode", "(entropy coding)"),
)
"""Class, method, name of what is timed. Entropy coding is a part of semantics."""

WARM_UP = 5
"""First frames that are coded but not counted: engines allocate and choose kernels on them."""


@dataclass
class Spent:
    """Wall and CPU time of each stage, in seconds. CPU is that of all threads of the process."""

    wall: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    cpu: dict[str, float] = field(default_factory=lambda: defaultdict(float))


def _timed(method: Callable[..., Any], stage: str, spent: Spent) -> Callable[..., Any]:
    @wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            return method(*arguments, **named)
        finally:
            spent.wall[stage] += time.perf_counter() - wall
            spent.cpu[stage] += time.process_time() - cpu

    return call


def _stored_frames(path: Path, width: int, height: int) -> Iterator[Planes]:
    size, half = width * height, width * height // 4
    with path.open("rb") as file:
        while len(data := file.read(size + 2 * half)) == size + 2 * half:
            flat = np.frombuffer(data, np.uint8)
            planes = flat[:size], flat[size : size + half], flat[size + half :]
            y, u, v = (
                plane.reshape(rows, columns)
                for plane, rows, columns in zip(
                    planes, (height, height // 2, height // 2), (width, width // 2, width // 2), strict=True
                )
            )
            yield Planes(y, u, v)


def run_once(task: dict[str, Any]) -> dict[str, Any]:
    """One system over the stored frames, in this process: per-frame milliseconds, frames a second, memory."""
    spent = Spent()
    for owner, name, stage in STAGES:
        setattr(owner, name, _timed(getattr(owner, name), stage, spent))
    overrides = [f"scene.enabled={str(task['scene']).lower()}", f"semantics.enabled={str(task['semantics']).lower()}"]
    overrides += [f"scene.weights={task['weights']}", f"video.crf={task['crf']}", f"video.tune={task['tune']}"]
    if task["bundle"] is not None:
        overrides.append(f"scene.bundle={task['bundle']}")
    if task["threads"] is not None:
        overrides += [f"{section}.threads={task['threads']}" for section in ("scene", "semantics")]
    if task["zoo"] is not None:
        overrides.append(f"bundles.zoo={task['zoo']}")
    config = load_config(task["profile"], overrides=overrides, environment={})
    width, height = task["size"]
    networks = open_networks(config, width, height, strict=True)
    frames = 0

    def counted() -> Iterator[Planes]:
        nonlocal frames
        for planes in _stored_frames(Path(task["path"]), width, height):
            if frames == WARM_UP:
                spent.wall.clear()
                spent.cpu.clear()
            yield planes
            frames += 1

    clip = encode_clip(counted(), task["fps"], config, networks=networks, session_id=1)
    frames -= WARM_UP
    whole = [
        stage
        for stage in dict.fromkeys(stage for _, _, stage in STAGES)
        if not stage.startswith("(") and stage in spent.wall
    ]
    wall_s, cpu_s = (sum(times[stage] for stage in whole) for times in (spent.wall, spent.cpu))
    wall_ms, cpu_ms = (
        {stage: 1000 * value / frames for stage, value in times.items()} for times in (spent.wall, spent.cpu)
    )
    return {
        "frames": frames,
        "fps": frames / wall_s,
        "wall_ms": wall_ms | {"total": 1000 * wall_s / frames},
        "cpu_ms": cpu_ms | {"total": 1000 * cpu_s / frames},
        "rss_mb": _report.peak_memory_mb(),
        "kbps": clip.kbps,
        "engines": networks.engines,
        "degraded": list(networks.degraded),
    }


if __name__ == "__main__":
    try:
        print(json.dumps(run_once(json.loads(sys.argv[1]))))
    except SceneEdgeError as error:
        raise SystemExit(str(error)) from error
