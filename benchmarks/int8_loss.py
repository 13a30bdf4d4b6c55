"""What INT8 costs in the tasks: BD-rate of each engine's INT8 against float32 on the same clips.

    python -m benchmarks.int8_loss --run runs/smc-s --clips vos,pedestrian --parts 3

Both go through the product's code: camera and server open the same bundle at another precision. SCENE ships its float32
artefact; SMC's is exported here from the run that its bundle was made of. SCENE changes the rate and is judged by the
decoded pictures, SMC by the fused ones. Clips are measured in parts, and intervals are over these: three places of a
clip say more than one that is three times as long. Boxes agree from each of several scores on (`SCORES`), and counts
are added up: INT8 moves scores a little, and at a single one a box is there or not. Every measurement is one line of
OUT/records.jsonl: an interrupted run goes on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.progress import track
from rich.table import Table

from benchmarks import _report
from benchmarks.clips import ACTION_SETS, Clip, data_folder, find_clips, parts_of_clip
from benchmarks.float_bundle import smc_with_float
from benchmarks.measure import ORIGINAL, Job, Settings, measure
from benchmarks.rate_accuracy import Records
from benchmarks.summary import summarise
from benchmarks.systems import Coding, bundle_digests, parts_of
from scene_edge.codec.errors import ConfigError, EngineError

EXAMPLE = (
    "Example: python -m benchmarks.int8_loss --systems scene --engines openvino --clips mot,vos --crfs 31,35,39,43"
)

FLOAT = "float32"
FLOAT_ENGINE = "onnx"
BOUND_PERCENT = 1.0
"""Largest loss that an INT8 artefact should have."""

SCORES = (0.3, 0.4, 0.5, 0.6, 0.7)
SCORES_SECOND = (0.45, 0.55, 0.65, 0.75)

console = _report.console()


class Variant(NamedTuple):
    """One way to run a system; `name` is what the records are compared by."""

    system: str
    engine: str
    precision: str

    @property
    def name(self) -> str:
        return FLOAT if self.precision == "fp32" else f"{self.engine} {self.precision}"


def variants_of(systems: Sequence[str], engines: Sequence[str]) -> list[Variant]:
    """Float first. Raises ConfigError for a system without a network of ours."""
    for system in systems:
        parts = parts_of(system)
        if parts.codec is not None or not (parts.scene or parts.fusion):
            raise ConfigError("a system without a network has no INT8", got=system, allowed="scene, fnet, smc, both")
    pairs = [(FLOAT_ENGINE, "fp32"), *((engine, "int8") for engine in engines)]
    return [Variant(system, *pair) for system in systems for pair in pairs]


def settings_with(coding: Coding, stride: int) -> Settings:
    data = data_folder() / "models"
    return Settings(
        coding=coding,
        limit=None,
        detect_width=960,
        action_width=320,
        detect_stride=stride,
        track_stride=stride,
        quality_stride=stride,
        detector=data / "yolox_nano.onnx",
        second_judge=data / "FastestDet.onnx",
        segmenter=data / "deeplabv3_mnv2_pascal_uint8.tflite",
        action_bundles={name: name.replace("_", "-") for name in ACTION_SETS},
        confident=SCORES,
        confident_second=SCORES_SECOND,
    )


def jobs_of(
    clips: Sequence[Clip], variants: Sequence[Variant], crfs: Sequence[int], settings: Settings
) -> Iterator[Job]:
    """Clip by clip, the originals first; within a clip, variant by variant, so that networks stay open."""
    for clip in clips:
        frames = f"{settings.frames(clip)}/{settings.detect_stride}"
        yield Job(f"{clip.name}|{ORIGINAL}|{frames}", clip, ORIGINAL, None, settings)
        for variant in variants:
            coding = replace(settings.coding, engine=variant.engine, precision=variant.precision)
            for crf in crfs:
                digests = ",".join(value[:16] for value in bundle_digests(variant.system, coding).values())
                key = "|".join([clip.name, variant.system, variant.name, str(crf), frames, digests])
                yield Job(key, clip, variant.system, crf, replace(settings, coding=coding))


def losses(
    records: Sequence[Mapping[str, Any]], system: str, engines: Sequence[str], seed: int
) -> list[dict[str, Any]]:
    """BD-rate against float32, for each engine, group of clips and metric, on the clips that both have whole."""
    found = []
    for engine in engines:
        name = Variant(system, engine, "int8").name
        mine = [record for record in records if record["crf"] is None or record["variant"] in (FLOAT, name)]
        mine = [record for record in mine if record["crf"] is None or record["system"] == system]
        named = [{**record, "system": record.get("variant", ORIGINAL)} for record in mine]
        there = {record["clip"] for record in named if record["system"] == name}
        for group in summarise([record for record in named if record["clip"] in there], seed=seed, anchor=FLOAT):
            for delta in group["deltas"]:
                found.append({**delta, "system": system, "engine": engine, "group": group["group"]})
    return found


def show(found: Sequence[Mapping[str, Any]]) -> None:
    title = "INT8 against float32: rate at equal score, %; score at equal rate (95 % intervals over parts)"
    table = Table(title=title, title_justify="left")
    for column in ("system", "engine", "clips", "metric", "BD-rate", "interval", "BD-score", "interval", "why not"):
        table.add_column(column)
    for row in found:
        cells: list[str] = []
        for delta, digits in ((row["bd_rate_percent"], 2), (row["bd_score"], 4)):
            cells.append("-" if delta["value"] is None else f"{delta['value']:+.{digits}f}")
            band = delta["interval95"]
            cells.append("-" if band is None else f"{band[0]:+.{digits}f} .. {band[1]:+.{digits}f}")
        clips, reason = f"{row['group']} ({row['clips']})", row["bd_rate_percent"]["reason"]
        table.add_row(row["system"], row["engine"], clips, row["metric"], *cells, reason)
    console.print(table)


def run(
    clips: Annotated[str, typer.Option(help="Categories or patterns, comma separated.")] = "mot,vos,traffic,pedestrian",
    crfs: Annotated[str, typer.Option(help="Of x264; four at least.")] = "35,39,43,47,51",
    systems: Annotated[str, typer.Option(help="scene, fnet, smc, both.")] = "scene,smc",
    engines: Annotated[str, typer.Option(help="LiteRT's artefacts are made for 960x540 alone.")] = "openvino,onnx",
    parts: Annotated[int, typer.Option(min=1, help="Parts of each clip, evenly spread.")] = 3,
    frames: Annotated[int, typer.Option(min=1, help="Frames of a part: a GOP.")] = 30,
    stride: Annotated[int, typer.Option(min=1, help="Pictures are judged every so many frames.")] = 3,
    bundle: Annotated[str, typer.Option(help="The shipped SMC bundle.")] = "smc-s",
    run_folder: Annotated[
        Path | None, typer.Option("--run", help="The training run of the SMC bundle, for its float32.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of records.jsonl.")] = Path("runs/int8_loss"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
) -> None:
    """Measure what INT8 loses in the tasks."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    report = _report.envelope("int8_loss", seed=seed)
    names, runtimes = systems.split(","), engines.split(",")
    variants = variants_of(names, runtimes)
    if run_folder is None and any(parts_of(name).fusion for name in names):
        raise ConfigError("SMC's float32 artefact is made of its run", hint="Name it with --run, or leave SMC out.")
    records, skipped = Records(out / "records.jsonl"), list[str]()
    with ExitStack() as stack:
        smc = None
        if run_folder is not None:
            smc = str(stack.enter_context(smc_with_float(bundle, run_folder)).path)
        settings = settings_with(Coding(smc=smc), stride)
        chosen = [part for clip in find_clips(clips.split(",")) for part in parts_of_clip(clip, parts, frames)]
        jobs = list(jobs_of(chosen, variants, _report.numbers(crfs), settings))
        for job in track(jobs, "measuring", console=console, transient=True):
            if job.key in records.by_key:
                continue
            original = records.by_key.get(f"{job.clip.name}|{ORIGINAL}|{settings.frames(job.clip)}/{stride}")
            try:
                record = measure(job, original)
            except EngineError as error:
                skipped.append(f"{job.key}: {error}")
                continue
            coding = job.settings.coding
            if job.crf is not None:
                record["variant"] = Variant(job.system, str(coding.engine), coding.precision).name
            records.add(record)
    measured = records.of(jobs)
    found = [row for name in names for row in losses(measured, name, runtimes, seed)]
    show(found)
    for line in skipped:
        console.print(f"left out: {line}", highlight=False)
    for key in ("machine", "command"):
        console.print(f"{key}: {report[key]}", highlight=False, soft_wrap=True)
    _report.write_json(json_file, report | {"losses": found, "skipped": skipped, "bound_percent": BOUND_PERCENT})


def main() -> None:
    _report.command(run, EXAMPLE)


if __name__ == "__main__":
    main()
