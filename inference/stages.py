"""The stages of a frame's way as `scene-edge bench` lists them, and one row of that list. Runs nothing itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np

from scene_edge.codec.bundle import Bundle
from scene_edge.inference.artifacts import artifacts_of

CAMERA_STAGES = ("capture", "scene", "h264_encode", "h264_decode", "smc_encode", "entropy", "publish")
SERVER_STAGES = ("smc_decode", "detect", "track", "act")
STAGES = (*CAMERA_STAGES, *SERVER_STAGES)
"""In the order in which a frame meets them."""

WARM_UP = 2
"""First calls that are not counted: engines allocate and choose kernels on them."""

T = TypeVar("T")

Advance = Callable[[str], None]
"""Called once a measurement is done, with what was measured: moves a progress bar."""


@dataclass(frozen=True, slots=True)
class StageRow:
    """One stage on one engine at one size. Times are of single calls in ms, None where the stage did not run.

    `fps`: frames a second that the stage alone would let through, whatever share of the frames it works on.
    `peak_ratio`: `ms_p50` over `roofline_ms`, the time that the silicon needs at least; None where there is no network.
    `reason`: why the stage did not run, or why its ratio is not known; empty otherwise.
    """

    stage: str
    model: str
    engine: str
    precision: str | None
    width: int
    height: int
    ms_p50: float | None = None
    ms_p95: float | None = None
    fps: float | None = None
    peak_ratio: float | None = None
    roofline_ms: float | None = None
    proven: bool = False
    """The network reproduced its bundle's golden output here."""
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def candidates(bundle: Bundle, graph: str, engines: Sequence[str]) -> list[tuple[str, str]]:
    """(engine, precision) of what runs `graph` among `engines`, in their order, INT8 first.

    Raises BundleError where there is no such graph.
    """
    found = sorted(
        {(item.precision != "int8", item.precision, item.engine) for item in artifacts_of(bundle.graph(graph))}
    )
    return [(engine, precision) for wanted in engines for _, precision, engine in found if engine == wanted]


def measured(row: StageRow, times_ms: Sequence[float], frames: float, roofline_ms: float | None = None) -> StageRow:
    """The row with its figures: `times_ms` of calls that together served `frames` frames.

    >>> row = measured(StageRow("scene", "scene-s", "openvino", "int8", 960, 540), [10.0, 30.0], 8, 5.0)
    >>> row.ms_p50, row.fps, row.peak_ratio
    (20.0, 200.0, 4.0)
    """
    if not times_ms:
        return without(row, "no call was measured: more frames are needed")
    p50, p95 = (float(np.percentile(times_ms, share)) for share in (50, 95))
    total_s = sum(times_ms) / 1000
    return replace(
        row,
        ms_p50=round(p50, 3),
        ms_p95=round(p95, 3),
        fps=round(frames / total_s, 2) if total_s else None,
        peak_ratio=round(p50 / roofline_ms, 2) if roofline_ms else None,
        roofline_ms=round(roofline_ms, 3) if roofline_ms else None,
    )


def without(row: StageRow, reason: str) -> StageRow:
    """The row of a stage that did not run."""
    return StageRow(row.stage, row.model, row.engine, row.precision, row.width, row.height, reason=reason)


class Stopwatch:
    """Collects the time of single calls, in ms."""

    def __init__(self) -> None:
        self.times_ms: list[float] = []

    def time(self, call: Callable[..., T], *arguments: Any) -> T:
        started_ns = time.perf_counter_ns()
        result = call(*arguments)
        self.times_ms.append((time.perf_counter_ns() - started_ns) / 1e6)
        return result
