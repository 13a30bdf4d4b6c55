"""Bitrate against accuracy on the development clips: x264 alone, with SCENE, F-Net, SMC, both; and other codecs.

    python -m benchmarks.rate_accuracy --clips mot --crfs 31,37,43 --systems x264,both --limit 60

Every byte is counted. Every measurement is one line of OUT/records.jsonl, so an interrupted run goes on where it was;
several runs with other clips or systems may write to one file at a time, and whichever runs last reports them all.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import _report, second_judge
from benchmarks.clips import ACTION_SETS, Clip, data_folder, find_clips, has_masks
from benchmarks.measure import CONFIDENT, ORIGINAL, Job, Settings, measure
from benchmarks.metrics import IOU
from benchmarks.plots import draw
from benchmarks.summary import ANCHOR, summarise
from benchmarks.systems import SYSTEMS, Coding, bundle_digests, parts_of, settings_of
from benchmarks.tables import show
from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import RunError, SceneEdgeError

EXAMPLE = "Example: python -m benchmarks.rate_accuracy --clips mot,vos --systems x264,both --limit 60"

SCORING = 3
"""Raise this when a change makes old records wrong; they are then measured anew."""

console = _report.console()


@dataclass(frozen=True)
class Plan:
    """What is to be measured: first the originals, whose boxes the others are compared with."""

    originals: tuple[Job, ...]
    coded: tuple[Job, ...]


def digest_of(spec: str) -> str:
    """Digest of a bundle by name or folder, or of a single file."""
    path = Path(spec)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else Bundle.open(spec).digest.hex()


def is_judged(clip: Clip) -> bool:
    """Whether a task is run on the clip, and so on its original as well."""
    return clip.has_boxes or clip.is_action


def make_plan(clips: Sequence[Clip], systems: Sequence[str], crfs: Sequence[int], settings: Settings) -> Plan:
    """Jobs in the order of the clips, so that a worker keeps a clip's pictures for its next job.

    A job's key holds everything that shapes its numbers. Raises BundleError or ConfigError before anything runs.
    """
    detector = digest_of(str(settings.detector)) if any(clip.has_boxes for clip in clips) else ""
    actions = {
        name: digest_of(bundle)
        for name, bundle in settings.action_bundles.items()
        if any(clip.category == name for clip in clips)
    }
    judges = [digest_of(str(path)) for path in (settings.second_judge, settings.segmenter)]
    coders = {system: coder_of(system, settings.coding) for system in systems}

    def job(clip: Clip, system: str, crf: int | None) -> Job:
        shape: dict[str, Any] = {
            "scoring": SCORING,
            "clip": [clip.name, clip.path.stat().st_size, settings.frames(clip), settings.width(clip)],
            "stride": settings.stride(clip) if clip.has_boxes else None,
            "judge": detector if clip.has_boxes else actions.get(clip.category),
        }
        if clip.has_boxes:
            shape["judges"] = judges
            if settings.confident != (CONFIDENT,):
                (shape["confident"],) = settings.confident
        if crf is not None:
            shape["coder"] = coders[system](crf)
            shape["quality_stride"] = None if clip.is_action else settings.quality_stride
        digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]
        return Job(f"{clip.name}|{system}|{crf}|{digest}", clip, system, crf, settings)

    return Plan(
        tuple(job(clip, ORIGINAL, None) for clip in clips if is_judged(clip)),
        tuple(job(clip, system, crf) for clip in clips for system in systems for crf in crfs),
    )


def coder_of(system: str, coding: Coding) -> Callable[[int], list[Any]]:
    """Rung -> all that shapes what a system makes of the same pictures. Raises BundleError or ConfigError."""
    parts = parts_of(system)
    codec = parts.codec
    if codec is not None and not parts.scene:
        return lambda crf: [crf, coding.gop, codec.arguments(crf, coding.gop)]
    digests = bundle_digests(system, coding)
    settings = settings_of(system, coding)
    # how a camera's SCENE follows the rung changed once
    beside: list[Any] = [text for text in (parts.plain_filter, "by rung" if parts.scene else None) if text]
    if codec is not None:
        return lambda crf: [crf, coding.gop, codec.arguments(crf, coding.gop), digests, *settings, *beside]
    return lambda crf: [crf, coding.gop, coding.preset, digests, *settings, *beside]


class Records:
    """The lines measured so far, by key. A line that a crash cut short is measured again.

    Several processes may add to one file: a line is one write to a file opened for appending.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.by_key: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self.read()
        if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            self._append(b"\n")

    def read(self) -> None:
        """Take what stands in the file, whoever wrote it."""
        for line in self._path.read_text().splitlines() if self._path.exists() else []:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            self.by_key[record["key"]] = record

    def add(self, record: dict[str, Any]) -> None:
        self.by_key[record["key"]] = record
        self._append(json.dumps(record).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def missing(self, jobs: Sequence[Job]) -> list[Job]:
        return [job for job in jobs if job.key not in self.by_key]

    def of(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        return [self.by_key[job.key] for job in jobs if job.key in self.by_key]


CODEC_COST = {"x264-veryfast": 25, "x265": 55, "svtav1": 35, "vvenc": 450}
"""Milliseconds of one core for a million samples, decoding included; VVenC at mid rates, which it spends by the bit."""


def expected_cost(job: Job) -> float:
    """Rough milliseconds of one core: for the order of magnitude of what is left, nothing else."""
    settings, clip, parts = job.settings, job.clip, SYSTEMS.get(job.system)
    frames, megapixels = settings.frames(clip), settings.width(clip) ** 2 * clip.height / clip.width / 1e6
    cost = 0.0
    if job.crf is not None and parts is not None:
        cost += frames * megapixels * CODEC_COST.get(job.system, 10)
        cost += frames * megapixels * (45 * parts.scene + 50 * parts.semantics + 45 * parts.fusion)
        cost += 0 if clip.is_action else frames / settings.quality_stride * megapixels * 100
    if clip.has_boxes:
        tiles = 2 if clip.width >= 1.5 * clip.height else 1
        cost += frames / settings.stride(clip) * 45 * tiles + frames / settings.detect_stride * 10 * tiles
    if has_masks(clip):
        cost += frames / settings.detect_stride * 150
    return cost + 100


class Meter:
    """Progress with the time that is left, weighted by expected cost: a bar on a terminal, else a line now and then."""

    def __init__(self, jobs: Sequence[Job], quiet_s: float = 30.0) -> None:
        self._left, self._total = sum(map(expected_cost, jobs)), sum(map(expected_cost, jobs))
        self._done, self._count = 0, len(jobs)
        self._started_s = self._said_s = time.monotonic()
        self._quiet_s = quiet_s
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, TextColumn("ETA {task.fields[eta]}"), console=console)
        self._task = self._bar.add_task("measuring", total=len(jobs), eta="?")

    @contextmanager
    def shown(self) -> Iterator[None]:
        if not console.is_terminal:
            yield
            return
        with self._bar:
            yield

    @property
    def eta(self) -> str:
        spent, worked = time.monotonic() - self._started_s, self._total - self._left
        minutes = spent / worked * self._left / 60 if worked > 0 else 0.0
        return f"{minutes:.0f} min" if worked > 0 else "?"

    def step(self, job: Job) -> None:
        self._left -= expected_cost(job)
        self._done += 1
        self._bar.update(self._task, advance=1, eta=self.eta, description=f"{job.clip.category} {job.system}")
        now = time.monotonic()
        if not console.is_terminal and now - self._said_s >= self._quiet_s:
            self._said_s = now
            console.print(f"{self._done} of {self._count} measured, ETA {self.eta}", highlight=False)


def run_jobs(
    jobs: Sequence[Job], records: Records, references: Mapping[str, Any], workers: int, meter: Meter
) -> list[str]:
    """Measure these jobs; returns a line for each that failed. An interrupt leaves only whole lines behind."""
    failures: list[str] = []
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_single_threaded)
    try:
        waiting = iter(jobs)
        running: dict[Future[dict[str, Any]], Job] = {}
        while True:
            # Few in flight: a reference holds a clip's boxes, and jobs stay in the order of the clips.
            while len(running) < workers * 2 and (job := next(waiting, None)) is not None:
                reference = references.get(job.clip.name)
                if job.crf is not None and is_judged(job.clip) and reference is None:
                    failures.append(f"{job.clip.name} {job.system} CRF {job.crf}: its original was not measured")
                    meter.step(job)
                    continue
                running[pool.submit(measure, job, reference)] = job
            if not running:
                return failures
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                try:
                    records.add(future.result())
                except BrokenProcessPool as error:
                    raise RunError("a worker process died", hint="Out of memory? Try --workers 1.") from error
                except SceneEdgeError as error:
                    failures.append(f"{job.clip.name} {job.system} CRF {job.crf}: {error}")
                meter.step(job)
    except BaseException:
        # Whoever interrupts a process group interrupts us twice: the second must not catch the pool half shut.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for child in active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _single_threaded() -> None:
    """As many processes as cores: threads of their own would only get in each other's way. The parent takes Ctrl-C."""
    import cv2

    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def show_costs(jobs: Sequence[Job]) -> None:
    """Expected minutes of one core by system and category, for who wants to split a run."""
    categories = sorted({job.clip.category for job in jobs})
    table = Table(title="minutes of one core, roughly", title_justify="left")
    for title in ("system", *categories, "all"):
        table.add_column(title, justify="left" if title == "system" else "right")
    for system in dict.fromkeys(job.system for job in jobs):
        mine = [job for job in jobs if job.system == system]
        parts = [[job for job in mine if job.clip.category == category] for category in categories]
        table.add_row(system, *(f"{sum(map(expected_cost, part)) / 60_000:.1f}" for part in (*parts, mine)))
    console.print(table)


