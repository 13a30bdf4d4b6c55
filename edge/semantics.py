"""SMC on the camera: original and lossy frame -> integer latents -> rANS bytes, with state that lives for one GOP."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import BundleError, EngineError
from scene_edge.codec.latents import I16, LatentCoder, LatentTables
from scene_edge.codec.packet import CODEC_SMC
from scene_edge.codec.planes import Planes, aligned, pack
from scene_edge.edge.scene import SessionOpener, engine_name

_STATES = {"state_sem": "next_sem", "state_lossy": "next_lossy"}


class SemanticEncoder:
    """Frames go in one by one, in the order of the stream. `last_latents` are the integers just coded, for tests."""

    codec_id = CODEC_SMC

    def __init__(
        self, bundle: Bundle, width: int, height: int, open_network: SessionOpener, *, quality: int = 0
    ) -> None:
        if bundle.kind != "smc":
            raise BundleError(f"bundle {bundle.name} is no SMC network", got=bundle.kind, allowed="smc")
        self.bundle = bundle
        self.quality = quality
        self._step = _quality_step(bundle, quality)
        tables_file: Any = bundle.parameters.get("tables")
        if not isinstance(tables_file, str):
            raise BundleError(f"bundle {bundle.name} names no entropy tables", got=str(tables_file))
        self._coder = LatentCoder(LatentTables.from_tensors(bundle.tensors(tables_file)))
        self._width, self._height = width, height
        rows, columns = aligned(height) // 4, aligned(width) // 4
        self._zero_states = _zero_states(bundle, rows // 4, columns // 4)
        self._session = open_network(bundle, "encoder", rows, columns)
        self._states = dict(self._zero_states)
        self.last_latents: I16 | None = None

    @property
    def engine(self) -> str:
        return engine_name(self._session)

    def encode(self, original: Planes, lossy: Planes, key: bool) -> bytes:
        """One frame's payload. `key` begins a GOP: all state starts from zero. Raises EngineError."""
        for picture in (original, lossy):
            if (picture.width, picture.height) != (self._width, self._height):
                raise EngineError(
                    "picture of another size than the semantic encoder's",
                    got=f"{picture.width}x{picture.height}",
                    allowed=f"{self._width}x{self._height}",
                )
        if key:
            self._states = dict(self._zero_states)
            self._coder.reset()
        out = self._session.run({"x": pack(original)[None], "lossy": pack(lossy)[None], **self._states})
        self._states = {name: out[following] for name, following in _STATES.items()}
        self.last_latents = quantise(out["latent"], self._step)
        return self._coder.encode(self.last_latents)

    def close(self) -> None:
        self._session.close()


def quantise(latent: NDArray[np.generic], step: float) -> I16:
    """f32 [1, C, h, w] -> int16 [C, h, w]: z = clip(rint(latent / step)). Raises EngineError for NaN."""
    if latent.ndim != 4 or latent.shape[0] != 1:
        raise EngineError("the semantic encoder's latent has the wrong shape", got=latent.shape, allowed="[1, C, h, w]")
    scaled = np.rint(latent[0].astype(np.float32) / np.float32(step))
    if not np.isfinite(scaled).all():
        raise EngineError("the semantic encoder's latent is not finite", hint="Run: scene-edge doctor")
    latents: I16 = np.clip(scaled, -32768, 32767).astype(np.int16)
    return latents


def _quality_step(bundle: Bundle, quality: int) -> float:
    steps: Any = bundle.parameters.get("quality_steps")
    if not (isinstance(steps, list) and steps and all(isinstance(step, (int, float)) and step > 0 for step in steps)):
        raise BundleError(f"bundle {bundle.name}: quality_steps must be a list of positive numbers", got=str(steps))
    if not 0 <= quality < len(steps):
        raise BundleError(f"bundle {bundle.name} has no such quality", got=quality, allowed=f"0..{len(steps) - 1}")
    return float(steps[quality])


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
