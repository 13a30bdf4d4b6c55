"""What each part of SMC is worth: variants trained alike but for one part, judged on development crops.

    python -m benchmarks.ablations --minutes 60

All start from the same networks: from a run (`--start`), whose training they go on with, or from a coder taught once
here and an F-Net that knows nothing. The open loop alone has to learn a coder of its own. All have the same
seed, time and thread, and go on where they were stopped. Minutes count the whole recipe, of which the shared teaching
is the first part; from there on, coder and F-Net learn together with the paper's own terms. A variant that is cheaper
takes more steps in its time, as it would in a real run; the steps stand in the table. All are judged by one yardstick,
that of `measure_qualities` (cost = distance + price of the bits), whatever they were trained for.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from rich.table import Table
from torch import Tensor

from benchmarks import _report
from benchmarks.clips import data_folder
from scene_edge.codec.errors import ConfigError, FormatError
from scene_edge.models.data import ClipSampler, DataConfig, build_cache
from scene_edge.models.operating_point import QUALITY_STEPS, measure_qualities, price_of_bits
from scene_edge.models.recipes import SmcRun, load_recipe, make_run
from scene_edge.models.semantic_objective import SemanticTermsConfig
from scene_edge.models.train_smc import SmcTraining, torch_seeded

EXAMPLE = "Example: python -m benchmarks.ablations --minutes 60 --variants full,no-masking --json ablations.json"

RECIPE = "smc-s"
FULL = "full"

DEV_FOLDERS = tuple(f"dev/{name}" for name in ("vos", "mot", "traffic", "pedestrian", "natural", "codec"))
DEV_FRAMES = 6
JUDGED = 6
"""Crops at each CRF in each draw."""

console = _report.console()


@dataclass(frozen=True)
class Variant:
    """One trial: what of the full recipe it changes, in the recipe, its terms, and the masked prediction."""

    title: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    terms: Mapping[str, Any] = field(default_factory=dict)
    masked: Mapping[str, Any] = field(default_factory=dict)


VARIANTS = {
    FULL: Variant("full"),
    "no-compensation": Variant("no compensation: enhancement alone", {"compensated": False}),
    "no-suppression": Variant("no suppression", terms={"beta": 0.0}),
    "no-semantics": Variant("suppression without semantics", terms={"conditional": False}),
    "no-masking": Variant("no masking, no suppression", terms={"alpha": 0.0}),
    "mask-0.5": Variant("mask ratio 0.5", masked={"mask_ratio": 0.5}),
    "mask-0.75": Variant("mask ratio 0.75", masked={"mask_ratio": 0.75}),
    "open-loop": Variant("open loop: S coded, not S - S~", {"residual": False}),
    "no-teacher": Variant("no teacher distance", {"machine_weight": 0.0}),
}


def variant_run(name: str, **machine: Any) -> SmcRun:
    """The recipe of a variant, with the settings of this machine (data, out, max_minutes, ...).

    Full is the recipe of `smc-s` with masking and suppression in small networks. The perceptual and adversarial terms
    are off: they are ablated by no variant, and cost steps. Raises ConfigError.
    """
    variant = VARIANTS[name]
    terms = asdict(SemanticTermsConfig.small()) | {"perceptual": 0.0, "adversarial": 0.0} | dict(variant.terms)
    terms["masked"] = terms["masked"] | dict(variant.masked)
    recipe = load_recipe(SmcRun, RECIPE, **machine).as_dict()
    return make_run(SmcRun, recipe | {"terms": terms} | dict(variant.recipe) | machine, name)


def teaching_run(**machine: Any) -> SmcRun:
    """The run that only teaches the coder, for the share of the minutes that the recipe gives to it."""
    recipe = load_recipe(SmcRun, RECIPE, **machine)
    stages = {"coded": 1.0, "free": recipe.free / recipe.coded, "full_price": recipe.full_price / recipe.coded}
    minutes = {"max_minutes": recipe.coded * recipe.max_minutes}
    return make_run(SmcRun, recipe.as_dict() | machine | stages | minutes, "the shared teaching")


def chosen_variants(text: str) -> list[str]:
    """A comma-separated option, in the order of VARIANTS. Raises ConfigError."""
    asked = {part.strip() for part in text.split(",")}
    if unknown := sorted(asked - set(VARIANTS)):
        raise ConfigError("no such variant", got=", ".join(unknown), allowed=", ".join(VARIANTS))
    return [name for name in VARIANTS if name in asked]


_OBJECTIVE = ("1.prior.", "1.scaled")
"""What of a checkpoint's objective belongs to the coder."""


