"""libvmaf through FFmpeg: equal pictures, worse pictures, misfits. And ground truth as the data set writes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.clips import Clip, mask_truth, mot_truth
from benchmarks.quality import picture_quality
from scene_edge.codec.errors import FormatError
from scene_edge.codec.planes import Planes

pytest.importorskip("imageio_ffmpeg")


def pictures(noise: float, width: int = 192, height: int = 176, count: int = 4) -> list[Planes]:
    """A drifting pattern with the same noise for the same arguments."""
    generator = np.random.default_rng(7)
    rows, columns = np.mgrid[0:height, 0:width]
    frames = []
    for frame in range(count):
        wave = 120 + 60 * np.sin((columns + 3 * frame) / 9) + 30 * np.cos(rows / 5)
        y = np.clip(wave + noise * generator.normal(size=wave.shape), 0, 255).astype(np.uint8)
        chroma = np.full((height // 2, width // 2), 128, np.uint8)
        frames.append(Planes(y, chroma, chroma))
    return frames


def test_quality_falls_with_noise() -> None:
    clean = pictures(0)
    same, worse = picture_quality(clean, clean), picture_quality(clean, pictures(12))
    assert same.ms_ssim == pytest.approx(1)
    assert same.vmaf > 90
    assert worse.vmaf < same.vmaf
    assert worse.vmaf_neg <= worse.vmaf + 0.5
    assert worse.ms_ssim is not None
    assert worse.ms_ssim < 1
    assert same.ssim == pytest.approx(1)
    assert worse.ssim < 1
    assert same.psnr_db == 60
    assert same.frames == 4


def test_psnr_is_that_of_the_luma() -> None:
    clean = pictures(0)
    moved = [Planes(frame.y + np.uint8(4), frame.u + np.uint8(90), frame.v) for frame in clean]
    assert picture_quality(clean, moved).psnr_db == pytest.approx(20 * np.log10(255 / 4), abs=0.01)


def test_sharpening_lifts_vmaf_more_than_vmaf_neg() -> None:
    clean = pictures(4)
    sharp = []
    for frame in clean:
        luma = frame.y.astype(float)
        blurred = (luma + np.roll(luma, 1, 0) + np.roll(luma, -1, 0) + np.roll(luma, 1, 1) + np.roll(luma, -1, 1)) / 5
        sharp.append(Planes(np.clip(luma + 0.8 * (luma - blurred), 0, 255).astype(np.uint8), frame.u, frame.v))
    got = picture_quality(clean, sharp)
    assert got.vmaf >= got.vmaf_neg


def test_small_pictures_have_no_ms_ssim_and_every_second_frame_is_half_of_them() -> None:
    small = pictures(0, 176, 144)
    got = picture_quality(small, small, every=2)
    assert got.ms_ssim is None
    assert got.frames == 2


def test_misfits_are_refused() -> None:
    with pytest.raises(FormatError, match="cannot be compared"):
        picture_quality(pictures(0), pictures(0)[:3])
    with pytest.raises(FormatError, match="cannot be compared"):
        picture_quality(pictures(0), pictures(0, 176, 144))


def clip_at(folder: Path) -> Clip:
    return Clip("mot/street", folder / "street.mp4", "mot", None, 1920, 1080, 30.0, 2)


def test_mot_truth_is_scaled_and_counts_frames_from_zero(tmp_path: Path) -> None:
    (tmp_path / "street.gt.txt").write_text(
        "1,7,100,50,20,40,1,-1,-1,-1\n2,7,110,50,20,40,1,-1,-1,-1\n2,8,0,0,9,9,0,-1\n"
    )
    truth = mot_truth(clip_at(tmp_path), 960)
    assert truth is not None
    assert truth[0].xyxy.tolist() == [[50, 25, 60, 45]]
    assert truth[1].labels.tolist() == [7], "a zero flag means ignore"


def test_broken_or_absent_truth(tmp_path: Path) -> None:
    assert mot_truth(clip_at(tmp_path), 960) is None
    assert mask_truth(clip_at(tmp_path), 960) is None
    (tmp_path / "street.gt.txt").write_text("1,7,100\n")
    with pytest.raises(FormatError, match=r"street.gt.txt:1"):
        mot_truth(clip_at(tmp_path), 960)


def test_mask_truth_is_the_box_around_the_object(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "street.masks"
    folder.mkdir()
    mask = np.zeros((108, 192), np.uint8)
    mask[10:30, 40:60] = 255
    image.fromarray(mask).save(folder / "00000.png")
    image.fromarray(np.zeros_like(mask)).save(folder / "00001.png")
    small = Clip("vos/street", tmp_path / "street.mp4", "vos", None, 192, 108, 24.0, 2)
    truth = mask_truth(small, 96)
    assert truth is not None
    assert list(truth) == [0]
    assert truth[0].xyxy.tolist() == [[20, 5, 30, 15]]
