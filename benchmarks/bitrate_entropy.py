"""The entropy coder: bits written against the ideal code length of the tables, packet by packet, and its time.

    python -m benchmarks.bitrate_entropy --synthetic-only

Synthetic latents are objects that move through 60 x 34 places of 16 channels, on tables fitted to others of their kind,
scaled so that a frame takes about 5 to 400 bytes; the latents of a bundle on a clip say what its shipped tables are
worth there. The camera's `auto` quality is left out: `--quality` is fixed.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks import _report
from benchmarks.clips import find_clips
from benchmarks.systems import Coding, camera_config, encode
from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import EntropyError
from scene_edge.codec.latents import LatentDecoder, LatentEncoder, LatentTables, message
from scene_edge.codec.media import read_video
from scene_edge.codec.quality import load_qualities

EXAMPLE = "Example: python -m benchmarks.bitrate_entropy --clip mot --crfs 31,43 --frames 60"

GOP = 30
CHANNELS, ROWS, COLUMNS = 16, 34, 60

KINDS = {"5 bytes": (0.25, 0.0), "20 bytes": (2.2, 3e-5), "60 bytes": (6.0, 1e-4), "400 bytes": (42.0, 1e-3)}
"""Aim for a frame -> objects in a picture, share of values that flicker."""

END_BITS = 40
"""Written bits are at most 1.01 of the ideal and this for each packet."""


def moving_gop(seed: int, objects: float, flicker: float) -> NDArray[np.int16]:
    """[GOP, C, h, w]: objects of some places that move slowly, each with a few channels and a texture of its own."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    gop = np.zeros((GOP, CHANNELS, ROWS, COLUMNS))
    for _ in range(generator.poisson(objects)):
        start, speed = generator.random(2) * (ROWS, COLUMNS), generator.normal(0, 0.25, 2)
        radius = generator.uniform(0.8, 3, 2)
        marks = generator.normal(0, 1, CHANNELS) * (generator.random(CHANNELS) < 0.25)
        texture = generator.normal(0, 0.5, (CHANNELS, 15, 15)) * np.abs(marks)[:, None, None]
        for t in range(GOP):
            dy, dx = y - start[0] - speed[0] * t, x - start[1] - speed[1] * t
            near = np.exp(-((dy / radius[0]) ** 2) - (dx / radius[1]) ** 2)
            cell = [np.clip(np.rint(d).astype(int) + 7, 0, 14) for d in (dy, dx)]
            gop[t] += near * (1.2 * marks[:, None, None] + texture[:, cell[0], cell[1]])
    z = np.rint(gop + generator.normal(0, 0.12, gop.shape)).astype(np.int16)
    hit = generator.random(z.shape) < flicker
    z[hit] = generator.choice([-1, 1], int(hit.sum()))
    return z


def measure(name: str, tables: LatentTables, gops: list[NDArray[np.int16]]) -> dict[str, Any]:
    """Code and decode all GOPs, each a packet. Raises EntropyError if what comes out is not what went in."""
    written: list[int] = []
    ideal: list[float] = []
    encode_s = decode_s = 0.0
    for gop in gops:
        started = time.process_time()
        encoder = LatentEncoder(tables)
        codes = [encoder.encode(z) for z in gop]
        data = message(codes)
        encode_s += time.process_time() - started
        started = time.process_time()
        decoded = LatentDecoder(tables).decode(data, len(gop), gop.shape[1:])
        decode_s += time.process_time() - started
        if not np.array_equal(np.stack(decoded), gop):
            raise EntropyError(f"{name}: decoded latents differ from the coded ones")
        written.append(8 * len(data))
        ideal.append(sum(code.bits for code in codes))
    frames = sum(map(len, gops))
    return {
        "latents": name,
        "packets": len(gops),
        "frames": frames,
        "zeros_percent": 100 * (1 - sum(map(np.count_nonzero, gops)) / sum(gop.size for gop in gops)),
        "bytes_per_frame": sum(written) / 8 / frames,
        "written_bits": sum(written),
        "ideal_bits": sum(ideal),
        "excess_percent": 100 * (sum(written) / sum(ideal) - 1) if sum(ideal) else 0.0,
        "worst_excess_bits": max(one - two for one, two in zip(written, ideal, strict=True)),
        "within_bound": all(one <= 1.01 * two + END_BITS for one, two in zip(written, ideal, strict=True)),
        "encode_ms_per_frame": 1e3 * encode_s / frames,
        "decode_ms_per_frame": 1e3 * decode_s / frames,
    }