class OpenLoop:
    """A model that codes S, in the interface of one that codes S - S~: what it calls S is S + S~."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.states = model.states
        self.sem_enc, self.sem_dec = model.sem_enc, model.sem_dec

    def mine_both(self, *given: Tensor) -> tuple[Tensor, ...]:
        semantic, seen, *states = self._model.mine_both(*given)
        # in float32, so that taking S~ away again leaves S
        return semantic.float() + seen.float(), seen.float(), *states

    def fuse(self, lossy: Tensor, seen: Tensor, restored: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """What comes back is S^ itself, or zeros where no latent was sent."""
        told = restored - seen if restored.any() else restored
        fused: tuple[Tensor, Tensor] = self._model.fuse(lossy, seen, told, state)
        return fused


def claim(out: Path, settings: Mapping[str, Any]) -> None:
    """Make `out` the folder of these settings. Raises ConfigError where it holds an ablation with others."""
    path, wanted = out / "settings.json", json.loads(json.dumps(settings))
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        differ = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
        if differ:
            raise ConfigError(
                "the folder holds variants trained with other settings",
                got=", ".join(differ),
                hint="Give them as before, or another --out.",
            )
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(wanted, indent=1), encoding="utf-8")


def taught(run: Path) -> dict[str, Any]:
    """What the variants take over of a checkpoint: all networks as they would ship, the prior, the steps."""
    path = run / "state.pt"
    if not path.is_file():
        raise ConfigError("no checkpoint to start from", got=str(run), hint="Give --start the folder of a run of SMC.")
    state = torch.load(path, weights_only=True, map_location="cpu")
    return {
        "model": state["average"],
        "objective": {key[2:]: value for key, value in state["trained"].items() if key.startswith(_OBJECTIVE)},
        "steps": state["steps"],
    }


def start_from(training: SmcTraining, teacher: Mapping[str, Any]) -> None:
    """Put a fresh run where the shared teaching ends; in an open loop F-Net alone, where its own teaching begins.

    Raises FormatError for a coder of another size.
    """
    trainer, config = training.trainer, training.config
    if not config.residual:
        known = {key: value for key, value in teacher["model"].items() if key.startswith("f_net.")}
        training.model.load_state_dict({**training.model.state_dict(), **known})
        trainer.average.update({key: value.clone().float() for key, value in known.items()})
        return
    try:
        for module, part in ((training.model, "model"), (training.objective, "objective")):
            module.load_state_dict({**module.state_dict(), **teacher[part]})
    except RuntimeError as error:
        raise FormatError(
            "the checkpoint to start from holds no coder that fits",
            got=str(error).splitlines()[0],
            hint=f"It must be of {RECIPE}.",
        ) from error
    for key in teacher["model"]:
        trainer.average[key].copy_(training.model.state_dict()[key])
    # a little past the border, whatever the rounding: not one step of teaching more
    trainer.seconds = config.coded * config.max_minutes * 60 + 1e-3
    trainer.steps = max(1, int(teacher["steps"]))
    trainer.save()


def train_variant(config: SmcRun, clips: Path, teacher: Mapping[str, Any]) -> SmcTraining:
    """Train, or go on; returns the run with its averaged weights."""
    torch_seeded(config.seed)
    training = SmcTraining(config, clips)
    if training.trainer.steps == 0:
        start_from(training, teacher)
    training.trainer.run(training.step)
    training.model.load_state_dict(training.trainer.average)
    return training


def judge(training: SmcTraining, clips: Path, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """`measure_qualities` on the same crops for every variant; one result for each seed."""
    full, machine = variant_run(FULL, data=training.config.data, out=training.config.out), training.machine
    model: Any = training.model if training.config.residual else OpenLoop(training.model)
    draws = []
    for seed in track(seeds, f"{training.config.out.name}: judged", console=console):
        sampler = ClipSampler(clips, seed, size=full.crop, length=full.length)
        price = price_of_bits(sampler, machine, full.sample_weight, full.machine_weight, seed)
        draws.append(measure_qualities(model, sampler, machine, price, full.sample_weight, JUDGED))
    return draws


def summarise(name: str, steps: int, draws: Sequence[Mapping[str, Any]], *, compensated: bool = True) -> dict[str, Any]:
    """The draws of one variant as one row: means of each quality, and the best of them.

    A variant that has no latent has only the quality None.
    """
    lossy = [draw["lossy_distance"] for draw in draws]
    qualities = []
    for index, first in enumerate(draws[0]["qualities"]):
        if first["step"] is not None and not compensated:
            continue
        rows = [draw["qualities"][index] for draw in draws]
        means = {key: statistics.fmean(row[key] for row in rows) for key in ("distance", "share", "cost")}
        qualities.append({"step": first["step"], **means, "costs": [row["cost"] for row in rows]})
    best = min(qualities, key=lambda row: row["cost"])
    against = statistics.fmean(lossy)
    return {
        "variant": name,
        "title": VARIANTS[name].title,
        "steps": steps,
        "lossy_distance": against,
        "qualities": qualities,
        "best": best,
        "without_percent": 100 * (qualities[0]["cost"] / against - 1),
        "best_percent": 100 * (best["cost"] / against - 1),
    }


def compare_with_full(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each row with `against_full`: best cost minus full's on the same crops, in percent of x264's distance.

    [mean, standard error], the latter None for a single draw; None altogether without `full`.
    """
    full = next((row for row in rows if row["variant"] == FULL), None)
    compared = []
    for row in rows:
        against = None
        if full is not None:
            pairs = zip(row["best"]["costs"], full["best"]["costs"], strict=True)
            gaps = [100 * (own - other) / row["lossy_distance"] for own, other in pairs]
            error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else None
            against = [statistics.fmean(gaps), error]
        compared.append({**row, "against_full": against})
    return compared


