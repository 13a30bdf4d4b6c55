"""SCENE on the camera: one filter for each frame, whose kernels follow the scene.

About once a second, and at a scene cut, a small network looks at a thumbnail and says how the base kernels are mixed.
Where that has changed, the kernels are folded anew into the filter's plain convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import BundleError, EngineError
from scene_edge.codec.h264 import KEYFRAME_FINER
from scene_edge.codec.kernels import F32, KernelBank
from scene_edge.codec.media import reduced
from scene_edge.codec.planes import PACKED_CHANNELS, U8, Planes, aligned, pack, unpack
from scene_edge.edge.prefilter import Beside, CutDetector, SessionOpener, check_size, engine_name
from scene_edge.edge.scene_guard import WEAKEST, Pair, RateGuard
from scene_edge.inference.session import Session

REFOLD = 0.02
"""By how much of their own root mean square coefficients must change before the filter's kernels are made anew: what is
less moves samples by a fraction of what rounding does (`benchmarks/scene_kernels.py` has both)."""

REQUANTISED = 1.5
"""By how much the encoder's quantiser must change before the kernels follow it."""


class _Setting(NamedTuple):
    """What a filter was folded for. Strength 0 is no filter; the one at hand is then the weakest, for probes."""

    coefficients: F32
    strength: float
    crf: float | None


class _Prepared(NamedTuple):
    setting: _Setting
    filter: Session | None
    """None: the one at hand will do."""


