"""VMAF, VMAF NEG, MS-SSIM, SSIM and PSNR of two sequences of planes, all in one pass of FFmpeg's libvmaf."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scene_edge.codec.errors import EngineError, FormatError
from scene_edge.codec.planes import Planes

MS_SSIM_MIN_SIDE = 176
"""Five scales of an 11-tap window need this many samples; MS-SSIM of smaller pictures does not exist."""

_MODELS = r"'version=vmaf_v0.6.1\:name=vmaf|version=vmaf_v0.6.1neg\:name=vmaf_neg'"


@dataclass(frozen=True)
class Quality:
    """Means over the frames that were compared; VMAF in 0..100, SSIM and MS-SSIM of the luma in 0..1 (MS-SSIM None for
    small pictures), PSNR of the luma in dB (libvmaf's, 60 at most)."""

    vmaf: float
    vmaf_neg: float
    ms_ssim: float | None
    ssim: float
    psnr_db: float
    frames: int


def _write(descriptor: int, frames: Sequence[Planes]) -> None:
    """Feed raw planes to a pipe; a reader that has gone shows in its own exit code."""
    with os.fdopen(descriptor, "wb") as pipe:
        try:
            for frame in frames:
                for plane in (frame.y, frame.u, frame.v):
                    pipe.write(plane.tobytes())
        except BrokenPipeError:
            return


def picture_quality(reference: Sequence[Planes], distorted: Sequence[Planes], *, every: int = 1) -> Quality:
    """Compare equal numbers of equally large pictures, every `every`-th of them.

    The motion part of VMAF looks at neighbouring frames, so all frames are given and libvmaf itself subsamples.
    Raises FormatError on a misfit, EngineError where FFmpeg or its libvmaf fails.
    """
    sizes = {(frame.width, frame.height) for frames in (reference, distorted) for frame in frames}
    if len(reference) != len(distorted) or len(sizes) != 1:
        raise FormatError(
            "the two videos cannot be compared",
            got=f"{len(reference)} and {len(distorted)} frames of sizes {sorted(sizes)}",
            allowed="equal counts of equally large pictures",
        )
    width, height = sizes.pop()
    with_ms_ssim = min(width, height) >= MS_SSIM_MIN_SIDE
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "vmaf.json"
        _run_libvmaf(reference, distorted, (width, height), log, every, with_ms_ssim)
        report = json.loads(log.read_text())
    pooled = report["pooled_metrics"]
    return Quality(
        vmaf=pooled["vmaf"]["mean"],
        vmaf_neg=pooled["vmaf_neg"]["mean"],
        ms_ssim=pooled["float_ms_ssim"]["mean"] if with_ms_ssim else None,
        ssim=pooled["float_ssim"]["mean"],
        psnr_db=pooled["psnr_y"]["mean"],
        frames=len(report["frames"]),
    )


def _run_libvmaf(
    reference: Sequence[Planes],
    distorted: Sequence[Planes],
    size: tuple[int, int],
    log: Path,
    every: int,
    with_ms_ssim: bool,
) -> None:
    import imageio_ffmpeg

    pipes = [os.pipe(), os.pipe()]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-nostdin"]
    for read_end, _ in pipes:
        command += ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", f"{size[0]}x{size[1]}", "-r", "25"]
        command += ["-i", f"pipe:{read_end}"]
    features = r"name=psnr\:enable_chroma=false|name=float_ssim" + "|name=float_ms_ssim" * with_ms_ssim
    options = f"model={_MODELS}:feature='{features}':n_threads=1:n_subsample={every}:log_fmt=json:log_path={log}"
    command += ["-lavfi", f"[0:v][1:v]libvmaf={options}", "-threads", "1", "-f", "null", "-"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, pass_fds=[read_end for read_end, _ in pipes])
    for read_end, _ in pipes:
        os.close(read_end)
    writers = [
        threading.Thread(target=_write, args=(write_end, frames))
        for (_, write_end), frames in zip(pipes, (distorted, reference), strict=True)
    ]
    for writer in writers:
        writer.start()
    _, stderr = process.communicate()
    for writer in writers:
        writer.join()
    if process.returncode or not log.is_file():
        lines = stderr.decode(errors="replace").strip().splitlines()
        raise EngineError("libvmaf failed", got=lines[-1] if lines else f"exit code {process.returncode}")
