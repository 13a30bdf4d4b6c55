"""SCENE for machines: a soft map of what tasks need, and a picture whose fine detail is kept there alone.

A small network looks at every few frames and says where something is. Elsewhere the picture is blended towards a
coarse copy of itself, a quarter of its size: bits go where somebody will look, and nothing is erased, since a coarse
picture still shows what moves there. The blend is of integers, and costs no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import BundleError, EngineError
from scene_edge.codec.h264 import KEYFRAME_FINER
from scene_edge.codec.media import magnified, reduced
from scene_edge.codec.planes import U8, Planes, aligned, pack, within
from scene_edge.edge.prefilter import Beside, CutDetector, SessionOpener, check_size, engine_name
from scene_edge.edge.scene_guard import WEAKEST, Pair, RateGuard

F32 = NDArray[np.float32]
I16 = NDArray[np.int16]
I64 = NDArray[np.int64]

WHERE = "where"
"""The graph that says where something is, and the part of the manifest that says how that is used."""

KEPT = 128
"""A blend's weight at which a sample is kept as it is: 255 times that still fits 16 bits."""

CELL = 16
"""Luma samples of the looked-at picture on a side of a cell of the map."""


class Attention(NamedTuple):
    """How a bundle's map is used: `where` in its manifest."""

    width: int
    """Luma samples of a row of the picture that the network looks at."""
    period_ms: float
    low: float
    high: float
    """Where the map says `low` or less nothing is kept, at `high` all of it."""
    fade: float
    """What is left of the map from one look to the next, where nothing is seen any more."""
    coarse: int
    """By how much the coarse copy is smaller, in both directions."""
    off_crf: float
    on_crf: float
    """Up to `off_crf` everything is kept: such pictures are good enough for every task. From `on_crf` on the map alone
    decides, and in between a part of the detail stays everywhere."""


