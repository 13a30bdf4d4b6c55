"""SCENE on the camera: one filter for each frame, steered by an embedding that is refreshed about once a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import BundleError, EngineError
from scene_edge.codec.media import planes_of
from scene_edge.codec.planes import PACKED_CHANNELS, U8, Planes, aligned, pack, unpack
from scene_edge.edge.encoders.libav import frame_of
from scene_edge.inference.session import Session

SessionOpener: TypeAlias = Callable[[Bundle, str, int, int], Session]
"""(bundle, graph, packed height, packed width) -> Session: how a network is opened, with the board's preferences."""

CUT_STRIDE = 16
CUT_LEVELS = 28.0
"""A mean change of the subsampled luma by more than this many levels from one frame to the next is a scene cut."""


class SceneFilter:
    """Planes in, planes of the same size out. Not thread-safe: one thread filters one camera's frames in order."""

    def __init__(self, bundle: Bundle, width: int, height: int, open_network: SessionOpener) -> None:
        if bundle.kind != "scene":
            raise BundleError(f"bundle {bundle.name} is no SCENE network", got=bundle.kind, allowed="scene")
        self.bundle = bundle
        self._width, self._height = width, height
        rows, columns = _prior_size(bundle)
        self._prior_size = rows, columns
        self._period_ns = round(_number(bundle, "prior_period_ms") * 1e6)
        self._prior = open_network(bundle, "prior", rows // 4, columns // 4)
        self._filter = open_network(bundle, "filter", aligned(height) // 4, aligned(width) // 4)
        self._coefficients: NDArray[np.generic] | None = None
        self._refreshed_ns = 0
        self._before: U8 | None = None
        self.refreshes = 0

    @property
    def engine(self) -> str:
        return engine_name(self._filter)

    def apply(self, planes: Planes, capture_ns: int) -> Planes:
        """Filter one frame. `capture_ns` decides when the embedding is due. Raises EngineError."""
        if (planes.width, planes.height) != (self._width, self._height):
            raise EngineError(
                "picture of another size than the filter's",
                got=f"{planes.width}x{planes.height}",
                allowed=f"{self._width}x{self._height}",
            )
        coefficients = self._current_coefficients(planes, capture_ns)
        out = self._filter.run({"x": pack(planes)[None], "coefficients": coefficients})["y"]
        if out.dtype != np.uint8 or out.ndim != 4 or out.shape[-1] != PACKED_CHANNELS:
            raise EngineError("the filter's output is no picture", got=f"{out.dtype} {out.shape}")
        return unpack(out[0], self._width, self._height)

    def reset(self) -> None:
        """Forget the scene: the next frame brings a new embedding."""
        self._coefficients = self._before = None

    def close(self) -> None:
        self._prior.close()
        self._filter.close()

    def _current_coefficients(self, planes: Planes, capture_ns: int) -> NDArray[np.generic]:
        sampled = planes.y[::CUT_STRIDE, ::CUT_STRIDE]
        before, self._before = self._before, sampled
        cut = before is None or float(np.abs(sampled.astype(np.int16) - before).mean()) > CUT_LEVELS
        due = not 0 <= capture_ns - self._refreshed_ns < self._period_ns
        if self._coefficients is None or cut or due:
            self._coefficients = self._prior.run({"thumb": thumbnail(planes, *self._prior_size)[None]})["coefficients"]
            self._refreshed_ns = capture_ns
            self.refreshes += 1
        return self._coefficients


def thumbnail(planes: Planes, rows: int, columns: int) -> U8:
    """The whole picture scaled to rows x columns luma samples, packed without padding: u8 [rows/4, columns/4, 24]."""
    small = planes_of(frame_of(planes), columns, rows)
    # pack() pads to ALIGN below and to the right; the network wants the picture alone.
    return np.ascontiguousarray(pack(small)[: rows // 4, : columns // 4])


def engine_name(session: Session) -> str:
    """How an engine is called in the ledger and on the page: "openvino int8 CPU"."""
    return f"{session.engine} {session.precision} {session.device}".strip()


def _prior_size(bundle: Bundle) -> tuple[int, int]:
    value: Any = bundle.parameters.get("prior_size")
    if not (isinstance(value, list) and len(value) == 2 and all(isinstance(side, int) for side in value)):
        raise BundleError(f"bundle {bundle.name}: prior_size must be [rows, columns]", got=str(value))
    if not all(8 <= side <= 1024 and side % 4 == 0 for side in value):
        raise BundleError(f"bundle {bundle.name}: prior_size out of range", got=str(value), allowed="8..1024, by 4")
    return value[0], value[1]


def _number(bundle: Bundle, name: str) -> float:
    value: Any = bundle.parameters.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 1 <= value <= 1e6:
        raise BundleError(f"bundle {bundle.name}: {name} must be a number", got=str(value), allowed="1..1e6")
    return float(value)
