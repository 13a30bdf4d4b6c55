"""DLM and VIF for training, against libvmaf."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from scene_edge.codec.planes import Planes  # noqa: E402
from scene_edge.models.data import x264_round_trip  # noqa: E402
from scene_edge.models.detail import DetailLoss  # noqa: E402
from scene_edge.models.objectives import multi_scale_ssim  # noqa: E402

WIDTH, HEIGHT = 256, 192


def picture(seed: int) -> Planes:
    """Smooth shapes with fine texture in a part, and a flat part."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    luma = 120 + 60 * np.sin(x / 17 + seed) * np.cos(y / 23) + 40 * ((x // 32 + y // 24) % 2)
    luma += random.normal(0, 12, luma.shape) * (x > WIDTH / 2)
    luma[:48, :64] = 90
    half = np.full((HEIGHT // 2, WIDTH // 2), 128, np.uint8)
    return Planes(np.clip(luma, 0, 255).astype(np.uint8), half, half)


def tensor(planes: Planes) -> torch.Tensor:
    return torch.from_numpy(planes.y)[None, None].float() / 255


def libvmaf(original: Planes, seen: Planes, folder: Path) -> dict[str, float]:
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    raw = ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", f"{WIDTH}x{HEIGHT}"]
    command = [ffmpeg, "-v", "error"]
    for name, planes in (("seen", seen), ("original", original)):
        (folder / name).write_bytes(planes.y.tobytes() + planes.u.tobytes() + planes.v.tobytes())
        command += [*raw, "-i", name]
    command += ["-lavfi", "libvmaf=model=version=vmaf_v0.6.1neg:log_fmt=json:log_path=log.json", "-f", "null", "-"]
    subprocess.run(command, cwd=folder, check=True)
    found = json.loads((folder / "log.json").read_text())["pooled_metrics"]
    return {name: value["mean"] for name, value in found.items()}


@pytest.mark.parametrize("case", ["crf27", "crf43", "sharpened"])
def test_terms_are_libvmaf_s(case: str, tmp_path: Path) -> None:
    original = picture(3)
    if case == "sharpened":
        luma = original.y.astype(float)
        blurred = (luma + np.roll(luma, 1, 0) + np.roll(luma, 1, 1) + np.roll(luma, (1, 1), (0, 1))) / 4
        sharp = np.clip(luma + 0.8 * (luma - blurred), 0, 255).astype(np.uint8)
        seen = Planes(sharp, original.u, original.v)
    else:
        seen = x264_round_trip([original], int(case[3:]))[0][0]
    wanted = libvmaf(original, seen, tmp_path)
    net = DetailLoss()
    assert float(net.dlm(tensor(seen), tensor(original))) == pytest.approx(wanted["integer_adm2_egl_1"], abs=0.003)
    for scale, ours in enumerate(net.vif(tensor(seen), tensor(original))):
        assert float(ours) == pytest.approx(wanted[f"integer_vif_scale{scale}_egl_1"], abs=0.005)


def test_nothing_is_lost_of_the_same_picture_and_gradients_are_finite_there() -> None:
    truth = tensor(picture(4))
    seen = truth.clone().requires_grad_()
    loss = DetailLoss()(seen, truth)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-3)
    loss.sum().backward()
    assert seen.grad is not None
    assert bool(torch.isfinite(seen.grad).all())


def test_each_sample_counts_by_itself_and_more_loss_is_worse() -> None:
    original = picture(5)
    truth = tensor(original).expand(2, -1, -1, -1)
    coded = torch.cat([tensor(x264_round_trip([original], crf)[0][0]) for crf in (30, 44)])
    loss = DetailLoss()(coded, truth)
    assert loss.shape == (2,)
    assert 0 < float(loss[0]) < float(loss[1])
    assert float(loss[1]) == pytest.approx(float(DetailLoss()(coded[1:], truth[1:])), rel=1e-4)
    likeness = multi_scale_ssim(coded, truth)
    assert 1 > float(likeness[0]) > float(likeness[1])
    assert torch.allclose(multi_scale_ssim(truth, truth), torch.ones(2), atol=1e-5)
