"""Every development clip through `encode` and `decode`: frames counted, played by FFmpeg, latents compared as integers.

    python -m benchmarks.recordings --clips mot,vos --crf 35

Fails at the first clip for which one of these does not hold.
"""

from __future__ import annotations

import itertools
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated, Any

import imageio_ffmpeg
import numpy as np
import typer
from rich.progress import track
from rich.table import Table

from benchmarks import _report
from benchmarks.clips import Clip, find_clips
from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import RunError
from scene_edge.codec.media import probe, read_video
from scene_edge.codec.packet import SemanticPacket
from scene_edge.codec.quality import PacketDecoder
from scene_edge.edge.clip import EncodedClip, encode_clip
from scene_edge.edge.config import CameraConfig
from scene_edge.edge.recording import encode_recording
from scene_edge.edge.settings import load_config
from scene_edge.server.recording import decode_recording, recorded_frames

EXAMPLE = "Example: python -m benchmarks.recordings --clips mot,vos --crf 35"

console = _report.console()


def plays(path: Path) -> None:
    """Decode the whole file with FFmpeg's own program. Raises RunError with its complaint."""
    done = subprocess.run(
        # the recording's own clock: at a variable rate, a guessed frame rate would give two frames one time
        [
            *(imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path)),
            *("-fps_mode", "passthrough", "-enc_time_base", "demux", "-f", "null", "-"),
        ],
        capture_output=True,
        text=True,
    )
    if done.returncode or done.stderr.strip():
        raise RunError(f"FFmpeg does not play {path.name}", got=done.stderr.strip()[:200] or done.returncode)


def same_latents(clip: EncodedClip, bundle: Bundle) -> int:
    """Compare the integers that the encoder coded with those in the packets' bytes; returns how many are not zero."""
    decoder = PacketDecoder.of(bundle, clip.width, clip.height)
    decoded = [z for packet in clip.packets for z in decoder.decode(SemanticPacket.from_bytes(packet.to_bytes()))]
    if len(decoded) != len(clip.latents) or not all(map(np.array_equal, decoded, clip.latents)):
        raise RunError("decoded latents are not those that were coded", got=f"{len(decoded)} frames")
    return sum(int(np.count_nonzero(z)) for z in decoded)


def check(clip: Clip, config: CameraConfig, bundle: Bundle, folder: Path, latent_frames: int) -> dict[str, Any]:
    """One clip through everything. Raises RunError where a promise is broken."""
    recording, restored = folder / "recording.mkv", folder / "restored.mkv"
    report = encode_recording(clip.path, recording, config)
    decoded = decode_recording(recording, restored)
    counts = {report.frames, recorded_frames(recording), decoded.frames, recorded_frames(restored)}
    sizes = {(probe(path).width, probe(path).height) for path in (recording, restored)}
    if len(counts) != 1 or len(sizes) != 1:
        raise RunError(f"{clip.name}: frames or sizes differ", got=f"{counts} {sizes}")
    plays(recording)
    frames = (planes for planes, _ in read_video(clip.path, width=clip.width // 2 * 2))
    spoken = same_latents(encode_clip(itertools.islice(frames, latent_frames), clip.fps, config), bundle)
    for path in (recording, restored):
        path.unlink()
    return {"clip": clip.name, "frames": report.frames, "bytes": report.bytes, "nonzero_latents": spoken}


def run(
    clips: Annotated[str, typer.Option(help="Categories or patterns, comma separated.")] = "*",
    crf: Annotated[int, typer.Option(help="Constant quality of x264.")] = 35,
    latent_frames: Annotated[int, typer.Option(min=1, help="Frames of each clip whose latents are compared.")] = 45,
    json: Annotated[Path | None, typer.Option(help="Write the report here.")] = None,
) -> None:
    """Encode and decode every clip; check counts, sizes, playing and latents."""
    config = load_config("cpu", overrides=[f"video.crf={crf}"])
    bundle = Bundle.open(config.semantics.bundle)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for clip in track(find_clips(clips.split(",")), "clips", console=console):
            rows.append(check(clip, config, bundle, Path(folder), latent_frames))
    total = {key: sum(row["bytes"][key] for row in rows) for key in rows[0]["bytes"]}
    table = Table("clips", "frames", *(f"{key} bytes" for key in total), "latents not zero", title="all held")
    spoken = sum(row["nonzero_latents"] for row in rows)
    table.add_row(str(len(rows)), str(sum(row["frames"] for row in rows)), *map(str, total.values()), str(spoken))
    console.print(table)
    _report.write_json(json, _report.envelope("recordings") | {"crf": crf, "clips": rows, "total_bytes": total})


def main() -> None:
    _report.command(run, EXAMPLE)


if __name__ == "__main__":
    main()
