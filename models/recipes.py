"""Training recipes of SMC: one readable YAML file per model beside this module, checked as it is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from scene_edge.codec.errors import ConfigError
from scene_edge.models.loop import RunConfig
from scene_edge.models.semantic_objective import SemanticTermsConfig


@dataclass
class SmcRun(RunConfig):
    """One recipe: sizes, stages and weights of the objective's terms (see `SmcTraining`); kept in `recipes/`.

    `coded`, `free` and `full_price` are fractions of the time box: end of the stage in which Sem-Enc and Sem-Dec learn
    without pictures; end of the exact and free latent; the latent costs its full price. With `coded` 0 all networks
    learn at once from nothing, as the paper's do, and no `teacher` is read.
    """

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
    missed_weight: float = 3.0
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

    def as_dict(self) -> dict[str, Any]:
        """For the record: what was trained how, without the paths of the machine."""
        return {key: value for key, value in asdict(self).items() if key not in _MACHINE}


_MACHINE = ("data", "out", "resume", "threads", "save_every_s", "max_minutes", "start")
"""Settings of a run that belong to the machine it runs on, and to no recipe."""


def recipe_names() -> list[str]:
    """Names of the recipes that ship."""
    return sorted(file.name[:-5] for file in _folder().iterdir() if file.name.endswith(".yaml"))


def load_recipe(name: str, **machine: Any) -> SmcRun:
    """The recipe `name` with the settings of this machine (data, out, max_minutes, threads, ...).

    Raises ConfigError for an unknown recipe and for a key or value that no recipe has.
    """
    file = _folder() / f"{name}.yaml"
    if not file.is_file():
        raise ConfigError("no such training recipe", got=name, allowed=", ".join(recipe_names()))
    return make_run({**(yaml.safe_load(file.read_text(encoding="utf-8")) or {}), **machine}, file.name)


def make_run(settings: dict[str, Any], where: str = "recipe") -> SmcRun:
    """Settings by name -> a checked run."""
    unknown = sorted(set(settings) - set(SmcRun.__dataclass_fields__))
    if unknown:
        raise ConfigError(f"{where} has unknown keys", got=unknown, allowed=", ".join(SmcRun.__dataclass_fields__))
    try:
        return _ADAPTER.validate_python(settings)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{where}: {place}: {first['msg']}", got=repr(first.get("input"))) from error


def _folder() -> Any:
    return resources.files("scene_edge.models") / "recipes"


_ADAPTER: TypeAdapter[SmcRun] = TypeAdapter(SmcRun)