def described(settings: Settings) -> dict[str, Any]:
    """The settings for the report: of paths no more than the name."""
    plain = asdict(settings)
    coding = {key: value for key, value in plain.pop("coding").items() if key not in ("crf", "zoo")}
    files = {name: plain[name].name for name in ("detector", "second_judge", "segmenter")}
    return {
        **plain,
        **coding,
        **files,
        "confident_original": CONFIDENT,
        "confident_second": second_judge.CONFIDENT,
        "iou": IOU,
    }


def run(
    clips: Annotated[
        str, typer.Option(help="Categories or patterns, comma separated: mot, vos/park*, action_*.")
    ] = "*",
    crfs: Annotated[str, typer.Option(help="CRFs of x264; other codecs take what costs about as much.")] = (
        "27,31,35,39,43,47"
    ),
    systems: Annotated[str, typer.Option(help="Which systems to compare.")] = ",".join(SYSTEMS),
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many frames of each clip.")] = None,
    detect_width: Annotated[int, typer.Option(min=64, help="Wider clips are scaled down before coding.")] = 960,
    action_width: Annotated[int, typer.Option(min=64, help="The same for action clips.")] = 320,
    frames_stride: Annotated[int, typer.Option(min=1, help="Look for boxes in every so many frames.")] = 5,
    track_stride: Annotated[int, typer.Option(min=1, help="The same where tracks are scored.")] = 2,
    quality_stride: Annotated[int, typer.Option(min=1, help="VMAF and MS-SSIM of every so many frames.")] = 5,
    gop: Annotated[int, typer.Option(min=1, help="Frames from keyframe to keyframe, for all systems.")] = 30,
    preset: Annotated[str, typer.Option(help="Preset of the camera's x264.")] = "superfast",
    zoo: Annotated[Path | None, typer.Option(help="Folder of the bundles; default: the shipped ones.")] = None,
    smc: Annotated[str | None, typer.Option(help="SMC bundle, by name or folder; default: the camera's.")] = None,
    semantic_quality: Annotated[int | None, typer.Option(help="Quality step of SMC; default: the camera's.")] = None,
    max_share: Annotated[float | None, typer.Option(help="SMC's share of the bytes; default: the camera's.")] = None,
    anchor: Annotated[str, typer.Option(help="What the others are compared with.")] = ANCHOR,
    detector: Annotated[Path | None, typer.Option(help="YOLOX-style ONNX; default: yolox_nano of the data.")] = None,
    confident: Annotated[
        float,
        typer.Option(min=0.01, max=0.99, help="From which score on boxes of coded pictures agree; of originals 0.5."),
    ] = CONFIDENT,
    estimate: Annotated[bool, typer.Option("--estimate", help="Say what it would take, and measure nothing.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes of one thread each.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of records.jsonl, report.json and plot.png.")] = Path(
        "runs/rate_accuracy"
    ),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here as well.")] = None,
) -> None:
    """Compare systems by bitrate and accuracy; print tables, write JSON and a plot."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    report = _report.envelope("rate_accuracy", seed=seed)
    settings = Settings(
        coding=Coding(gop=gop, preset=preset, zoo=zoo, smc=smc, semantic_quality=semantic_quality, max_share=max_share),
        limit=limit,
        detect_width=detect_width,
        action_width=action_width,
        detect_stride=frames_stride,
        track_stride=track_stride,
        quality_stride=quality_stride,
        detector=detector or data_folder() / "models" / "yolox_nano.onnx",
        second_judge=data_folder() / "models" / "FastestDet.onnx",
        segmenter=data_folder() / "models" / "deeplabv3_mnv2_pascal_uint8.tflite",
        action_bundles={name: name.replace("_", "-") for name in ACTION_SETS},
        confident=(confident,),
    )
    chosen = find_clips([part.strip() for part in clips.split(",")])
    names = [part.strip() for part in systems.split(",")]
    plan = make_plan(chosen, names, _report.numbers(crfs), settings)
    records = Records(out / "records.jsonl")
    todo = records.missing(plan.originals), records.missing(plan.coded)
    console.print(f"{len(plan.coded) - len(todo[1])} of {len(plan.coded)} measurements are there already")
    if estimate:
        show_costs([*todo[0], *todo[1]])
        return
    started_s = time.monotonic()
    meter = Meter([*todo[0], *todo[1]])
    try:
        with meter.shown():
            failures = run_jobs(todo[0], records, {}, workers, meter)
            references = {record["clip"]: record for record in records.of(plan.originals)}
            failures += run_jobs(todo[1], records, references, workers, meter)
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from here")
        raise typer.Exit(130) from None
    records.read()
    measured = records.of(plan.originals) + records.of(plan.coded)
    report |= {
        "settings": described(settings),
        "anchor": anchor,
        "bundles": {name: bundle_digests(name, settings.coding) for name in names},
        "networks": {name: settings_of(name, settings.coding) for name in names if parts_of(name).codec is None},
        "codecs": {name: coder_of(name, settings.coding)(35)[-1] for name in names if parts_of(name).codec},
        "wall_s": round(time.monotonic() - started_s, 1),
        "measured_now": len(todo[0]) + len(todo[1]) - len(failures),
        "failures": failures,
        "groups": summarise(measured, seed=seed, anchor=anchor),
        "records": [
            {key: value for key, value in record.items() if not key.startswith("detections")} for record in measured
        ],
    }
    show(report["groups"], console)
    draw(report["groups"], out / "plot.png")
    _report.write_all(out, json_file, report)
    console.print(f"written: {out / 'report.json'}, {out / 'plot.png'}")
    for line in failures:
        console.print(f"[red]failed[/red] {line}")
    if failures:
        raise typer.Exit(1)


def main() -> None:
    _report.command(run, EXAMPLE)


if __name__ == "__main__":
    main()
