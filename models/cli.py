"""`scene-edge train`: the training runs as commands, time-boxed and resumable."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from scene_edge.codec.errors import ConfigError
from scene_edge.models.cards import RECORD, write_card


class Trainable(str, Enum):
    """What can be trained."""

    scene_s = "scene-s"
    scene_machine = "scene-machine"
    scene_m = "scene-m"
    scene_paper = "scene-paper"
    scene_asconv = "scene-asconv"
    smc_s = "smc-s"
    smc_m = "smc-m"
    smc_paper = "smc-paper"
    detector = "detector"
    action = "action"


def train(
    model: Annotated[Trainable, typer.Argument(help="Which network.")],
    data: Annotated[Path, typer.Option(help="Folder with train/ clips and models/ instruments.")] = Path(
        "../shared/data"
    ),
    out: Annotated[Path | None, typer.Option(help="Folder of the run. Default: runs/MODEL.")] = None,
    max_minutes: Annotated[float, typer.Option(min=0.01, help="Time box, counted over all resumed parts.")] = 60.0,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint in --out.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of data order and weights.")] = 7,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    start: Annotated[
        Path | None, typer.Option(help="Run or bundle of SMC or SCENE whose weights are taken over where they fit.")
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Run or bundle of a taught scene-m that scene-s imitates at first.")
    ] = None,
    weaknesses: Annotated[str, typer.Option(help="What is known to be weak, for the model card.")] = "",
) -> None:
    """Train a network on real clips; interrupt it and start it again as you like.

    Example: scene-edge train smc-s --data ../shared/data --max-minutes 120
    """
    out = out or Path("runs") / model.value
    if not data.is_dir():
        raise ConfigError("no such data folder", got=str(data), hint="Give --data a folder with train/ and models/.")
    settings: dict[str, Any] = {"data": data, "out": out, "max_minutes": max_minutes, "resume": resume}
    settings |= {"seed": seed, "threads": threads}
    if start is not None:
        if model is Trainable.scene_machine or not model.value.startswith(("smc-", "scene-")):
            raise ConfigError("that network starts from no other run", got=model.value, hint="Leave out --start.")
        settings["start"] = start
    if teacher is not None:
        if not model.value.startswith("scene-") or model is Trainable.scene_machine:
            raise ConfigError("that network has no teacher", got=model.value, hint="Leave out --teacher.")
        settings["teacher"] = teacher
    record = _trainer(model)(**settings)
    if weaknesses:
        record["weaknesses"] = weaknesses
    (out / RECORD).write_text(json.dumps(record, indent=1))
    write_card(out, model.value)
    typer.echo(json.dumps(record, indent=1))


def _trainer(model: Trainable) -> Any:
    """The training function of a model, as `run(**settings) -> record`; imports only what it needs."""
    if model is Trainable.scene_machine:
        from scene_edge.models.train_where import WhereRun
        from scene_edge.models.train_where import train as train_where

        return lambda **settings: train_where(WhereRun(**settings))
    if model.value.startswith("scene-"):
        from scene_edge.models.recipes import SceneRun, load_recipe
        from scene_edge.models.train_scene import train as train_scene

        return lambda **settings: train_scene(load_recipe(SceneRun, model.value, **settings))
    if model.value.startswith("smc-"):
        from scene_edge.models.recipes import SmcRun, load_recipe
        from scene_edge.models.train_smc import train as train_smc

        return lambda **settings: train_smc(load_recipe(SmcRun, model.value, **settings))
    if model is Trainable.detector:
        from scene_edge.models.train_detector import DetectorRun
        from scene_edge.models.train_detector import train as train_detector

        return lambda **settings: train_detector(DetectorRun(**settings))
    from scene_edge.models.train_action import ActionRun
    from scene_edge.models.train_action import train as train_action

    return lambda **settings: train_action(ActionRun(**settings))
