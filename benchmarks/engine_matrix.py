"""Encode on engine A, decode on engine B, for all pairs: does every packet decode, and how far do fused pictures drift?

    python -m benchmarks.engine_matrix --clips mot,natural --run runs/smc-s

The entropy coder never depends on floats, so latents must be equal to the last integer whatever decodes them; what
may differ is S~, which both sides compute for themselves, and the pictures that F-Net makes of it. The camera's and the
server's own classes do the work, on the shipped INT8 artefacts and, with --run, on float32 ones of the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import track
from rich.table import Table

from benchmarks import _report
from benchmarks.clips import find_clips
from benchmarks.float_bundle import smc_with_float
from benchmarks.recordings import same_latents
from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import ConfigError, RunError
from scene_edge.codec.media import read_video
from scene_edge.codec.planes import Planes
from scene_edge.edge.clip import EncodedClip, encode_clip
from scene_edge.edge.settings import load_config
from scene_edge.server.fusion import FusionDecoder
from scene_edge.server.recording import DecodeReport, decode_clip

EXAMPLE = "Example: python -m benchmarks.engine_matrix --clips mot --crfs 43 --run runs/smc-s --json matrix.json"

PEAK = 255.0
SESSION_ID = 1

console = _report.console()


class Side(NamedTuple):
    """Where one end runs."""

    engine: str
    precision: str

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}"


SIDES = tuple(Side(engine, "int8") for engine in ("openvino", "onnx", "litert"))
FLOAT_SIDES = tuple(Side(engine, "fp32") for engine in ("openvino", "onnx"))


@dataclass
class Drift:
    """Squared errors of luma between two sequences of pictures, and the largest difference of any sample."""

    squares: float = 0.0
    samples: int = 0
    largest: int = 0

    def add(self, pictures: Sequence[Planes], others: Sequence[Planes]) -> None:
        for one, other in zip(pictures, others, strict=True):
            difference = one.y.astype(np.int32) - other.y
            self.squares += float(np.square(difference).sum())
            self.samples += difference.size
            planes = ((one.y, other.y), (one.u, other.u), (one.v, other.v))
            self.largest = max(self.largest, *(int(np.abs(a.astype(np.int32) - b).max()) for a, b in planes))

    @property
    def psnr(self) -> float:
        """In dB; infinite where all samples of luma are equal."""
        return float(10 * np.log10(PEAK**2 * self.samples / self.squares)) if self.squares else float("inf")


@dataclass
class Cell:
    """One pair of engines over all clips: fused pictures against the originals, against those of the decoder's own
    engine on both sides, and against those of the reference on both sides."""

    packets: int = 0
    nonzero: int = 0
    frames: int = 0
    original: Drift = field(default_factory=Drift)
    own: Drift = field(default_factory=Drift)
    reference: Drift = field(default_factory=Drift)

    def as_json(self) -> dict[str, Any]:
        result: dict[str, Any] = {"packets": self.packets, "frames": self.frames, "nonzero_latents": self.nonzero}
        for name in ("original", "own", "reference"):
            drift: Drift = getattr(self, name)
            psnr = drift.psnr
            result[name] = {"psnr": round(psnr, 2) if np.isfinite(psnr) else None, "largest": drift.largest}
        return result


Cells = dict[tuple[Side, Side], Cell]


def encode_on(
    bundle: Bundle, side: Side, pictures: Sequence[Planes], fps: float, crf: int, gop: int, quality: int
) -> EncodedClip:
    """What a camera codes whose Sem-Nets and Sem-Enc run there. Raises EngineError where they do not."""
    settings = [
        *(f"semantics.bundle={bundle.path}", f"semantics.engines=[{side.engine}]", "semantics.threads=1"),
        *(f"semantics.precision={side.precision}", f"semantics.quality={quality}", "scene.enabled=false"),
        *(f"video.crf={crf}", f"video.gop={gop}"),
    ]
    return encode_clip(pictures, fps, load_config("cpu", overrides=settings, environment={}), session_id=SESSION_ID)


def decode_on(decoder: FusionDecoder, clip: EncodedClip) -> list[Planes]:
    """What a server makes of it. Raises RunError if a packet or a picture was not used."""
    same_latents(clip, decoder.bundle)
    report = DecodeReport()
    pictures = decode_clip(clip, decoder=decoder, report=report)
    if report.faults or report.fused != len(clip.access_units):
        raise RunError(
            f"{decoder.engine} does not use all of a clip",
            got=f"{report.fused} of {len(clip.access_units)} pictures fused, faults {dict(report.faults)}",
        )
    return pictures


def differing(clip: EncodedClip, reference: EncodedClip) -> float:
    """Share of the integers of a clip's latents that are not those of the reference."""
    pairs = zip(clip.latents, reference.latents, strict=True)
    wrong: list[NDArray[np.bool_]] = [one != other for one, other in pairs]
    return float(np.mean(wrong))


