"""What bench's rows mean: which engine to take, which stage limits the camera, and on what machine that holds."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scene_edge.edge.bench import is_rendered
from scene_edge.edge.board import board_model
from scene_edge.edge.choice import Chosen
from scene_edge.edge.config import CameraConfig, NetworkConfig
from scene_edge.inference.session import available_engines
from scene_edge.inference.stages import CAMERA_STAGES, StageRow


@dataclass(frozen=True, slots=True)
class Limit:
    """The slowest stage of the camera. `fps`: what it lets through; `in_turn_fps`: all stages one after the other."""

    stage: str
    fps: float
    in_turn_fps: float
    sentence: str

    def as_json(self) -> dict[str, Any]:
        return {"stage": self.stage, "fps": self.fps, "in_turn_fps": self.in_turn_fps, "sentence": self.sentence}


def in_use(rows: Sequence[StageRow], stage: str, network: NetworkConfig, chosen: Chosen | None) -> StageRow | None:
    """The row of the engine that the camera runs `stage` on: the chosen one, else the first in the settings' order."""
    ran = [row for row in rows if row.stage == stage and row.ms_p50 is not None]
    order = network.named_engines

    def rank(row: StageRow) -> tuple[bool, int, bool]:
        is_chosen = chosen is not None and (row.engine, row.precision) == (chosen.engine, chosen.precision)
        place = order.index(row.engine) if row.engine in order else len(order)
        return not is_chosen, place, row.precision != network.precision

    return min(ran, key=rank, default=None)


def limit_of(rows: Sequence[StageRow], config: CameraConfig, chosen: dict[str, Chosen | None]) -> Limit | None:
    """None where no stage ran. A rendered source's drawing is left out: no camera does it."""
    networks = {"scene": config.scene, "smc_encode": config.semantics}
    used: list[StageRow] = []
    for stage in CAMERA_STAGES:
        if stage == "capture" and is_rendered(config):
            continue
        if stage in networks:
            row = in_use(rows, stage, networks[stage], chosen.get(stage))
        else:
            row = next((row for row in rows if row.stage == stage and row.fps is not None), None)
        if row is not None and row.fps:
            used.append(row)
    if not used:
        return None
    slowest = min(used, key=lambda row: row.fps or 0.0)
    fps = slowest.fps or 0.0
    in_turn = 1 / sum(1 / row.fps for row in used if row.fps)
    where = f" on {slowest.engine} {slowest.precision}" if slowest.precision else ""
    missing = [row.stage for row in rows if row.stage in CAMERA_STAGES and row.ms_p50 is None]
    missing = [stage for stage in dict.fromkeys(missing) if stage not in {row.stage for row in used}]
    sentence = (
        f"{slowest.stage} ({slowest.model}{where}) limits the camera, at {fps:.1f} frames/s with a core for each "
        f"stage; one after the other the stages let {in_turn:.1f} frames/s through"
    )
    if missing:
        sentence += f", without {', '.join(missing)}, which did not run"
    return Limit(slowest.stage, round(fps, 2), round(in_turn, 2), sentence + ".")


def machine(config: CameraConfig) -> dict[str, Any]:
    """What the figures hold for."""
    return {
        "board": board_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "load_1min": round(os.getloadavg()[0], 2),
        "profile": config.profile,
        "engines": available_engines(),
    }
