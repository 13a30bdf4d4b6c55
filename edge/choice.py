"""Which engine and precision run a network fastest on this very board, as `scene-edge bench` found it and left it here.

Only what reproduced its bundle's golden output is eligible: fast and wrong is no choice. A verdict holds for one
bundle, picture size and number of threads, and for as long as board, drivers and engine versions are what they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.planes import aligned
from scene_edge.edge.board import fingerprint
from scene_edge.edge.cachefile import CacheFile, cache_path
from scene_edge.edge.config import CameraConfig, NetworkConfig
from scene_edge.edge.sources.base import scaled_size
from scene_edge.inference.seam import DEFAULT_THREADS
from scene_edge.inference.stages import StageRow

AUTO = "auto"

MARGIN = 1.05

_RUNTIMES = ("openvino", "onnxruntime", "onnxruntime-gpu", "ai-edge-litert", "tflite-runtime", "tensorrt")


@dataclass(frozen=True, slots=True)
class Chosen:
    """The fastest of what was measured, and why: a sentence for `doctor` and for people."""

    engine: str
    precision: str
    ms: float
    why: str


def choose(rows: Sequence[StageRow], order: Sequence[str]) -> Chosen | None:
    """The fastest eligible row of one network; None where none ran and reproduced its golden output.

    Among those within MARGIN of the fastest the first engine of `order` is taken: so little may be chance.
    """
    ran = sorted((row for row in rows if row.ms_p50 is not None), key=_ms)
    eligible = [row for row in ran if row.proven]
    if not eligible:
        return None
    near = [row for row in eligible if _ms(row) <= MARGIN * _ms(eligible[0])]
    best = min(near, key=lambda row: order.index(row.engine) if row.engine in order else len(order))
    others = [f"{_name(row)} {_ms(row):.1f}" for row in eligible if row is not best]
    why = f"{_name(best)} takes {_ms(best):.1f} ms a run"
    why += f", {', '.join(others)}" if others else ", and nothing else is eligible"
    if best is not eligible[0]:
        why += "; so close, the order of the settings decides"
    unproven = [f"{_name(row)} {_ms(row):.1f}" for row in ran if not row.proven]
    if unproven:
        why += f"; without a golden run at this size, so not eligible: {', '.join(unproven)}"
    measured_on = datetime.now(timezone.utc).date().isoformat()
    return Chosen(best.engine, best.precision or "", _ms(best), f"{why} ({measured_on})")


class ChoiceCache:
    """Verdicts of `bench` in a small file; see cachefile.py for when they are forgotten."""

    def __init__(self, path: Path | None = None, marks: dict[str, str] | None = None) -> None:
        self._file = CacheFile(path or cache_path("engines.json"), engine_marks() if marks is None else marks)

    def get(self, bundle: Bundle, width: int, height: int, threads: int | None) -> Chosen | None:
        value = self._file.get(_key(bundle, width, height, threads))
        if not isinstance(value, dict):
            return None
        try:
            return Chosen(str(value["engine"]), str(value["precision"]), float(value["ms"]), str(value["why"]))
        except (KeyError, TypeError, ValueError):
            return None

    def put(self, bundle: Bundle, width: int, height: int, threads: int | None, chosen: Chosen) -> bool:
        """False if it could not be written."""
        value = {"engine": chosen.engine, "precision": chosen.precision, "ms": chosen.ms, "why": chosen.why}
        return self._file.put(_key(bundle, width, height, threads), value)


def choice_for(network: NetworkConfig, bundle: Bundle, width: int, height: int) -> Chosen | None:
    """What the settings let `bench` decide: None without a verdict, or where they name no `auto`."""
    if network.engines[0] != AUTO:
        return None
    return ChoiceCache().get(bundle, width, height, network.threads)


def usual_size(config: CameraConfig) -> tuple[int, int]:
    """The size at which this camera works if its source gives what it is asked for: what `bench` measures at."""
    width, height, _ = scaled_size(config.source.width, config.source.height, config.video.width)
    return width, height


def engine_marks() -> dict[str, str]:
    """The machine's fingerprint and the engines' versions. Imports no engine."""
    marks = fingerprint()
    for package in _RUNTIMES:
        try:
            marks[package] = version(package)
        except PackageNotFoundError:
            marks[package] = ""
    return marks


def _key(bundle: Bundle, width: int, height: int, threads: int | None) -> tuple[str | int, ...]:
    """Sizes that are padded to the same grid cost the same."""
    return bundle.name, bundle.digest.hex(), aligned(width), aligned(height), threads or DEFAULT_THREADS


def _ms(row: StageRow) -> float:
    return row.ms_p50 or 0.0


def _name(row: StageRow) -> str:
    return f"{row.engine} {row.precision}"