def decoder_on(bundle: Bundle, side: Side, size: tuple[int, int]) -> FusionDecoder:
    """Raises RunError where the engine runs another precision."""
    decoder = FusionDecoder(bundle, *size, prefer=(side.engine,), precision=side.precision, threads=1)
    if decoder.session.precision != side.precision:
        raise RunError(f"{side} runs at another precision", got=decoder.session.precision)
    return decoder


def cross(
    bundle: Bundle,
    sides: Sequence[Side],
    pictures: Sequence[Planes],
    fps: float,
    *,
    crf: int,
    gop: int,
    quality: int,
    cells: Cells,
) -> dict[Side, float]:
    """One clip through every pair, into `cells`. Returns the share of each encoder's integers that is not the first's.

    The first side is the reference, with itself at both ends. Raises RunError where a packet does not decode, or the
    integers that a decoder reads are not those that were coded.
    """
    clips = {side: encode_on(bundle, side, pictures, fps, crf, gop, quality) for side in sides}
    streams = {tuple(unit.data for unit in clip.access_units) for clip in clips.values()}
    if len(streams) != 1:
        raise RunError("engines changed the H.264 stream", got=len(streams))
    decoded: dict[tuple[Side, Side], list[Planes]] = {}
    for receiver in sides:
        decoder = decoder_on(bundle, receiver, (pictures[0].width, pictures[0].height))
        for sender in sides:
            decoded[sender, receiver] = decode_on(decoder, clips[sender])
        decoder.close()
    reference = decoded[sides[0], sides[0]]
    for (sender, receiver), seen in decoded.items():
        cell = cells.setdefault((sender, receiver), Cell())
        cell.packets += len(clips[sender].packets)
        cell.nonzero += sum(int(np.count_nonzero(z)) for z in clips[sender].latents)
        cell.frames += len(seen)
        cell.original.add(seen, pictures)
        cell.own.add(seen, decoded[receiver, receiver])
        cell.reference.add(seen, reference)
    return {side: differing(clip, clips[sides[0]]) for side, clip in clips.items()}


def show(cells: Mapping[tuple[Side, Side], Cell], lossy: Drift, integers: Mapping[Side, float]) -> None:
    """A table of pairs. The first one is the reference."""
    first = next(iter(integers))
    title = f"all packets decode, latents equal to the last integer; H.264 alone: {lossy.psnr:.2f} dB"
    table = Table(title=title, title_justify="left")
    columns = ("encode on", "decode on", "packets", "not 0", "dB to original", "dB to decoder's own", "largest")
    for column in (*columns, f"dB to {first}", "largest"):
        table.add_column(column, justify="left" if column.endswith("code on") else "right")
    for (sender, receiver), cell in cells.items():
        drifts = [text for drift in (cell.own, cell.reference) for text in (f"{drift.psnr:.1f}", str(drift.largest))]
        head = (str(sender), str(receiver), str(cell.packets), str(cell.nonzero), f"{cell.original.psnr:.2f}")
        table.add_row(*head, *drifts)
    console.print(table)
    shares = ", ".join(f"{side} {share:.1%}" for side, share in integers.items() if side != first)
    console.print(f"integers of the latents that are not those of {first}: {shares}", highlight=False)


