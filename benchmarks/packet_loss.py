"""What lost semantic packets cost, with the video intact; and whether a decoder may join at any key packet.

    python -m benchmarks.packet_loss --clips mot,vos --crfs 35,43

A packet is one GOP's semantics and state ends with the GOP, so a clip is decoded twice, with every packet and with
none, and a pattern of losses takes each GOP from the one or the other. That a decoder agrees is checked on a real loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import track
from rich.table import Table

from benchmarks import _report
from benchmarks.clips import data_folder, find_clips
from benchmarks.measure import boxes_of, total_of
from benchmarks.metrics import Boxes, Counts
from benchmarks.systems import Coding, camera_config, decoder_for, encode, fuse_without_semantics
from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import ConfigError, RunError
from scene_edge.codec.media import read_video
from scene_edge.codec.planes import Planes
from scene_edge.edge.clip import EncodedClip
from scene_edge.server.analytics.detector import open_detector
from scene_edge.server.analytics.seams import Detector
from scene_edge.server.fusion import FusionDecoder
from scene_edge.server.recording import decode_clip

EXAMPLE = "Example: python -m benchmarks.packet_loss --clips mot,vos --crfs 35,43 --json packet_loss.json"

PEAK = 255.0

console = _report.console()


@dataclass(frozen=True)
class Score:
    """What pictures are worth: boxes against those of the originals, and the squared error of their luma."""

    boxes: Counts = field(default_factory=Counts)
    error: float = 0.0
    samples: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(self.boxes + other.boxes, self.error + other.error, self.samples + other.samples)

    @property
    def f1(self) -> float | None:
        """In percent."""
        return None if self.boxes.f1 is None else 100 * self.boxes.f1

    @property
    def psnr(self) -> float | None:
        """Of the mean error of all pictures, in dB; None where there is none."""
        return 10 * float(np.log10(PEAK**2 * self.samples / self.error)) if self.error else None


@dataclass(frozen=True)
class Gop:
    """One GOP's scores: with its packet, without it (F-Net alone), and as plain H.264."""

    received: Score
    lost: Score
    plain: Score


class Judge:
    """Scores pictures against their originals; boxes are looked for in every `stride`-th."""

    def __init__(self, detector: Detector, originals: Sequence[Planes], stride: int) -> None:
        self._detector, self._originals, self._stride = detector, originals, stride
        self._truth = self._boxes(originals, range(len(originals)))

    def score(self, pictures: Sequence[Planes], frames: range) -> Score:
        """The score of these frames of the clip."""
        error = 0.0
        for frame in frames:
            error += float(np.square(pictures[frame].y.astype(np.float64) - self._originals[frame].y).sum())
        found = self._boxes(pictures, frames)
        return Score(total_of(found, self._truth), error, len(frames) * self._originals[0].y.size)

    def _boxes(self, pictures: Sequence[Planes], frames: range) -> dict[int, Boxes]:
        due = [frame for frame in frames if frame % self._stride == 0]
        return {frame: boxes_of(self._detector.detect(pictures[frame]).folded()) for frame in due}


def random_losses(gops: int, percent: float, draws: int, seed: int) -> NDArray[np.bool_]:
    """Which packets are lost in each draw: bool [draws, gops], each packet on its own."""
    return np.random.default_rng(seed).random((draws, gops)) < percent / 100


def total_with(gops: Sequence[Gop], lost: Sequence[bool] | NDArray[np.bool_]) -> Score:
    """The score of all GOPs when these packets are lost."""
    return sum((gop.lost if gone else gop.received for gop, gone in zip(gops, lost, strict=True)), Score())


def loss_curve(gops: Sequence[Gop], percents: Sequence[float], draws: int, seed: int) -> list[dict[str, Any]]:
    """For each loss: mean of F1 and PSNR over the draws, and the range that holds 95 % of them."""
    rows = []
    for percent in percents:
        totals = [total_with(gops, lost) for lost in random_losses(len(gops), percent, draws, seed)]
        row: dict[str, Any] = {"loss_percent": percent}
        for name in ("f1", "psnr"):
            values = [value for total in totals if (value := getattr(total, name)) is not None]
            row[name] = float(np.mean(values)) if values else None
            row[f"{name}_range95"] = np.quantile(values, [0.025, 0.975]).tolist() if values else None
        rows.append(row)
    return rows


def gops_of(clip: EncodedClip) -> list[range]:
    """Frames of each GOP. Raises RunError where its semantics are not one packet."""
    starts = [i for i, unit in enumerate(clip.access_units) if unit.keyframe]
    frames = [range(*ends) for ends in zip(starts, [*starts[1:], len(clip.access_units)], strict=True)]
    packets = [range(packet.first_seq, packet.last_seq + 1) for packet in clip.packets]
    if packets != frames:
        raise RunError("a packet is not one GOP", got=packets[:3], allowed=frames[:3])
    return frames


def check_joins(clip: EncodedClip, whole: Sequence[Planes], decoder: FusionDecoder) -> int:
    """Decode from each key packet on; the pictures must be those of the whole clip. Returns how many joins there were.

    From the last to the first, so that `decoder`, which must be new, has never seen what comes before a join.
    """
    starts = [frames.start for frames in gops_of(clip)[1:]]
    for start in reversed(starts):
        packets = [packet for packet in clip.packets if packet.first_seq >= start]
        joined = decode_clip(replace(clip, access_units=clip.access_units[start:], packets=packets), decoder=decoder)
        _same(joined, whole[start:], f"joined at frame {start}")
    return len(starts)


