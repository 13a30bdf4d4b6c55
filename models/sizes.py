"""SMC and SCENE by name: each published or shipped size and the class that builds it."""

from __future__ import annotations

from typing import TypeAlias

from scene_edge.codec.errors import ConfigError
from scene_edge.models.scene import SceneConfig, SceneNet
from scene_edge.models.scene_paper import ScenePaper, ScenePaperConfig
from scene_edge.models.smc import Smc, SmcConfig
from scene_edge.models.smc_paper import SmcPaper

AnySmc: TypeAlias = Smc | SmcPaper
AnyScene: TypeAlias = SceneNet | ScenePaper

CAMERA_SIZES = {
    "smc-s": SmcConfig(),
    "smc-m": SmcConfig(fuse_depths=(2, 3, 4)),
}
"""Made for cameras. They differ on the server alone: its F-Net is what a core there can do, or half as fast."""

SIZES = (*CAMERA_SIZES, "smc-paper")


def build_smc(size: str) -> AnySmc:
    """An untrained network of that size. Raises ConfigError for a name there is not."""
    if size in CAMERA_SIZES:
        return Smc(CAMERA_SIZES[size])
    if size == "smc-paper":
        return SmcPaper()
    raise ConfigError("no such size of SMC", got=size, allowed=", ".join(SIZES))


SCENE_CAMERA_SIZES = {
    "scene-s": SceneConfig(width=16),
    "scene-m": SceneConfig(),
    "scene-m-half": SceneConfig(own=1),
    "scene-m-own": SceneConfig(own=2),
    "scene-m-temporal": SceneConfig(temporal=True),
    "scene-m-wide": SceneConfig(width=64),
}
"""Made for cameras, and beside `scene-m` what it is compared with (`benchmarks/scene_ablations.py`)."""

SCENE_SIZES = (*SCENE_CAMERA_SIZES, "scene-paper", "scene-asconv")


def build_scene(size: str) -> AnyScene:
    """An untrained network of that size; `scene-asconv` is the published one's baseline. Raises as `build_smc` does."""
    if size in SCENE_CAMERA_SIZES:
        return SceneNet(SCENE_CAMERA_SIZES[size])
    if size in SCENE_SIZES:
        return ScenePaper(ScenePaperConfig(semantic=size == "scene-paper"))
    raise ConfigError("no such size of SCENE", got=size, allowed=", ".join(SCENE_SIZES))
