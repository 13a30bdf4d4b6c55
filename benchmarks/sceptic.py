"""The baseline that a sceptic asks for: the video as it is, and the action recogniser refitted to compressed video.

    python -m benchmarks.sceptic --sets fight --crfs 35,43,51

The trunk stays frozen and the classifier is fitted in closed form, as `scene-edge train action` does it: once on the
training clips as they are, once on the same clips coded by x264 at random CRFs, once on both. Each is then tested on
the development clips of each system at each CRF.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.progress import track
from rich.table import Table

from benchmarks import _report
from benchmarks.clips import data_folder
from benchmarks.curves import interval, resamples
from benchmarks.rate_accuracy import coder_of
from benchmarks.systems import Coding, run_system
from scene_edge.codec.errors import UsageError
from scene_edge.codec.media import probe, read_video
from scene_edge.codec.planes import Planes
from scene_edge.models.action import ActionNet
from scene_edge.models.action_clips import CACHE_HEIGHT, CACHE_WIDTH, MAX_FPS, SETS, Clip, plain
from scene_edge.models.pictures import resize_plane
from scene_edge.models.train_action import F32, VIEWS, fit

EXAMPLE = "Example: python -m benchmarks.sceptic --sets arid,fight --crfs 35,39,43,47,51 --systems x264,smc"

DRAWS = 1000

console = _report.console()


@dataclass(frozen=True)
class Labelled:
    """One entry of the data's index, of an action set."""

    file: str
    label: str
    group: str


class Features:
    """Features of clips as a system shows them, [views, FEATURES] each, kept in a folder from run to run."""

    def __init__(self, data: Path, cache: Path, width: int, coding: Coding, labels: Sequence[str]) -> None:
        self._data, self._cache, self._width, self._coding = data, cache, width, coding
        self._labels = list(labels)
        self._net = ActionNet(len(labels))
        self._net.backbone.load_fastestdet(data / "models" / "FastestDet.onnx")
        self._net.eval()
        self._coders: dict[str, Callable[[int], list[Any]]] = {}
        self._clip: tuple[str, list[Planes], float] | None = None
        cache.mkdir(parents=True, exist_ok=True)

    def of(self, clip: Labelled, system: str | None, crf: int | None) -> tuple[F32, float]:
        """(features, kbit/s with all overhead); the originals without a system, at no rate."""
        coding = self._coding if crf is None else replace(self._coding, crf=crf)
        coder = None if system is None or crf is None else [system, *self._coder(system)(crf)]
        key = json.dumps([clip.file, self._width, coder], sort_keys=True)
        file = self._cache / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"
        if not file.is_file():
            features, kbps = self._measure(clip, system, coding)
            partial = file.with_suffix(f".{os.getpid()}.npz")
            np.savez(partial, x=features, kbps=kbps)
            partial.replace(file)
        with np.load(file) as arrays:
            return arrays["x"], float(arrays["kbps"])

    def _coder(self, system: str) -> Callable[[int], list[Any]]:
        if system not in self._coders:
            self._coders[system] = coder_of(system, self._coding)
        return self._coders[system]

    @torch.no_grad()
    def _measure(self, clip: Labelled, system: str | None, coding: Coding) -> tuple[F32, float]:
        pictures, fps = self._load(clip.file)
        kbps = 0.0
        if system is not None:
            output = run_system(system, pictures, fps, coding)
            kbps = output.bytes["total"] * 8 / 1000 / (len(pictures) / fps)
            pictures = output.pictures
        small = small_clip(pictures, fps, clip, self._labels.index(clip.label))
        with torch.autocast("cpu", torch.bfloat16):
            rows = [self._net.features(plain(small, *view)).float().flatten().numpy() for view in VIEWS]
        return np.stack(rows), kbps

    def _load(self, file: str) -> tuple[list[Planes], float]:
        """The last clip is kept: it is wanted at every CRF."""
        if self._clip is None or self._clip[0] != file:
            path = self._data / file
            info = probe(path)
            width = min(info.width, self._width) // 2 * 2
            self._clip = file, [planes for planes, _ in read_video(path, width=width)], info.fps
        return self._clip[1], self._clip[2]


