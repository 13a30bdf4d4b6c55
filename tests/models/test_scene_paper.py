"""The published SCENE and its baseline: size, identity at birth, what coefficients follow; SigLIP 2; training steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from scene_edge.codec.errors import ConfigError, FormatError  # noqa: E402
from scene_edge.models import siglip, train_scene  # noqa: E402
from scene_edge.models.layers import from_packed  # noqa: E402
from scene_edge.models.loop import Progressed  # noqa: E402
from scene_edge.models.recipes import SceneRun, load_recipe  # noqa: E402
from scene_edge.models.scene_paper import (  # noqa: E402
    EMBEDDING,
    FoldedConv,
    ScenePaper,
    ScenePaperConfig,
    half_picture,
    packed_from_half,
)
from scene_edge.models.siglip import Siglip, clip_embeddings  # noqa: E402
from scene_edge.models.sizes import build_scene  # noqa: E402
from scene_edge.models.train_scene import SceneTraining  # noqa: E402
from tests.data import data_file, data_folder  # noqa: E402

TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
"""A SigLIP image tower of the real class."""


def count(net: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)


def test_the_published_size_and_a_baseline_of_the_same() -> None:
    paper, baseline = build_scene("scene-paper"), build_scene("scene-asconv")
    assert 1.3e6 < count(paper) < 1.45e6
    assert abs(count(paper) - count(baseline)) < 1e-3 * count(paper)


def test_half_size_pictures_go_back_and_hold_what_the_planes_hold() -> None:
    packed = torch.rand(2, 24, 4, 6)
    half = half_picture(packed)
    assert half.shape == (2, 6, 8, 12)
    assert torch.equal(packed_from_half(half), packed)
    y = torch.nn.functional.pixel_shuffle(packed[:, :16], 4)
    assert torch.equal(half[:, 1], y[:, 0, ::2, 1::2]), "the second of four is to the right of the first"


@pytest.mark.parametrize("semantic", [True, False])
def test_untrained_it_is_the_identity(semantic: bool) -> None:
    net = ScenePaper(ScenePaperConfig(semantic=semantic, width=8, embedding=16))
    picture = torch.rand(2, 24, 4, 4)
    coefficients = net.prior(torch.randn(2, 16, 1, 1)) if semantic else None
    assert torch.allclose(net(picture, coefficients), picture, atol=1e-7)


def test_each_sample_s_kernels_are_the_sum_of_the_bases() -> None:
    layer = FoldedConv(4, 3)
    torch.nn.init.normal_(layer.bias)
    x, coefficients = torch.randn(2, 4, 5, 6), torch.randn(2, 12, 1, 1)
    for sample in range(2):
        bases = zip(layer.weight.split(4), layer.bias.split(4), coefficients[sample].split(4), strict=True)
        wanted = sum(
            a * torch.nn.functional.conv2d(x[sample : sample + 1], weight, bias, padding=1) for weight, bias, a in bases
        )
        assert torch.allclose(layer(x, coefficients)[sample : sample + 1], wanted, atol=1e-5)


def test_coefficients_and_picture_follow_the_embedding_and_the_baseline_its_own_features() -> None:
    torch.manual_seed(1)
    config = ScenePaperConfig(width=8, embedding=16)
    net = ScenePaper(config)
    torch.nn.init.normal_(net.head.weight)
    picture = torch.rand(1, 24, 4, 4)
    one, other = (net.prior(torch.randn(1, 16, 1, 1)) for _ in range(2))
    assert one.shape == (1, config.coefficients, 1, 1)
    assert not torch.allclose(one, other)
    assert not torch.allclose(net(picture, one), net(picture, other))
    together = net(picture.repeat(2, 1, 1, 1), torch.cat([one, other]))
    assert torch.allclose(together, torch.cat([net(picture, one), net(picture, other)]), atol=1e-5)
    (together**2).sum().backward()
    assert all(value.grad is not None and bool(value.grad.abs().sum() > 0) for value in net.parameters())


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A small, random SigLIP image tower, as `transformers` saves it."""
    transformers = pytest.importorskip("transformers", reason="transformers is missing: it is in the extra siglip")
    torch.manual_seed(3)
    config = transformers.SiglipVisionConfig(**TINY, image_size=32, patch_size=16)
    transformers.SiglipVisionModel(config).save_pretrained(tmp_path / "siglip")
    return tmp_path / "siglip"


def clips(seed: int = 4) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (3, 16, 16, 24), dtype=np.uint8) for _ in range(2)]


def test_siglip_sees_what_its_own_processor_shows_it(checkpoint: Path) -> None:
    import transformers

    rgb = np.full((64, 64, 3), (200, 120, 60), np.uint8)
    rgb[:32] = (90, 100, 110)
    processor = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32}, resample=2)
    wanted = processor(images=rgb, return_tensors="pt")["pixel_values"]
    values = rgb.astype(float) @ np.array([[0.257, -0.148, 0.439], [0.504, -0.291, -0.368], [0.098, 0.439, -0.071]])
    y, u, v = (torch.from_numpy(values + np.array([16, 128, 128])).float() / 255).permute(2, 0, 1)[:, None, None]
    unshuffle = torch.nn.functional.pixel_unshuffle
    packed = torch.cat([unshuffle(y, 4), *(unshuffle(plane[..., ::2, ::2], 2) for plane in (u, v))], 1)
    model = Siglip(checkpoint)
    assert torch.allclose(model.pixels(packed), wanted, atol=0.03)
    assert torch.allclose(model(packed), model.tower(pixel_values=wanted).pooler_output, atol=0.02)
    assert count(model) == 0