def bounds(cells: Mapping[tuple[Side, Side], Cell]) -> dict[str, float]:
    """The worst of all pairs: what may be published as a bound."""
    return {
        "least_psnr_to_own": min(cell.own.psnr for cell in cells.values()),
        "largest_difference_to_own": max(cell.own.largest for cell in cells.values()),
        "least_psnr_to_reference": min(cell.reference.psnr for cell in cells.values()),
        "spread_to_original_db": max(cell.original.psnr for cell in cells.values())
        - min(cell.original.psnr for cell in cells.values()),
    }


def _bundles(stack: ExitStack, name: str, run: Path | None) -> tuple[Bundle, tuple[Side, ...]]:
    if run is None:
        return Bundle.open(name), SIDES
    return stack.enter_context(smc_with_float(name, run)), (*FLOAT_SIDES, *SIDES)


def _chosen(sides: Sequence[Side], engines: str) -> Iterator[Side]:
    names = engines.split(",")
    unknown = sorted(set(names) - {side.engine for side in sides})
    if unknown:
        raise ConfigError(
            "no such engine", got=", ".join(unknown), allowed=", ".join(dict.fromkeys(s.engine for s in sides))
        )
    return (side for side in sides if side.engine in names)


def run(
    clips: Annotated[str, typer.Option(help="Categories or patterns, comma separated.")] = "mot,natural",
    crfs: Annotated[str, typer.Option(help="Of x264; coarse enough to be fused.")] = "43",
    frames: Annotated[int, typer.Option(min=1, help="Of each clip.")] = 30,
    width: Annotated[int, typer.Option(min=64, help="LiteRT's artefacts are made for 960x540 alone.")] = 960,
    quality: Annotated[int, typer.Option(min=0, help="The bundle's; 0 is the finest.")] = 0,
    gop: Annotated[int, typer.Option(min=1, help="Frames between keyframes; states live as long.")] = 30,
    bundle: Annotated[str, typer.Option(help="A shipped SMC bundle.")] = "smc-s",
    engines: Annotated[str, typer.Option(help="Comma separated.")] = "openvino,onnx,litert",
    run_folder: Annotated[
        Path | None, typer.Option("--run", help="The training run of the bundle: adds float32 on both sides.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
) -> None:
    """Encode on every engine, decode on every engine."""
    report = _report.envelope("engine_matrix")
    cells: Cells = {}
    lossy = Drift()
    shares: dict[Side, list[float]] = {}
    with ExitStack() as stack:
        opened, possible = _bundles(stack, bundle, run_folder)
        sides = tuple(_chosen(possible, engines))
        jobs = [(clip, crf) for clip in find_clips(clips.split(",")) for crf in _report.numbers(crfs)]
        for clip, crf in track(jobs, "clips", console=console, transient=True):
            pictures = [planes for planes, _ in read_video(clip.path, width=width, limit=frames)]
            found = cross(opened, sides, pictures, clip.fps, crf=crf, gop=gop, quality=quality, cells=cells)
            for side, share in found.items():
                shares.setdefault(side, []).append(share)
            coded = encode_on(opened, sides[0], pictures, clip.fps, crf, gop, quality)
            lossy.add(decode_clip(coded, lossy=True), pictures)
    integers = {side: float(np.mean(values)) for side, values in shares.items()}
    show(cells, lossy, integers)
    worst = bounds(cells)
    console.print("worst pair: " + ", ".join(f"{key} {value:.2f}" for key, value in worst.items()), highlight=False)
    for key in ("machine", "command"):
        console.print(f"{key}: {report[key]}", highlight=False, soft_wrap=True)
    rows = [{"encode": str(a), "decode": str(b), **cell.as_json()} for (a, b), cell in cells.items()]
    named = {str(side): share for side, share in integers.items()}
    _report.write_json(
        json_file, report | {"lossy_psnr": lossy.psnr, "pairs": rows, "bounds": worst, "integers": named}
    )


def main() -> None:
    _report.command(run, EXAMPLE)


if __name__ == "__main__":
    main()