def check_loss(clip: EncodedClip, whole: Sequence[Planes], without: Sequence[Planes], decoder: FusionDecoder) -> None:
    """Really lose every second packet: each GOP must be as with all packets, or as with none. Raises RunError."""
    frames = gops_of(clip)
    kept = replace(clip, packets=clip.packets[::2])
    expected = [(whole if index % 2 == 0 else without)[i] for index, gop in enumerate(frames) for i in gop]
    _same(decode_clip(kept, decoder=decoder), expected, "every second packet lost")


def _same(found: Sequence[Planes], expected: Sequence[Planes], what: str) -> None:
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        if not all(map(np.array_equal, (one.y, one.u, one.v), (other.y, other.u, other.v))):
            raise RunError("pictures differ from those of the whole clip", got=f"{what}: picture {index}")


def measure_clip(
    pictures: Sequence[Planes], fps: float, coding: Coding, judge: Judge, fresh: FusionDecoder
) -> tuple[list[Gop], int]:
    """Scores of each GOP of a clip, and how many joins were exact. Raises RunError where a promise is broken."""
    clip = encode("smc", pictures, fps, coding)
    decoder = decoder_for(clip, coding)
    plain = decode_clip(clip, lossy=True)
    whole = decode_clip(clip, decoder=decoder)
    without = fuse_without_semantics(clip.access_units, decoder)
    joins = check_joins(clip, whole, fresh)
    check_loss(clip, whole, without, decoder)
    gops = [Gop(*(judge.score(seen, frames) for seen in (whole, without, plain))) for frames in gops_of(clip)]
    return gops, joins


def show(results: Sequence[Mapping[str, Any]]) -> None:
    table = Table(title="semantic packets lost, video intact; [95 % of the draws]", title_justify="left")
    for title in ("CRF", "lost", "F1 agreement %", "PSNR of luma, dB"):
        table.add_column(title, justify="right")
    for result in results:
        for row in result["curve"]:
            cells = [f"{row['loss_percent']:g} %", *(_cell(row, name) for name in ("f1", "psnr"))]
            table.add_row(str(result["crf"]), *cells)
        table.add_row("", "plain x264", *(_number(result["plain"][name]) for name in ("f1", "psnr")), end_section=True)
    console.print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _cell(row: Mapping[str, Any], name: str) -> str:
    band = row[f"{name}_range95"]
    return _number(row[name]) + (f" [{band[0]:.2f}, {band[1]:.2f}]" if band and band[0] != band[1] else "")


def _percents(text: str) -> list[float]:
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError as error:
        raise ConfigError("not a list of percentages", got=text, allowed="such as 0,1,5,20") from error
    if not all(0 <= value <= 100 for value in found):
        raise ConfigError("a percentage is out of range", got=text, allowed="0..100")
    return found


def run(
    clips: Annotated[str, typer.Option(help="Categories or patterns, comma separated.")] = "mot,vos",
    crfs: Annotated[str, typer.Option(help="Constant qualities of x264.")] = "35,43",
    losses: Annotated[str, typer.Option(help="Percent of the packets; 100 is F-Net alone.")] = "0,1,5,20,100",
    draws: Annotated[int, typer.Option(min=1, help="Patterns of losses for each percentage.")] = 1000,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many frames of each clip.")] = None,
    width: Annotated[int, typer.Option(min=64, help="Wider clips are scaled down before coding.")] = 960,
    stride: Annotated[int, typer.Option(min=1, help="Look for boxes in every so many frames.")] = 5,
    gop: Annotated[int, typer.Option(min=1, help="Frames from keyframe to keyframe.")] = 30,
    preset: Annotated[str, typer.Option(help="Preset of x264.")] = Coding.preset,
    zoo: Annotated[Path | None, typer.Option(help="Folder of the bundles; default: the shipped ones.")] = None,
    smc: Annotated[str | None, typer.Option(help="SMC bundle, by name or folder; default: the camera's.")] = None,
    seed: Annotated[int, typer.Option(help="Of the losses.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
) -> None:
    """Score fused pictures under packet loss; check joins at every key packet, and that a loss costs one GOP."""
    report = _report.envelope("packet_loss", seed=seed)
    percents, chosen, qualities = _percents(losses), find_clips(clips.split(",")), _report.numbers(crfs)
    bundle = camera_config("smc", Coding(zoo=zoo, smc=smc)).semantics.bundle
    detector = open_detector(data_folder() / "models" / "yolox_nano.onnx", threads=1)
    gops: dict[int, list[Gop]] = {crf: [] for crf in qualities}
    joins = 0
    for source in track(chosen, "clips", console=console):
        size = min(width, source.width) // 2 * 2
        pictures = [planes for planes, _ in read_video(source.path, width=size, limit=limit)]
        judge = Judge(detector, pictures, stride)
        for crf in qualities:
            fresh = FusionDecoder(Bundle.open(bundle, zoo=zoo), pictures[0].width, pictures[0].height, threads=1)
            coding = Coding(crf=crf, gop=gop, preset=preset, zoo=zoo, smc=smc)
            found, joined = measure_clip(pictures, source.fps, coding, judge, fresh)
            fresh.close()
            gops[crf] += found
            joins += joined
    results = []
    for crf, found in gops.items():
        plain = sum((one.plain for one in found), Score())
        curve = loss_curve(found, percents, draws, seed)
        results.append({"crf": crf, "gops": len(found), "curve": curve, "plain": {"f1": plain.f1, "psnr": plain.psnr}})
    show(results)
    console.print(f"{joins} joins at key packets: every picture the same as in the whole clip")
    settings = {"gop": gop, "preset": preset, "width": width, "stride": stride, "draws": draws, "limit": limit}
    names = [source.name for source in chosen]
    _report.write_json(json_file, report | {"settings": settings, "clips": names, "joins": joins, "results": results})


def main() -> None:
    _report.command(run, EXAMPLE)


if __name__ == "__main__":
    main()
