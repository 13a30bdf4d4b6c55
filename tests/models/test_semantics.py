"""Sem-Net and its head are the detector that they start as; distances of verdicts behave; training looks at objects."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

import torch.nn.functional as F  # noqa: E402

from scene_edge.codec.errors import FormatError  # noqa: E402
from scene_edge.models.backbone import pooled  # noqa: E402
from scene_edge.models.data import ClipSampler  # noqa: E402
from scene_edge.models.layers import packed_to_bgr  # noqa: E402
from scene_edge.models.semantics import CLAIMS, SEMANTIC, SemNet, Verdicts, load_fastestdet, place  # noqa: E402
from tests.data import data_folder  # noqa: E402


def test_pooling_of_phases_is_max_pooling_of_the_half_size_picture() -> None:
    fine = F.relu(torch.randn(2, 5, 12, 16, generator=torch.Generator().manual_seed(1)))
    phases = F.pixel_unshuffle(fine, 2).reshape(2, 5, 4, 6, 8).transpose(1, 2).reshape(2, 20, 6, 8)
    assert torch.equal(pooled(phases), F.max_pool2d(fine, 3, 2, 1))


def test_sem_net_and_head_compute_what_fastestdet_computes() -> None:
    runtime = pytest.importorskip("onnxruntime")
    path = data_folder() / "models" / "FastestDet.onnx"
    sem_net, verdicts = SemNet(), Verdicts()
    load_fastestdet(sem_net, verdicts, path)
    # in the middle of the range, where no sample of BGR is clipped; black at the border, which the original pads with
    picture = torch.tensor([16.0] * 16 + [128.0] * 8).reshape(1, 24, 1, 1).repeat(1, 1, 88, 88) / 255
    picture[:, :, 1:-1, 1:-1] = 0.45 + 0.1 * torch.rand(1, 24, 86, 86, generator=torch.Generator().manual_seed(2))
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {session.get_inputs()[0].name: (packed_to_bgr(picture) / 255).numpy()})
    with torch.no_grad():
        semantic, _ = sem_net(picture, torch.zeros(1, 2 * SEMANTIC, 22, 22))
        objectness, box, classes = verdicts(semantic)
    got = torch.cat([objectness.sigmoid(), box, classes.softmax(1)], 1).numpy()
    assert np.abs(got - expected).max() < 0.01


def test_another_file_is_no_fastestdet() -> None:
    with pytest.raises(FormatError, match="no FastestDet"):
        load_fastestdet(SemNet(), Verdicts(), data_folder() / "models" / "yolox_nano.onnx")


def test_the_same_verdicts_have_no_distance_and_others_have_more() -> None:
    torch.manual_seed(3)
    verdicts = Verdicts()
    semantic = torch.randn(2, SEMANTIC, 4, 5)
    assert torch.allclose(verdicts.distance(semantic, semantic), torch.zeros(2), atol=1e-4)
    near = verdicts.distance(semantic + 0.05 * torch.randn_like(semantic), semantic)
    far = verdicts.distance(semantic + 2.0 * torch.randn_like(semantic), semantic)
    assert bool((far > near).all())
    assert bool((near > 0).all())


def test_claims_are_silent_where_there_is_no_object() -> None:
    verdicts = Verdicts()
    with torch.no_grad():
        verdicts.objectness.out.bias.fill_(-40.0)
        claims = verdicts.claims(torch.randn(1, SEMANTIC, 3, 3))
    assert claims.shape == (1, CLAIMS, 3, 3)
    assert float(claims.abs().max()) < 1e-6
    box = place(torch.tensor([[0.0, 5.0, 0.0, -8.0]]).reshape(1, 4, 1, 1)).flatten()
    assert box.tolist() == pytest.approx([0.0, np.tanh(5.0), -np.log(2.0), -8.0003354], rel=1e-4)


def test_three_of_four_crops_hold_an_object(tmp_path: Path) -> None:
    picture = np.zeros((2, 40, 64, 24), np.uint8)
    picture[:, 24:28, 48:52] = 255  # one object, on the /16 grid at row 6, column 12
    for name in ("original", "crf47"):
        np.save(tmp_path / f"000.{name}.npy", picture)
    entry = {"file": "x", "number": 0, "frames": 2, "bpp": {"47": 0.1}}
    (tmp_path / "index.json").write_text(json.dumps([entry]))

    def share(attentive: bool) -> float:
        sampler = ClipSampler(tmp_path, 1, size=64, length=2)
        if attentive:
            sampler.attend([np.pad(np.ones((2, 1, 1), bool), ((0, 0), (6, 3), (12, 3)))])
        crops = sampler.sample(200).original
        return float((crops.reshape(200, -1).max(1) == 255).mean())

    assert share(attentive=False) < 0.4
    assert share(attentive=True) > 0.7