def bundle_latents(clip: str, coding: Coding, frames: int, width: int) -> tuple[LatentTables, list[NDArray[np.int16]]]:
    """What SMC codes on a clip at the quality that `coding` names, cut into GOPs, and the tables of that."""
    source = find_clips([clip])[0]
    pictures = [planes for planes, _ in read_video(source.path, width=min(width, source.width), limit=frames)]
    latents = encode("smc", pictures, source.fps, coding).latents
    bundle = Bundle.open(camera_config("smc", coding).semantics.bundle, zoo=coding.zoo)
    tables = load_qualities(bundle)[coding.semantic_quality or 0].tables
    return tables, [np.stack(latents[start : start + GOP]) for start in range(0, len(latents), GOP)]


def show(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title="entropy coder, a packet for each GOP", title_justify="left")
    titles = ("latents", "zeros %", "bytes a frame", "ideal bits", "written bits", "excess %", "most bits in a packet")
    for title in (*titles, f"within 1 % + {END_BITS} bits", "encode", "decode, ms CPU a frame"):
        table.add_column(title, justify="left" if title == "latents" else "right")
    for row in rows:
        table.add_row(
            row["latents"],
            f"{row['zeros_percent']:.2f}",
            f"{row['bytes_per_frame']:.1f}",
            f"{row['ideal_bits']:.0f}",
            f"{row['written_bits']}",
            f"{row['excess_percent']:+.2f}",
            f"{row['worst_excess_bits']:.0f}",
            "yes" if row["within_bound"] else "NO",
            f"{row['encode_ms_per_frame']:.2f}",
            f"{row['decode_ms_per_frame']:.2f}",
        )
    console.print(table)


def run(
    clip: Annotated[str, typer.Option(help="Which clip; the first that matches.")] = "mot",
    crfs: Annotated[str, typer.Option(help="Qualities of the video beside which SMC codes.")] = "31,39,47",
    frames: Annotated[int, typer.Option(min=1)] = 60,
    width: Annotated[int, typer.Option(min=64)] = 960,
    quality: Annotated[int, typer.Option(min=0, help="Index into the bundle's quality steps.")] = 0,
    zoo: Annotated[Path | None, typer.Option(help="Folder of smc-s; default: the shipped one.")] = None,
    synthetic_only: Annotated[bool, typer.Option("--synthetic-only", help="Needs neither bundle nor clips.")] = False,
    seed: Annotated[int, typer.Option(help="Of the synthetic latents.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
) -> None:
    """Compare written bits with the ideal, and time the coder."""
    report = _report.envelope("bitrate_entropy", seed=seed)
    rows = []
    for name, kind in KINDS.items():
        tables = LatentTables.fit([moving_gop(1000 * seed + number, *kind) for number in range(1, 25)])
        rows.append(measure(f"objects, {name}", tables, [moving_gop(1000 * seed + n, *kind) for n in range(100, 112)]))
    if not synthetic_only:
        for crf in _report.numbers(crfs):
            tables, gops = bundle_latents(
                clip, Coding(crf=crf, gop=GOP, zoo=zoo, semantic_quality=quality), frames, width
            )
            rows.append(measure(f"{clip}, CRF {crf}", tables, gops))
    show(rows, _report.console())
    _report.write_json(json_file, report | {"rows": rows})


def main() -> None:
    _report.command(run, EXAMPLE)


if __name__ == "__main__":
    main()
