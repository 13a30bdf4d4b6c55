"""The seam of a filter before the encoder, and what both kinds of SCENE share: scene cuts, work beside the stream."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import Generic, Protocol, TypeVar

import numpy as np

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import EngineError
from scene_edge.codec.kernels import Kernels
from scene_edge.codec.planes import U8, Planes
from scene_edge.inference.session import Session

T = TypeVar("T")

CUT_STRIDE = 16
CUT_LEVELS = 28.0
"""A mean change of the subsampled luma by more than this many levels from one frame to the next is a scene cut."""


class SessionOpener(Protocol):
    """How a network is opened, with the board's preferences."""

    def __call__(
        self, bundle: Bundle, graph: str, height: int, width: int, kernels: Kernels | None = None, /
    ) -> Session:
        """`height` and `width` are the packed picture's; other kernels may be written into the graph."""
        ...


class PreFilter(Protocol):
    """A picture in, one of the same size out, in order; one thread filters one camera's frames."""

    bundle: Bundle

    @property
    def engine(self) -> str:
        """How the engine is called in the ledger and on the page."""
        ...

    @property
    def strength(self) -> float:
        """How much of the filter is let through, 0..1: 0 where frames pass as they are."""
        ...

    def apply(self, planes: Planes, capture_ns: int) -> Planes:
        """Filter one frame. Raises EngineError."""
        ...

    def coded_with(self, keyframe_qp: float | None) -> None:
        """The mean quantiser of a keyframe, as far as it is known; any thread may tell it."""
        ...

    def reset(self) -> None:
        """Another stream begins."""
        ...

    def close(self) -> None: ...


class CutDetector:
    """Tells a scene cut by the subsampled luma; the first frame is one."""

    def __init__(self) -> None:
        self._before: U8 | None = None

    def is_cut(self, planes: Planes) -> bool:
        sampled = planes.y[::CUT_STRIDE, ::CUT_STRIDE]
        before, self._before = self._before, sampled
        return before is None or float(np.abs(sampled.astype(np.int16) - before).mean()) > CUT_LEVELS

    def reset(self) -> None:
        self._before = None


class Beside(Generic[T]):
    """Something being prepared by a thread of its own, one at a time."""

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._result: T | Exception | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None

    def start(self, prepared: Callable[[], T]) -> None:
        def work() -> None:
            try:
                self._result = prepared()
            except Exception as error:  # told to the thread that filters: it knows what a failed filter means
                self._result = error

        self._thread = Thread(target=work, name="scene-beside", daemon=True)
        self._thread.start()

    def ready(self) -> T | None:
        """What was prepared, once. Raises EngineError for whatever went wrong."""
        if self._thread is None or self._thread.is_alive():
            return None
        self._thread.join()
        self._thread, result, self._result = None, self._result, None
        if isinstance(result, Exception):
            raise EngineError("the filter cannot follow its scene", got=str(result)) from result
        return result

    def forget(self) -> T | None:
        """Wait for what nobody will use, and hand it over to be closed; None where nothing came of it."""
        if self._thread is not None:
            self._thread.join()
        result = self._result
        self._thread = self._result = None
        return None if isinstance(result, Exception) else result


def check_size(planes: Planes, size: tuple[int, int]) -> None:
    """Raises EngineError for a picture that is not of the filter's size, (width, height)."""
    if (planes.width, planes.height) != size:
        raise EngineError(
            "picture of another size than the filter's",
            got=f"{planes.width}x{planes.height}",
            allowed=f"{size[0]}x{size[1]}",
        )


def engine_name(session: Session) -> str:
    """How an engine is called in the ledger and on the page: "openvino int8 CPU"."""
    return f"{session.engine} {session.precision} {session.device}".strip()