def test_a_folder_of_the_whole_model_gives_its_image_tower(checkpoint: Path, tmp_path: Path) -> None:
    import transformers

    text = {**TINY, "vocab_size": 64, "projection_size": 32, "bos_token_id": 1, "eos_token_id": 2}
    vision = {**TINY, "image_size": 32, "patch_size": 16}
    whole = transformers.SiglipModel(transformers.SiglipConfig(vision_config=vision, text_config=text)).eval()
    whole.save_pretrained(tmp_path / "whole")
    picture = torch.rand(1, 24, 8, 8)
    model = Siglip(tmp_path / "whole")
    assert torch.allclose(model(picture), whole.vision_model(pixel_values=model.pixels(picture)).pooler_output)
    assert not torch.allclose(model(picture), Siglip(checkpoint)(picture))


def test_embeddings_are_of_each_clip_and_kept_for_these_weights(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = clip_embeddings(tmp_path, clips(), checkpoint)
    model = Siglip(checkpoint)
    for clip, embedding in zip(clips(), found, strict=True):
        middle = from_packed(torch.from_numpy(clip[1:2]))
        assert np.allclose(embedding, model(middle)[0].numpy(), atol=1e-5)
    with monkeypatch.context() as patched:
        patched.setattr(siglip, "Siglip", None)
        assert np.array_equal(clip_embeddings(tmp_path, clips(), checkpoint), found)
    weights = checkpoint / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-2] ^= 0x10
    weights.write_bytes(changed)
    clip_embeddings(tmp_path, clips(), checkpoint)
    assert len(list(tmp_path.glob("siglip-*.npy"))) == 2


def test_what_is_no_siglip_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing is downloaded"):
        Siglip(tmp_path / "nowhere")
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint / "model.safetensors")
    name = min(name for name in weights if name.endswith("probe"))
    save_file({key: value for key, value in weights.items() if key != name}, checkpoint / "model.safetensors")
    with pytest.raises(FormatError, match="probe"):
        Siglip(checkpoint)
    (checkpoint / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(FormatError, match="no SigLIP"):
        Siglip(checkpoint)


def test_without_transformers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ConfigError, match="siglip"):
        Siglip(tmp_path)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Two clips of noise; what x264 made of them plays no part here."""
    data_file("models/yolox_nano.onnx")
    for number, clip in enumerate(clips()):
        for name in ("original", "crf35"):
            np.save(tmp_path / f"{number:03d}.{name}.npy", clip)
    entries = [{"file": "x", "number": number, "frames": 3, "bpp": {"35": 0.1}} for number in range(2)]
    (tmp_path / "index.json").write_text(json.dumps(entries))
    return tmp_path


def one_step(name: str, cache: Path) -> SceneTraining:
    recipe = load_recipe(SceneRun, name, data=data_folder(), out=cache / name, batch=2, crop=64, threads=1)
    training = SceneTraining(recipe, cache)
    loss, figures = training.step(Progressed(0.1, 0))
    loss.backward()
    assert np.isfinite(list(figures.values())).all()
    assert figures["price"] > 0
    return training


@pytest.mark.parametrize("name", ["scene-s", "scene-paper", "scene-asconv"])
def test_every_recipe_takes_a_step(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(5)
    asked = []

    def embeddings(cache: Path, clips: list[np.ndarray], folder: Path) -> np.ndarray:
        asked.append(folder.name)
        return random.normal(size=(len(clips), EMBEDDING)).astype(np.float32)

    monkeypatch.setattr(train_scene, "clip_embeddings", embeddings)
    training = one_step(name, cache)
    assert asked == (["siglip2-so400m-patch14-384"] if name == "scene-paper" else [])
    assert training.model.head.weight.grad is not None
    assert float(training.model.head.weight.grad.abs().sum()) > 0


def test_a_narrow_filter_imitates_a_taught_one_before_it_meets_a_codec(cache: Path) -> None:
    torch.manual_seed(3)
    teacher = build_scene("scene-m")
    torch.nn.init.normal_(teacher.head.weight, std=0.01)
    (cache / "taught").mkdir()
    torch.save({"average": teacher.state_dict()}, cache / "taught" / "state.pt")
    recipe = load_recipe(SceneRun, "scene-s", data=data_folder(), out=cache / "narrow", batch=2, crop=64, threads=1)
    taught = SceneTraining(replace(recipe, teacher=cache / "taught"), cache)
    first, figures = taught.step(Progressed(0.0, 0))
    assert set(figures) == {"unlike"}
    assert float(first.detach()) == pytest.approx(1.0, abs=1e-3), "it begins as the identity"
    first.backward()
    assert float(taught.model.head.weight.grad.abs().sum()) > 0
    assert "price" in taught.step(Progressed(recipe.imitated, 1))[1]
    assert "price" in SceneTraining(recipe, cache).step(Progressed(0.0, 0))[1], "nobody taught it"
    with pytest.raises(ConfigError, match="imitates nobody"):
        SceneTraining(replace(recipe, teacher=cache / "taught", imitated=0.0), cache)
    for size, message in (("scene-s", "is no scene-s"), ("scene-paper", "imitated")):
        with pytest.raises((ConfigError, FormatError), match=f"{message}|nothing of"):
            SceneTraining(replace(recipe, teacher=cache / "taught", teacher_size=size), cache)


def test_a_siglip_of_another_size_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_scene, "clip_embeddings", lambda *_: np.zeros((2, 768), np.float32))
    with pytest.raises(ConfigError, match="1152"):
        one_step("scene-paper", cache)
