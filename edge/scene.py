"""SCENE on the camera: one filter for each frame, whose kernels follow the scene.

About once a second, and at a scene cut, a small network looks at a thumbnail and says how the base kernels are mixed.
Where that has changed, the kernels are folded anew into the filter's plain convolutions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import BundleError, EngineError
from scene_edge.codec.kernels import KernelBank, Kernels
from scene_edge.codec.media import planes_of
from scene_edge.codec.planes import PACKED_CHANNELS, U8, Planes, aligned, pack, unpack
from scene_edge.edge.encoders.libav import frame_of
from scene_edge.inference.session import Session


class SessionOpener(Protocol):
    """How a network is opened, with the board's preferences."""

    def __call__(
        self, bundle: Bundle, graph: str, height: int, width: int, kernels: Kernels | None = None, /
    ) -> Session:
        """`height` and `width` are the packed picture's; other kernels may be written into the graph."""
        ...


REFOLD = 0.02
"""By how much of their own root mean square coefficients must change before the filter's kernels are made anew: what is
less moves no sample by a level. Within a scene they drift by less than that."""

CUT_STRIDE = 16
CUT_LEVELS = 28.0
"""A mean change of the subsampled luma by more than this many levels from one frame to the next is a scene cut."""


class SceneFilter:
    """Planes in, planes of the same size out. Not thread-safe: one thread filters one camera's frames in order.

    `live`: kernels are changed beside the stream, by a thread that compiles the new filter while frames pass the old
    one; the first frames pass the bundle's own, those of the usual scene. Otherwise a frame waits for its kernels, so
    that the same frames always give the same pictures.
    """

    def __init__(
        self, bundle: Bundle, width: int, height: int, open_network: SessionOpener, *, live: bool = False
    ) -> None:
        if bundle.kind != "scene":
            raise BundleError(f"bundle {bundle.name} is no SCENE network", got=bundle.kind, allowed="scene")
        self.bundle = bundle
        self._width, self._height = width, height
        rows, columns = _prior_size(bundle)
        self._prior_size = rows, columns
        self._period_ns = round(_number(bundle, "prior_period_ms") * 1e6)
        self._prior = open_network(bundle, "prior", rows // 4, columns // 4)
        self._bank = KernelBank(bundle)
        self._open_filter = partial(open_network, bundle, "filter", aligned(height) // 4, aligned(width) // 4)
        self._filter = self._open_filter()
        self._folding = _Folding() if live else None
        self._folded: NDArray[np.float32] | None = None
        self._looked = False
        self._refreshed_ns = 0
        self._before: U8 | None = None
        self.refreshes = self.folds = 0

    @property
    def engine(self) -> str:
        return engine_name(self._filter)

    def apply(self, planes: Planes, capture_ns: int) -> Planes:
        """Filter one frame. `capture_ns` decides when the scene is looked at again. Raises EngineError."""
        if (planes.width, planes.height) != (self._width, self._height):
            raise EngineError(
                "picture of another size than the filter's",
                got=f"{planes.width}x{planes.height}",
                allowed=f"{self._width}x{self._height}",
            )
        self._follow_scene(planes, capture_ns)
        out = self._filter.run({"x": pack(planes)[None]})["y"]
        if out.dtype != np.uint8 or out.ndim != 4 or out.shape[-1] != PACKED_CHANNELS:
            raise EngineError("the filter's output is no picture", got=f"{out.dtype} {out.shape}")
        return unpack(out[0], self._width, self._height)

    def reset(self) -> None:
        """Forget the scene: it is looked at again with the next frame."""
        self._looked, self._before = False, None

    def close(self) -> None:
        if self._folding is not None and (late := self._folding.wait()) is not None:
            late.close()
        self._prior.close()
        self._filter.close()

    def _follow_scene(self, planes: Planes, capture_ns: int) -> None:
        if self._folding is not None and (ready := self._folding.ready()) is not None:
            self._swap(ready)
        sampled = planes.y[::CUT_STRIDE, ::CUT_STRIDE]
        before, self._before = self._before, sampled
        cut = before is None or float(np.abs(sampled.astype(np.int16) - before).mean()) > CUT_LEVELS
        due = not 0 <= capture_ns - self._refreshed_ns < self._period_ns
        if self._looked and not cut and not due:
            return
        if self._folding is not None and self._folding.busy:
            return  # one at a time; what the scene is by then is looked at afterwards
        found = self._prior.run({"thumb": thumbnail(planes, *self._prior_size)[None]})["coefficients"]
        coefficients = found.astype(np.float32)
        self._looked, self._refreshed_ns = True, capture_ns
        self.refreshes += 1
        if self._folded is not None and _change(coefficients, self._folded) < REFOLD:
            return
        self._folded = coefficients
        try:
            kernels = self._bank.assemble(coefficients)
        except BundleError as error:
            raise EngineError("the scene's coefficients are of no use", got=str(error)) from error
        if self._folding is None:
            self._swap(self._open_filter(kernels))
        else:
            self._folding.start(lambda: self._open_filter(kernels))

    def _swap(self, folded: Session) -> None:
        self._filter.close()
        self._filter = folded
        self.folds += 1


class _Folding:
    """A filter being opened by a thread of its own."""

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._result: Session | Exception | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None

    def start(self, opened: Callable[[], Session]) -> None:
        def work() -> None:
            try:
                self._result = opened()
            except Exception as error:  # told to the thread that filters: it knows what a failed filter means
                self._result = error

        self._thread = Thread(target=work, name="scene-fold", daemon=True)
        self._thread.start()

    def ready(self) -> Session | None:
        """The new filter, once. Raises what opening it raised."""
        if self._thread is None or self._thread.is_alive():
            return None
        self._thread.join()
        self._thread, result, self._result = None, self._result, None
        if isinstance(result, Exception):
            raise result
        return result

    def wait(self) -> Session | None:
        """The new filter that nobody will use; what failed is of no interest any more."""
        if self._thread is None:
            return None
        self._thread.join()
        return self._result if not isinstance(self._result, Exception) else None


def _change(now: NDArray[np.float32], before: NDArray[np.float32]) -> float:
    """Largest change of a coefficient, relative to the root mean square of all."""
    return float(np.abs(now - before).max() / max(1e-6, float(np.sqrt(np.mean(np.square(before))))))


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