def table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Of each variant: distance over share of bits at each quality, best cost, and how that compares, in percent."""
    title = f"SMC without one of its parts; x264 alone: {rows[0]['lossy_distance']:.3f}"
    table = Table(title=title, title_justify="left", show_lines=True)
    heads = ("variant", "steps", "no latent", *(f"step {step:g}" for step in QUALITY_STEPS))
    for head in (*heads, "best cost", "at step", "best\nto x264", "no latent\nto x264", "best\nto full"):
        table.add_column(head, justify="left" if head == "variant" else "right", no_wrap=True)
    for row in rows:
        found = {quality["step"]: quality for quality in row["qualities"]}
        cells = [
            f"{found[step]['distance']:.3f}\n{100 * found[step]['share']:.1f}%" if step in found else "-"
            for step in QUALITY_STEPS
        ]
        best, against = row["best"], row["against_full"]
        table.add_row(
            row["title"],
            str(row["steps"]),
            f"{found[None]['distance']:.3f}",
            *cells,
            f"{best['cost']:.3f}",
            "none" if best["step"] is None else f"{best['step']:g}",
            f"{row['best_percent']:+.2f}",
            f"{row['without_percent']:+.2f}",
            "-" if against is None else f"{against[0]:+.2f}" + ("" if against[1] is None else f"\n±{against[1]:.2f}"),
        )
    return table


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the PNG: what each variant takes off x264's cost, by enhancement alone and with its latent."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    places = list(range(len(rows)))
    figure, axis = pyplot.subplots(figsize=(9, 1.2 + 0.55 * len(rows)), layout="constrained")
    bars = (("without_percent", "without latent", "#98df8a", -0.2), ("best_percent", "best quality", "#2ca02c", 0.2))
    for key, label, colour, offset in bars:
        values = [row[key] for row in rows]
        bar = axis.barh([place + offset for place in places], values, height=0.38, color=colour, label=label)
        axis.bar_label(bar, fmt="%+.1f", padding=2, fontsize=8)
    axis.set_yticks(places, [row["title"] for row in rows])
    axis.invert_yaxis()
    axis.axvline(0.0, color="#444444", linewidth=1)
    axis.margins(x=0.1)
    axis.set_xlabel("cost against x264 alone on development crops, % (less is better; bits are paid for)")
    axis.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def prepare(config: DataConfig, cache: Path, label: str) -> Path:
    """The clips of `config`, made once; says how far it is."""
    with console.status(label) as status:
        return build_cache(config, cache, lambda done, of: status.update(f"{label}: clip {done} of {of}"))


def run(
    minutes: Annotated[float, typer.Option(min=0.01, help="Of each variant, the shared teaching included.")] = 60.0,
    variants: Annotated[str, typer.Option(help="Which to train and compare, comma separated.")] = ",".join(VARIANTS),
    start: Annotated[Path | None, typer.Option(help="Run of smc-s to go on from. Default: taught here.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs and of ablations.png.")] = Path("runs/ablations"),
    cache: Annotated[Path, typer.Option(help="Folder of prepared clips, shared with training.")] = Path("runs/cache"),
    draws: Annotated[int, typer.Option(min=1, help="Sets of crops that all are judged on.")] = 4,
    seed: Annotated[int, typer.Option(help="Of training; that of the crops follows from it.")] = 7,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
) -> None:
    """Train SMC without one of its parts after the other, and compare what is left."""
    chosen, data = chosen_variants(variants), data_folder()
    report = _report.envelope("ablations", seed=seed)
    torch.set_num_threads(threads)
    machine = {"data": data, "max_minutes": minutes, "seed": seed, "threads": threads}
    settings = {"minutes": minutes, "seed": seed, "start": str(start) if start else None}
    claim(out, settings | {"recipe": variant_run(FULL, out=out, **machine).as_dict()})
    clips = prepare(DataConfig(data), cache, "training clips")
    judged = DataConfig(data, DEV_FOLDERS, action_folders=(), frames=DEV_FRAMES)
    judged_clips = prepare(judged, cache, "development clips")
    if start is None:
        teaching = teaching_run(out=out / "taught", **machine)
        torch_seeded(seed)
        lesson = SmcTraining(teaching, clips)
        lesson.trainer.run(lesson.step)
    teacher = taught(start or out / "taught")
    rows = []
    for number, name in enumerate(chosen, 1):
        console.print(f"{number} of {len(chosen)}: {VARIANTS[name].title}", highlight=False)
        config = variant_run(name, out=out / name, **machine)
        training = train_variant(config, clips, teacher)
        found = judge(training, judged_clips, range(seed + 100, seed + 100 + draws))
        rows.append(summarise(name, training.trainer.steps, found, compensated=config.compensated))
    rows = compare_with_full(rows)
    console.print(table_of(rows))
    draw(rows, out / "ablations.png")
    _report.write_json(json_file or out / "ablations.json", report | {"settings": settings, "results": rows})


def main() -> None:
    _report.command(run, EXAMPLE)


if __name__ == "__main__":
    main()
