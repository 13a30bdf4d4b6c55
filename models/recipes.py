"""Training recipes of SMC and SCENE: one readable YAML file per model beside this module, checked as it is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from scene_edge.codec.errors import ConfigError
from scene_edge.models.loop import RunConfig
from scene_edge.models.semantic_objective import SemanticTermsConfig


@dataclass
class Recipe(RunConfig):
    """A training run that a file in `recipes/` describes; `FAMILY` begins the names of its files."""

    FAMILY: ClassVar[str]

    def as_dict(self) -> dict[str, Any]:
        """For the record: what was trained how, without the paths of the machine."""
        return {key: value for key, value in asdict(self).items() if key not in _MACHINE}


@dataclass
class SmcRun(Recipe):
    """One recipe of SMC: sizes, stages and weights of the objective's terms (see `SmcTraining`); kept in `recipes/`.

    `coded`, `free` and `full_price` are fractions of the time box: end of the stage in which Sem-Enc and Sem-Dec learn
    without pictures; end of the exact and free latent; the latent costs its full price. With `coded` 0 all networks
    learn at once from nothing, as the paper's do, and no `teacher` is read.
    """

    FAMILY: ClassVar[str] = "smc"

    size: str = "smc-s"
    teacher: str = "models/FastestDet.onnx"
    """Sem-Net starts as this detector's body."""
    instrument: str = "models/yolox_nano.onnx"
    """The detector in whose eyes the fused picture is to be like the original."""
    judged: list[float] = field(default_factory=lambda: [1.0])
    """Sizes, times the crop's side, at which the instrument looks; one is drawn for each step."""
    start: Path | None = None
    """Run or bundle whose weights are taken over where they fit; a coder among them is kept as it is."""
    coded: float = 0.2
    free: float = 0.04
    full_price: float = 0.1
    sample_weight: float = 8.0
    machine_weight: float = 1.0
    missed_weight: float = 0.0
    verdict_weight: float = 1.0
    semantic_weight: float = 0.5
    rate_weight: float = 0.5
    terms: SemanticTermsConfig = field(default_factory=SemanticTermsConfig.off)
    compensated: bool = True
    """False: no latent at all, F-Net enhances alone (an ablation)."""
    residual: bool = True
    """False: S itself is coded, not S - S~ (open loop, an ablation)."""
    drop: float = 0.15
    crop: int = 224
    length: int = 3
    coder_batch: int = 8


@dataclass
class SceneRun(Recipe):
    """One recipe of SCENE: the codec it is trained through, weights of the qualities in J (see `train_scene`), crops.

    `pre_proxy_weight` is that of the L1 distance before the codec, which keeps the filter modest.
    """

    FAMILY: ClassVar[str] = "scene"

    size: str = "scene-s"
    proxy: Literal["jpeg", "hybrid"] = "hybrid"
    """Whose gradient the filter learns from."""
    real_codec: bool = True
    """Whether the loss sees x264's pictures and bits in place of the proxy's."""
    instrument: str = "models/yolox_nano.onnx"
    """The detector in whose eyes the coded picture is to be like the original."""
    start: Path | None = None
    """Run or bundle whose weights are taken over where they fit."""
    siglip: str = "models/siglip2-so400m-patch14-384"
    """SigLIP 2, a folder below the data folder; read by `scene-paper` alone."""
    teacher: Path | None = None
    """Run or bundle of a taught `teacher_size`, which a network for cameras imitates for the fraction `imitated` of the
    time box, before it meets a codec; without one it meets it at once."""
    teacher_size: str = "scene-m"
    imitated: float = 0.0
    prior: Literal["scene", "none", "noise"] = "scene"
    """What the semantic path of a network for cameras is given: a thumbnail, or, for comparison, grey or noise."""
    machine_weight: float = 0.5
    sample_weight: float = 0.25
    ssim_weight: float = 0.25
    detail_weight: float = 0.0
    """Of what VMAF NEG sees (`detail`)."""
    rise_weight: float = 0.0
    """What a higher rate at the same QP costs beside its price in J."""
    pre_proxy_weight: float = 2.0
    crop: int = 256
    length: int = 2


_MACHINE = ("data", "out", "resume", "threads", "save_every_s", "max_minutes", "start", "teacher")
"""Settings of a run that belong to the machine it runs on, and to no recipe."""


Run = TypeVar("Run", bound=Recipe)


def recipe_names(kind: type[Recipe]) -> list[str]:
    """Names of the recipes of that kind that ship."""
    names = [file.name[:-5] for file in _folder().iterdir() if file.name.endswith(".yaml")]
    return sorted(name for name in names if name.startswith(f"{kind.FAMILY}-"))


def load_recipe(kind: type[Run], name: str, **machine: Any) -> Run:
    """The recipe `name` with the settings of this machine (data, out, max_minutes, threads, ...).

    Raises ConfigError for an unknown recipe and for a key or value that no recipe of that kind has.
    """
    if name not in recipe_names(kind):
        raise ConfigError("no such training recipe", got=name, allowed=", ".join(recipe_names(kind)))
    file = _folder() / f"{name}.yaml"
    return make_run(kind, {**(yaml.safe_load(file.read_text(encoding="utf-8")) or {}), **machine}, file.name)


def make_run(kind: type[Run], settings: dict[str, Any], where: str = "recipe") -> Run:
    """Settings by name -> a checked run."""
    allowed = kind.__dataclass_fields__
    unknown = sorted(set(settings) - set(allowed))
    if unknown:
        raise ConfigError(f"{where} has unknown keys", got=unknown, allowed=", ".join(allowed))
    try:
        return TypeAdapter(kind).validate_python(settings)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{where}: {place}: {first['msg']}", got=repr(first.get("input"))) from error


def _folder() -> Any:
    return resources.files("scene_edge.models") / "recipes"
