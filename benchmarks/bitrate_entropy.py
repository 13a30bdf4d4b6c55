"""The entropy coder: bits written against the ideal code length, and milliseconds for 10,000 symbols.

    python -m benchmarks.bitrate_entropy --synthetic-only

Synthetic latents stand for the coder alone, on tables fitted to others of their kind; the latents of a bundle on a
clip say what its shipped tables are worth there.
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
from scene_edge.codec.latents import LatentCoder, LatentTables
from scene_edge.codec.media import read_video

EXAMPLE = "Example: python -m benchmarks.bitrate_entropy --clip mot --crfs 31,43 --frames 60"

GOP = 30


def synthetic_gops(seed: int, scale: float, gops: int, channels: int = 32) -> NDArray[np.int16]:
    """Rounded Laplacian latents [gops, GOP, C, 17, 30]: later channels are fainter, frames resemble the last."""
    generator = np.random.default_rng(seed)
    spread = scale * np.exp(-np.arange(channels) / 8)[:, None, None]
    z = np.empty((gops, GOP, channels, 17, 30))
    for gop in z:
        gop[0] = generator.laplace(size=gop[0].shape)
        for frame in range(1, GOP):
            gop[frame] = 0.7 * gop[frame - 1] + 0.7 * generator.laplace(size=gop[0].shape)
    return np.rint(z * spread).clip(-32768, 32767).astype(np.int16)


def measure(name: str, tables: LatentTables, gops: list[NDArray[np.int16]]) -> dict[str, Any]:
    """Code and decode all GOPs. Raises EntropyError if what comes out is not what went in."""
    written = symbols = frames = 0
    estimated, encode_s, decode_s = 0.0, 0.0, 0.0
    for gop in gops:
        encoder, decoder = LatentCoder(tables), LatentCoder(tables)
        started = time.process_time()
        payloads = [encoder.encode(z) for z in gop]
        encode_s += time.process_time() - started
        started = time.process_time()
        decoded = [decoder.decode(payload, gop.shape[1:]) for payload in payloads]
        decode_s += time.process_time() - started
        if not np.array_equal(np.stack(decoded), gop):
            raise EntropyError(f"{name}: decoded latents differ from the coded ones")
        written += sum(map(len, payloads)) * 8
        estimated += tables.estimate_bits(gop)
        opened = np.count_nonzero(gop, axis=(2, 3)) > 0
        symbols += int(opened.sum()) * gop.shape[2] * gop.shape[3] + int(opened.any(axis=1).sum()) * gop.shape[1]
        frames += len(gop)
    return {
        "latents": name,
        "frames": frames,
        "symbols_per_frame": symbols / frames,
        "written_bits": written,
        "estimated_bits": estimated,
        "excess_percent": 100 * (written / estimated - 1) if estimated else 0.0,
        "bytes_per_frame": written / 8 / frames,
        "encode_ms_per_10000": 1e7 * encode_s / symbols if symbols else 0.0,
        "decode_ms_per_10000": 1e7 * decode_s / symbols if symbols else 0.0,
    }


def bundle_latents(clip: str, coding: Coding, frames: int, width: int) -> tuple[LatentTables, list[NDArray[np.int16]]]:
    """What the shipped SMC bundle codes on a clip, cut into GOPs, and its tables."""
    source = find_clips([clip])[0]
    pictures = [planes for planes, _ in read_video(source.path, width=min(width, source.width), limit=frames)]
    coded = encode("smc", pictures, source.fps, coding)
    bundle = Bundle.open(camera_config("smc", coding).semantics.bundle, zoo=coding.zoo)
    tables = LatentTables.from_tensors(bundle.tensors(str(bundle.parameters["tables"])))
    latents = coded.latents
    return tables, [np.stack(latents[start : start + GOP]) for start in range(0, len(latents), GOP)]


def show(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title="entropy coder", title_justify="left")
    titles = ("latents", "symbols a frame", "bytes a frame", "ideal bits", "written bits", "excess %")
    for title in (*titles, "encode", "decode, ms CPU for 10,000 symbols"):
        table.add_column(title, justify="left" if title == "latents" else "right")
    for row in rows:
        table.add_row(
            row["latents"],
            f"{row['symbols_per_frame']:.0f}",
            f"{row['bytes_per_frame']:.1f}",
            f"{row['estimated_bits']:.0f}",
            f"{row['written_bits']}",
            f"{row['excess_percent']:+.2f}",
            f"{row['encode_ms_per_10000']:.2f}",
            f"{row['decode_ms_per_10000']:.2f}",
        )
    console.print(table)


def run(
    clip: Annotated[str, typer.Option(help="Which clip; the first that matches.")] = "mot",
    crfs: Annotated[str, typer.Option(help="Qualities of the video beside which SMC codes.")] = "31,39,47",
    frames: Annotated[int, typer.Option(min=1)] = 60,
    width: Annotated[int, typer.Option(min=64)] = 960,
    zoo: Annotated[Path | None, typer.Option(help="Folder of smc-s; default: the shipped one.")] = None,
    synthetic_only: Annotated[bool, typer.Option("--synthetic-only", help="Needs neither bundle nor clips.")] = False,
    seed: Annotated[int, typer.Option(help="Of the synthetic latents.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
) -> None:
    """Compare estimated with written bits, and time the coder."""
    report = _report.envelope("bitrate_entropy", seed=seed)
    rows = []
    for name, scale in (("synthetic, sparse", 0.4), ("synthetic, dense", 3.0)):
        tables = LatentTables.fit(synthetic_gops(seed + 1, scale, 4))
        rows.append(measure(name, tables, list(synthetic_gops(seed, scale, 2))))
    if not synthetic_only:
        for crf in _report.numbers(crfs):
            tables, gops = bundle_latents(clip, Coding(crf=crf, gop=GOP, zoo=zoo), frames, width)
            rows.append(measure(f"{clip}, CRF {crf}", tables, gops))
    show(rows, _report.console())
    _report.write_json(json_file, report | {"rows": rows})


def main() -> None:
    _report.command(run, EXAMPLE)


if __name__ == "__main__":
    main()
