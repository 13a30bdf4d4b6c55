"""SMC on the camera: original and lossy frame -> integer latents -> their code, with state that lives for one GOP."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import BundleError, EngineError
from scene_edge.codec.h264 import KEYFRAME_FINER
from scene_edge.codec.latents import I16, FrameCode, LatentEncoder
from scene_edge.codec.media import reduced
from scene_edge.codec.packet import CODEC_SMC_GOP
from scene_edge.codec.planes import U8, Planes, aligned, pack
from scene_edge.codec.quality import Quality, fused_from_qp, hold_of, latent_shape, load_qualities, seen_size
from scene_edge.edge.prefilter import SessionOpener, engine_name

Choose = Callable[[Sequence[float]], int | None]
"""What a GOP's first frame takes in bits at each quality -> the GOP's quality; None: it stays silent."""

NO_CODE = FrameCode((), 0.0, 0)
"""Of a frame for which an earlier one's latent stands."""

_STATES = {"state_sem": "next_sem", "state_lossy": "next_lossy"}


class SemanticEncoder:
    """Frames go in one by one, in the order of the stream. `last_latents` are the integers just coded, for tests.

    `quality` is that of the GOP at hand; a silent one bears the coarsest. Meaning moves slowly: where a bundle says so,
    only every `hold`-th frame of a GOP has latents of its own; at those between no network runs and nothing is coded.
    """

    codec_id = CODEC_SMC_GOP

    def __init__(self, bundle: Bundle, width: int, height: int, open_network: SessionOpener) -> None:
        self.bundle = bundle
        self._qualities = load_qualities(bundle)
        self._coarsest = max(range(len(self.steps)), key=lambda index: self.steps[index])
        self.quality = self._coarsest
        self._coder = LatentEncoder(self._qualities[self.quality].tables)
        self._silent = True
        self._shape = latent_shape(bundle, width, height)
        self._hold, self._frames = hold_of(bundle), 0
        self._fused_from_qp = fused_from_qp(bundle)
        self._width, self._height = width, height
        self._seen = seen_size(bundle, width, height)
        rows, columns = (aligned(side) // 4 for side in reversed(self._seen))
        self._zero_states = _zero_states(bundle, rows // 4, columns // 4)
        self._session = open_network(bundle, "encoder", rows, columns)
        self._states = dict(self._zero_states)
        self.last_latents: I16 | None = None

    @property
    def engine(self) -> str:
        return engine_name(self._session)

    @property
    def qualities(self) -> tuple[Quality, ...]:
        return self._qualities

    @property
    def steps(self) -> tuple[float, ...]:
        """The quantiser step of each quality."""
        return tuple(quality.step for quality in self._qualities)

    def encode(
        self, original: Planes, lossy: Planes, choose: Choose | None = None, qp: float | None = None
    ) -> FrameCode:
        """One frame. `choose` begins a GOP: all state starts from zero. Raises EngineError.

        `qp` is the quantiser that `lossy` was coded with. A GOP whose first frame has one so low that no server would
        fuse the rest is silent unasked. A silent GOP does not run the network (again).
        """
        for picture in (original, lossy):
            if (picture.width, picture.height) != (self._width, self._height):
                raise EngineError(
                    "picture of another size than the semantic encoder's",
                    got=f"{picture.width}x{picture.height}",
                    allowed=f"{self._width}x{self._height}",
                )
        self._frames = 0 if choose is not None else self._frames + 1
        if self._frames % self._hold and self.last_latents is not None:
            return NO_CODE
        latents: I16 = np.zeros(self._shape, np.int16)
        if choose is not None and qp is not None and qp + KEYFRAME_FINER < self._fused_from_qp:
            self._fall_silent()
        elif choose is not None or not self._silent:
            latent = self.mine(original, lossy, key=choose is not None)
            if choose is not None:
                self._begin(latent, choose)
            if not self._silent:
                latents = quantise(latent, self.steps[self.quality])
        self.last_latents = latents
        return self._coder.encode(latents)

    def close(self) -> None:
        self._session.close()

    def mine(self, original: Planes, lossy: Planes, key: bool) -> NDArray[np.generic]:
        """The network alone: the float latent [1, C, h, w] of a frame that has one. `key` starts from zero states."""
        states = self._zero_states if key else self._states
        out = self._session.run({"x": self._packed(original), "lossy": self._packed(lossy), **states})
        self._states = {name: out[following] for name, following in _STATES.items()}
        return out["latent"]

    def _packed(self, picture: Planes) -> U8:
        return pack(reduced(picture, *self._seen))[None]

    def _begin(self, latent: NDArray[np.generic], choose: Choose) -> None:
        quality = choose(offers(latent, self._qualities))
        if quality is None:
            self._fall_silent()
            return
        self._silent, self.quality = False, quality
        self._coder = LatentEncoder(self._qualities[quality].tables)

    def _fall_silent(self) -> None:
        self._silent, self.quality = True, self._coarsest
        self._coder = LatentEncoder(self._qualities[self._coarsest].tables)


def offers(latent: NDArray[np.generic], qualities: Sequence[Quality]) -> list[float]:
    """What a GOP's first latent takes in bits at each quality. Raises EngineError for NaN."""
    return [LatentEncoder(found.tables).encode(quantise(latent, found.step)).bits for found in qualities]


def quantise(latent: NDArray[np.generic], step: float) -> I16:
    """f32 [1, C, h, w] -> int16 [C, h, w]: z = clip(rint(latent / step)). Raises EngineError for NaN."""
    if latent.ndim != 4 or latent.shape[0] != 1:
        raise EngineError("the semantic encoder's latent has the wrong shape", got=latent.shape, allowed="[1, C, h, w]")
    scaled = np.rint(latent[0].astype(np.float32) / np.float32(step))
    if not np.isfinite(scaled).all():
        raise EngineError("the semantic encoder's latent is not finite", hint="Run: scene-edge doctor")
    latents: I16 = np.clip(scaled, -32768, 32767).astype(np.int16)
    return latents


def _zero_states(bundle: Bundle, rows: int, columns: int) -> dict[str, NDArray[np.float32]]:
    """The states with which a GOP begins; their channels stand in the manifest, their sides follow from the picture."""
    specs = {spec.name: spec.shape for spec in bundle.graph("encoder").inputs}
    states = {}
    for name in _STATES:
        shape = specs.get(name, ())
        channels = shape[1] if len(shape) == 4 else None
        if channels is None:
            raise BundleError(f"bundle {bundle.name}: input {name} must be [1, channels, h, w]", got=str(shape))
        states[name] = np.zeros((1, channels, rows, columns), np.float32)
    return states