def small_clip(pictures: Sequence[Planes], fps: float, clip: Labelled, label: int) -> Clip:
    """Pictures as the training of action networks takes them: at most MAX_FPS, shrunk to the size of its cache."""
    every = max(1, round(fps / MAX_FPS))
    kept = pictures[::every]

    def shrink(planes: Sequence[NDArray[np.uint8]], width: int, height: int) -> NDArray[np.uint8]:
        return np.stack([resize_plane(plane, width, height) for plane in planes])

    return Clip(
        clip.file,
        clip.group,
        label,
        fps / every,
        shrink([planes.y for planes in kept], CACHE_WIDTH, CACHE_HEIGHT),
        shrink([planes.u for planes in kept], CACHE_WIDTH // 2, CACHE_HEIGHT // 2),
        shrink([planes.v for planes in kept], CACHE_WIDTH // 2, CACHE_HEIGHT // 2),
    )


def listed(data: Path, name: str, split: str, limit: int | None) -> list[Labelled]:
    """The clips of an action set; with a limit so many of each label. Raises UsageError for a set there is not."""
    if name not in SETS:
        raise UsageError("no such action set", got=name, allowed=", ".join(SETS))
    entries = json.loads((data / "index.json").read_text())
    mine = [entry for entry in entries if entry["category"] == SETS[name] and entry["split"] == split]
    labels = sorted({entry["label"] for entry in mine})
    return [
        Labelled(entry["file"], entry["label"], str(entry["group"]))
        for label in labels
        for entry in [entry for entry in mine if entry["label"] == label][:limit]
    ]


def random_crfs(count: int, copies: int, low: int, high: int, seed: int) -> NDArray[np.int64]:
    """CRFs of the training clips, [count, copies], each of low..high as likely."""
    return np.random.default_rng(seed).integers(low, high + 1, (count, copies))


def answers(features: F32, weight: F32, bias: F32) -> NDArray[np.int64]:
    """The label of each clip, by the mean score over its views: [clips, views, FEATURES] -> [clips]."""
    return np.asarray((features @ weight.T + bias).mean(1).argmax(1), np.int64)


def compare(right: Mapping[str, NDArray[np.bool_]], seed: int) -> dict[str, Any]:
    """Top-1 in percent of each recogniser on the same clips with its interval, and what each gains over the first."""
    drawn = resamples(len(next(iter(right.values()))), seed=seed, draws=DRAWS)
    first = next(iter(right))
    report: dict[str, Any] = {}
    for name, hits in right.items():
        gain = hits.astype(float) - right[first]
        report[name] = {
            "top1": 100 * float(hits.mean()),
            "interval95": _band(hits.astype(float), drawn),
            "gain": 100 * float(gain.mean()),
            "gain_interval95": _band(gain, drawn),
        }
    return report


def _band(values: NDArray[np.float64], drawn: Sequence[Sequence[int]]) -> list[float] | None:
    band = interval([100 * float(values[list(clips)].mean()) for clips in drawn])
    return None if band is None else [band.low, band.high]


def recognisers(
    features: Features, clips: Sequence[Labelled], crfs: NDArray[np.int64], labels: Sequence[str], ridge: float
) -> dict[str, tuple[F32, F32]]:
    """Name of the training clips' form -> weight and bias of the classifier fitted to them."""
    originals: list[F32] = []
    compressed: list[F32] = []
    for index, clip in enumerate(track(clips, "training clips", console=console)):
        originals.append(features.of(clip, None, None)[0])
        compressed += [features.of(clip, "x264", int(crf))[0] for crf in crfs[index]]
    truth = [labels.index(clip.label) for clip in clips]
    copied = [label for label in truth for _ in range(crfs.shape[1])]
    return {
        "originals": fit(np.stack(originals), truth, labels, ridge),
        "compressed": fit(np.stack(compressed), copied, labels, ridge),
        "both": fit(np.stack(originals + compressed), truth + copied, labels, ridge),
    }


def points_of(systems: Sequence[str], crfs: Sequence[int]) -> Iterator[tuple[str | None, int | None]]:
    """What the development clips are shown as: originals, then each system at each CRF."""
    yield None, None
    yield from ((system, crf) for system in systems for crf in crfs)


def evaluate_set(
    features: Features,
    clips: Sequence[Labelled],
    fitted: Mapping[str, tuple[F32, F32]],
    points: Sequence[tuple[str | None, int | None]],
    labels: Sequence[str],
    seed: int,
) -> list[dict[str, Any]]:
    """Top-1 of each recogniser at each point."""
    seen: dict[tuple[str | None, int | None], list[tuple[F32, float]]] = {point: [] for point in points}
    for clip in track(clips, "development clips", console=console):
        for point in points:
            seen[point].append(features.of(clip, *point))
    truth = np.array([labels.index(clip.label) for clip in clips])
    rows = []
    for (system, crf), found in seen.items():
        stacked = np.stack([row for row, _ in found])
        right = {name: answers(stacked, *parameters) == truth for name, parameters in fitted.items()}
        kbps = float(np.mean([rate for _, rate in found]))
        rows.append({"system": system or "original", "crf": crf, "kbps": kbps, "top1": compare(right, seed)})
    return rows


def show(name: str, rows: Sequence[Mapping[str, Any]], clips: int) -> None:
    table = Table(title=f"{name}, {clips} development clips: top-1 % [95 % over clips]", title_justify="left")
    for title in ("system", "CRF", "kbit/s", *(f"fitted to {form}" for form in rows[0]["top1"]), "gain of compressed"):
        table.add_column(title, justify="left" if title == "system" else "right")
    for row in rows:
        cells = [_shown(one["top1"], one["interval95"], "") for one in row["top1"].values()]
        gain = row["top1"]["compressed"]
        cells.append(_shown(gain["gain"], gain["gain_interval95"], "+"))
        table.add_row(row["system"], str(row["crf"] or ""), f"{row['kbps']:.1f}" if row["kbps"] else "", *cells)
    console.print(table)


def _shown(value: float, band: Sequence[float] | None, sign: str) -> str:
    return f"{value:{sign}.1f}" + ("" if band is None else f" [{band[0]:{sign}.1f}, {band[1]:{sign}.1f}]")


def run(
    sets: Annotated[str, typer.Option(help="Action sets, comma separated.")] = ",".join(SETS),
    crfs: Annotated[str, typer.Option(help="Where the development clips are tested.")] = "31,35,39,43,47,51",
    systems: Annotated[str, typer.Option(help="What codes the development clips.")] = "x264",
    train_crfs: Annotated[str, typer.Option(help="Lowest and highest CRF of the training clips.")] = "31,51",
    copies: Annotated[int, typer.Option(min=1, help="Times that each training clip is compressed.")] = 2,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many clips of each label.")] = None,
    width: Annotated[int, typer.Option(min=64, help="Wider clips are scaled down before coding.")] = 320,
    gop: Annotated[int, typer.Option(min=1, help="Frames from keyframe to keyframe.")] = 30,
    preset: Annotated[str, typer.Option(help="Preset of x264.")] = Coding.preset,
    zoo: Annotated[Path | None, typer.Option(help="Folder of the bundles; default: the shipped ones.")] = None,
    smc: Annotated[str | None, typer.Option(help="SMC bundle, by name or folder; default: the camera's.")] = None,
    ridge: Annotated[float, typer.Option(min=1e-6, help="Of the regression, as in training.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of the training CRFs and of the bootstrap.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the features and of report.json.")] = Path("runs/sceptic"),
) -> None:
    """Refit the action recognisers to compressed clips, and test them beside those fitted to the originals."""
    torch.set_num_threads(1)
    report = _report.envelope("sceptic", seed=seed)
    data, bounds = data_folder(), _report.numbers(train_crfs)
    coding = Coding(gop=gop, preset=preset, zoo=zoo, smc=smc)
    points = list(points_of([part.strip() for part in systems.split(",")], _report.numbers(crfs)))
    results = []
    for name in sets.split(","):
        clips, dev = listed(data, name, "train", limit), listed(data, name, "dev", limit)
        labels = sorted({clip.label for clip in clips})
        features = Features(data, out / "features", width, coding, labels)
        drawn = random_crfs(len(clips), copies, bounds[0], bounds[-1], seed)
        fitted = recognisers(features, clips, drawn, labels, ridge)
        rows = evaluate_set(features, dev, fitted, points, labels, seed)
        show(name, rows, len(dev))
        results.append({"set": name, "labels": labels, "train_clips": len(clips), "dev_clips": len(dev), "rows": rows})
    settings = {"copies": copies, "train_crfs": bounds, "gop": gop, "preset": preset, "width": width, "ridge": ridge}
    _report.write_json(out / "report.json", report | {"settings": settings, "limit": limit, "results": results})
    console.print(f"written: {out / 'report.json'}")


def main() -> None:
    _report.command(run, EXAMPLE)


if __name__ == "__main__":
    main()