class SceneFilter:
    """Planes in, planes of the same size out: a `PreFilter`. Not thread-safe: one thread filters one camera's frames.

    `live`: kernels are changed beside the stream, by a thread that compiles the new filter while frames pass the old
    one; until the first is ready, frames stay as they are. Otherwise a frame waits for its kernels, so that the same
    frames always give the same pictures. `guard` says how strong the filter may be; without one it is never weakened.
    `crf` is what frames will be coded with; where the encoder chooses it, `coded_with` tells.
    """

    def __init__(
        self,
        bundle: Bundle,
        width: int,
        height: int,
        open_network: SessionOpener,
        *,
        live: bool = False,
        guard: RateGuard | None = None,
        crf: float | None = None,
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
        self._beside: Beside[_Prepared] | None = Beside() if live else None
        self._guard = guard
        self._crf, self._encoder_chooses = crf, crf is None
        self._setting: _Setting | None = None
        self._waiting: _Prepared | None = None
        self._frames = 0
        self._refreshed_ns: int | None = None
        self._cuts = CutDetector()
        self.refreshes = self.folds = 0

    @property
    def engine(self) -> str:
        return engine_name(self._filter)

    @property
    def strength(self) -> float:
        """By what the filter's change of a picture is multiplied: 0 where frames pass as they are."""
        return self._setting.strength if self._setting is not None else 0.0

    def apply(self, planes: Planes, capture_ns: int) -> Planes:
        """Filter one frame. `capture_ns` decides when the scene is looked at again. Raises EngineError."""
        check_size(planes, (self._width, self._height))
        if self._beside is not None and (ready := self._beside.ready()) is not None:
            self._waiting = ready
        self._follow_scene(planes, capture_ns)
        if self._waiting is not None and self._may_change:
            self._take(self._waiting)
        self._frames += 1
        if self._setting is None:
            return planes
        probed = self._guard is not None and not self._is_busy and self._guard.due(capture_ns)
        strength = self._setting.strength
        if not probed and not strength:
            return planes
        filtered = self._filtered(planes)
        if self._guard is not None and probed and (pairs := self._guard.take(planes, filtered, capture_ns)):
            self._prepare(self._setting.coefficients, pairs)
        return filtered if strength else planes

    def coded_with(self, keyframe_qp: float | None) -> None:
        """The mean quantiser of a keyframe, as far as it is known; any thread may tell it.

        Where the encoder chooses it, the kernels follow when the scene is next looked at.
        """
        if self._encoder_chooses and keyframe_qp is not None:
            self._crf = keyframe_qp + KEYFRAME_FINER

    def reset(self) -> None:
        """Forget the scene: it is looked at again with the next frame, and the kernels are made anew."""
        self._refreshed_ns = self._setting = None
        self._cuts.reset()
        self._frames = 0
        self._forget()
        if self._guard is not None:
            self._guard.reset()

    def close(self) -> None:
        self._forget()
        self._prior.close()
        self._filter.close()

    def _forget(self) -> None:
        unused = self._beside.forget() if self._beside is not None else None
        for prepared in (unused, self._waiting):
            if prepared is not None and prepared.filter is not None:
                prepared.filter.close()
        self._waiting = None

    @property
    def _may_change(self) -> bool:
        """A change is coded: it is made at a keyframe."""
        return self._guard is None or self._frames % self._guard.gop == 0

    @property
    def _is_busy(self) -> bool:
        """Something is being prepared, or waits for the next keyframe."""
        return self._waiting is not None or (self._beside is not None and self._beside.busy)

    def _filtered(self, planes: Planes) -> Planes:
        out = self._filter.run({"x": pack(planes)[None]})["y"]
        if out.dtype != np.uint8 or out.ndim != 4 or out.shape[-1] != PACKED_CHANNELS:
            raise EngineError("the filter's output is no picture", got=f"{out.dtype} {out.shape}")
        return unpack(out[0], self._width, self._height)

    def _follow_scene(self, planes: Planes, capture_ns: int) -> None:
        cut = self._cuts.is_cut(planes)
        if cut and self._guard is not None:
            self._guard.reset()
        if cut and self._beside is None:
            self._forget()  # what waits for a keyframe was made for another scene
        due = self._refreshed_ns is None or not 0 <= capture_ns - self._refreshed_ns < self._period_ns
        if self._is_busy or not (cut or due):
            return  # one at a time; what the scene is by then is looked at afterwards
        found = self._prior.run({"thumb": thumbnail(planes, *self._prior_size)[None]})["coefficients"]
        coefficients = found.astype(np.float32)
        self._refreshed_ns = capture_ns
        self.refreshes += 1
        if self._setting is None or self._requantised or _change(coefficients, self._setting.coefficients) >= REFOLD:
            self._prepare(coefficients)
        if cut and self._beside is None and self._waiting is not None:
            self._take(self._waiting)  # all is coded anew anyway

    @property
    def _requantised(self) -> bool:
        before = self._setting.crf if self._setting is not None else None
        return self._crf is not None and (before is None or abs(self._crf - before) >= REQUANTISED)

    def _prepare(self, coefficients: F32, pairs: Sequence[Pair] = ()) -> None:
        """Fold for these coefficients, at the strength that the pictures of a probe allow; at once, or beside."""
        if self._beside is None:
            self._waiting = self._prepared(coefficients, pairs)
        else:
            self._beside.start(lambda: self._prepared(coefficients, pairs))

    def _prepared(self, coefficients: F32, pairs: Sequence[Pair]) -> _Prepared:
        before = self._setting
        strength = before.strength if before else 1.0
        if pairs and self._guard is not None:
            judged = self._guard.judged(pairs, strength or WEAKEST)
            self._guard.settled(judged != strength)
            strength = judged
        setting = _Setting(coefficients, strength, self._crf)
        if (
            before is not None
            and before.coefficients is coefficients
            and before.crf == setting.crf
            and (before.strength or WEAKEST) == (strength or WEAKEST)
        ):
            return _Prepared(setting, None)
        try:
            kernels = self._bank.assemble(coefficients, strength or WEAKEST, setting.crf)
        except BundleError as error:
            raise EngineError("the scene's coefficients are of no use", got=str(error)) from error
        folded = self._open_filter(kernels)
        if engine_name(folded) != self.engine:
            found = engine_name(folded)
            folded.close()
            raise EngineError(
                "the filter with the scene's kernels opens on another engine only", got=found, allowed=self.engine
            )
        return _Prepared(setting, folded)

    def _take(self, prepared: _Prepared) -> None:
        self._setting, self._waiting = prepared.setting, None
        if prepared.filter is not None:
            self._filter.close()
            self._filter = prepared.filter
            self.folds += 1
            if self._guard is not None:
                self._guard.restart()


def _change(now: NDArray[np.float32], before: NDArray[np.float32]) -> float:
    """Largest change of a coefficient, relative to the root mean square of all."""
    return float(np.abs(now - before).max() / max(1e-6, float(np.sqrt(np.mean(np.square(before))))))


def thumbnail(planes: Planes, rows: int, columns: int) -> U8:
    """The whole picture scaled to rows x columns luma samples, packed without padding: u8 [rows/4, columns/4, 24]."""
    small = reduced(planes, columns, rows)
    # pack() pads to ALIGN below and to the right; the network wants the picture alone.
    return np.ascontiguousarray(pack(small)[: rows // 4, : columns // 4])


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