class AttentionFilter:
    """Planes in, planes of the same size out: a `PreFilter`. Not thread-safe: one thread filters one camera's frames.

    `floor` is the part of the fine detail that is kept even where nothing is. `crf` is what frames will be coded with;
    where the encoder chooses it, `coded_with` tells, and the map follows when the network looks next. `guard` says how
    strong the filter may be; without one it is never weakened. `live`: a probe is judged by a thread beside the stream.
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
        floor: float = 0.0,
    ) -> None:
        self.bundle = bundle
        self._crf, self._encoder_chooses = crf, crf is None
        self._size = width, height
        self._use, self._floor, self._guard = _attention(bundle), floor, guard
        self._seen_size = within(width, height, self._use.width, CELL)
        rows, columns = (aligned(side) // 4 for side in reversed(self._seen_size))
        self._where = open_network(bundle, WHERE, rows, columns)
        self._beside: Beside[float] | None = Beside() if live else None
        self._cuts = CutDetector()
        self._strength = 1.0
        self._frames = 0
        self._looked_ns: int | None = None
        self._there: F32 | None = None
        self._kept: tuple[I16, I16] | None = None
        self._waiting: float | None = None
        """The strength that a probe allows, until the next keyframe."""

    @property
    def engine(self) -> str:
        return engine_name(self._where)

    @property
    def strength(self) -> float:
        """1: as the map says; 0: frames pass as they are, for what they would cost or because they are good enough."""
        return 0.0 if self._keeps_all else self._strength

    def apply(self, planes: Planes, capture_ns: int) -> Planes:
        """Filter one frame. `capture_ns` decides when the network looks again. Raises EngineError."""
        check_size(planes, self._size)
        if self._beside is not None and (judged := self._beside.ready()) is not None:
            self._waiting = judged
        cut = self._cuts.is_cut(planes)
        if cut and self._guard is not None:
            self._guard.reset()
        if self._keeps_all:
            self._there = self._kept = self._looked_ns = None
            self._frames += 1
            return planes
        self._look(planes, capture_ns, cut)
        if self._waiting is not None and self._may_change:
            self._take(self._waiting)
        self._frames += 1
        guard, busy = self._guard, self._waiting is not None or (self._beside is not None and self._beside.busy)
        probed = guard is not None and not busy and guard.due(capture_ns)
        if not probed and not self._strength:
            return planes
        filtered = self._blended(planes)
        if guard is not None and probed and (pairs := guard.take(planes, filtered, capture_ns)):
            self._judge(guard, pairs)
        return filtered if self._strength else planes

    def coded_with(self, keyframe_qp: float | None) -> None:
        """The mean quantiser of a keyframe, as far as it is known; any thread may tell it."""
        if self._encoder_chooses and keyframe_qp is not None:
            self._crf = keyframe_qp + KEYFRAME_FINER

    def reset(self) -> None:
        """Forget what was seen; strength is found anew as well."""
        self._looked_ns = self._there = self._kept = self._waiting = None
        self._frames = 0
        self._strength = 1.0
        self._cuts.reset()
        if self._beside is not None:
            self._beside.forget()
        if self._guard is not None:
            self._guard.reset()

    def close(self) -> None:
        if self._beside is not None:
            self._beside.forget()
        self._where.close()

    @property
    def _may_change(self) -> bool:
        """A change is coded: it is made at a keyframe."""
        return self._guard is None or self._frames % self._guard.gop == 0

    def _look(self, planes: Planes, capture_ns: int, cut: bool) -> None:
        period_ns = self._use.period_ms * 1e6
        if not cut and self._looked_ns is not None and 0 <= capture_ns - self._looked_ns < period_ns:
            return
        small = reduced(planes, *self._seen_size)
        found = self._where.run({"x": pack(small)[None]})["there"]
        if found.ndim != 4 or found.dtype != np.float32 or not np.isfinite(found).all():
            raise EngineError("what the network sees is no map", got=f"{found.dtype} {found.shape}")
        there = found[0, 0].clip(0.0, 1.0)
        if self._there is not None and not cut:
            there = np.maximum(there, self._use.fade * self._there)
        self._there, self._looked_ns, self._kept = there, capture_ns, None

    def _blended(self, planes: Planes) -> Planes:
        if self._kept is None:
            self._kept = self._weights()
        coarse = coarsened(planes, self._use.coarse)
        luma, chroma = self._kept
        return Planes(
            blend(planes.y, coarse.y, luma), blend(planes.u, coarse.u, chroma), blend(planes.v, coarse.v, chroma)
        )

    def _weights(self) -> tuple[I16, I16]:
        """What is kept of each luma and each chroma sample, in KEPT parts."""
        assert self._there is not None
        share = np.clip((self._there - self._use.low) / (self._use.high - self._use.low), self._least_kept, 1.0)
        share = 1.0 - (self._strength or WEAKEST) * (1.0 - share)
        (width, height), seen = self._size, self._seen_size
        luma = enlarged(share, width, height, seen)
        chroma = enlarged(share, width // 2, height // 2, seen)
        return luma, chroma

    @property
    def _keeps_all(self) -> bool:
        """No map is needed, nor any network."""
        return self._least_kept >= 1.0

    @property
    def _least_kept(self) -> float:
        if self._crf is None:
            return self._floor
        part = (self._use.on_crf - self._crf) / (self._use.on_crf - self._use.off_crf)
        return min(1.0, max(self._floor, part))

    def _judge(self, guard: RateGuard, pairs: Sequence[Pair]) -> None:
        strength = self._strength

        def judged() -> float:
            return guard.judged(pairs, strength or WEAKEST)

        if self._beside is None:
            self._waiting = judged()
        else:
            self._beside.start(judged)

    def _take(self, strength: float) -> None:
        changed, self._waiting = strength != self._strength, None
        if self._guard is not None:
            self._guard.settled(changed)
            if changed:
                self._guard.restart()
        if changed:
            self._strength, self._kept = strength, None


def coarsened(planes: Planes, factor: int) -> Planes:
    """The picture without its fine detail: area averages of `factor` x `factor` samples, and linear between them."""
    width, height = planes.width, planes.height
    across, down = (max(2, side // factor // 2 * 2) for side in (width, height))
    return magnified(reduced(planes, across, down), width, height)


def blend(fine: U8, coarse: U8, kept: I16) -> U8:
    """coarse + (fine - coarse) * kept / KEPT, rounded: between the two, whatever `kept` in 0..KEPT is."""
    out = fine.astype(np.int16)
    out -= coarse
    out *= kept
    out += KEPT // 2
    out >>= 7
    out += coarse
    return out.astype(np.uint8)


def enlarged(share: F32, width: int, height: int, seen: tuple[int, int]) -> I16:
    """A map over cells of a picture of size `seen`, (width, height), at each sample of one `width` x `height`:
    bilinear between the middles of cells, in KEPT parts.

    No matrix product: BLAS would wake its threads for it, and let them spin beside the encoder.
    """
    rows, columns = share.shape
    left, right, part = _between(width, seen[0] / CELL, columns)
    across = share[:, left] + (share[:, right] - share[:, left]) * part
    lines = np.rint(across * KEPT).astype(np.int16)
    above, below, part = _between(height, seen[1] / CELL, rows)
    full: I16 = lines[below]
    full -= lines[above]
    full *= np.rint(part * KEPT).astype(np.int16)[:, None]
    full += KEPT // 2
    full >>= 7
    full += lines[above]
    return full


def _between(count: int, cells: float, known: int) -> tuple[I64, I64, F32]:
    """Of each of `count` samples spread over `cells` cells: the cells before and behind it, and the latter's part."""
    place = ((np.arange(count) + 0.5) * cells / count - 0.5).clip(0, known - 1)
    before = place.astype(np.int64)
    return before, np.minimum(before + 1, known - 1), (place - before).astype(np.float32)


def _attention(bundle: Bundle) -> Attention:
    value: Any = bundle.parameters.get(WHERE)
    ranges = {
        "width": (64, 4096),
        "period_ms": (1, 10_000),
        "low": (0, 1),
        "high": (0, 1),
        "fade": (0, 1),
        "coarse": (2, 32),
        "off_crf": (0, 63),
        "on_crf": (0, 63),
    }
    if not isinstance(value, dict) or set(value) != set(ranges):
        raise BundleError(f"bundle {bundle.name}: `where` is incomplete", got=str(value), allowed=", ".join(ranges))
    for name, (least, most) in ranges.items():
        number = value[name]
        if not isinstance(number, int | float) or isinstance(number, bool) or not least <= number <= most:
            raise BundleError(f"bundle {bundle.name}: {name} out of range", got=str(number), allowed=f"{least}..{most}")
    for less, more in (("low", "high"), ("off_crf", "on_crf")):
        if not value[less] < value[more]:
            raise BundleError(f"bundle {bundle.name}: {less} must be less than {more}", got=str(value))
    if not all(isinstance(value[name], int) for name in ("width", "coarse")):
        raise BundleError(f"bundle {bundle.name}: width and coarse are whole numbers", got=str(value))
    return Attention(**value)
