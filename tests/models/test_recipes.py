"""Recipes are complete and refuse what they do not know; every stage of SMC's training takes a step and learns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from scene_edge.codec.errors import ConfigError  # noqa: E402
from scene_edge.models import keepsake  # noqa: E402
from scene_edge.models.cli import Trainable  # noqa: E402
from scene_edge.models.loop import Progressed  # noqa: E402
from scene_edge.models.recipes import SceneRun, SmcRun, load_recipe, make_run, recipe_names  # noqa: E402
from scene_edge.models.semantic_objective import SemanticTermsConfig  # noqa: E402
from scene_edge.models.sizes import SCENE_SIZES, SIZES, build_scene, build_smc  # noqa: E402
from scene_edge.models.start import load_start  # noqa: E402
from scene_edge.models.train_smc import SmcTraining  # noqa: E402
from tests.data import data_folder  # noqa: E402

MACHINE = {"data": Path("data"), "out": Path("out")}

SCENES = ("scene-s", "scene-m", "scene-paper", "scene-asconv")
"""Other sizes are for comparison: `benchmarks/scene_ablations.py` trains them."""


def test_every_size_has_a_recipe() -> None:
    assert recipe_names(SmcRun) == sorted(SIZES)
    assert recipe_names(SceneRun) == sorted(SCENES)
    for name in SCENES:
        scene = load_recipe(SceneRun, name, **MACHINE, max_minutes=3.0)
        assert (scene.size, scene.max_minutes) == (name.removesuffix("-machine"), 3.0)
        assert scene.size in SCENE_SIZES
        assert not set(scene.as_dict()) & {"data", "out", "threads"}
        json.dumps(scene.as_dict())
    for name in SIZES:
        run = load_recipe(SmcRun, name, **MACHINE, max_minutes=3.0)
        assert (run.size, run.max_minutes) == (name, 3.0)
        assert 0.0 <= run.free <= run.full_price <= 1.0
        assert run.coded == 0.0 or run.full_price <= run.coded < 1.0
        assert not set(run.as_dict()) & {"data", "out", "threads"}
        json.dumps(run.as_dict())


def test_every_recipe_is_a_command() -> None:
    commands = {trainable.value for trainable in Trainable}
    assert commands - {"detector", "action", "scene-machine"} == {*SIZES, *SCENES}


def test_the_paper_s_recipe_has_the_paper_s_terms() -> None:
    terms = load_recipe(SmcRun, "smc-paper", **MACHINE).terms
    assert (terms.alpha, terms.beta, terms.components, terms.masked.mask_ratio) == (1.0, 0.1, 5, 0.9)
    assert load_recipe(SmcRun, "smc-s", **MACHINE).terms.is_off


def test_scene_s_learns_from_x264_and_the_published_one_and_its_baseline_from_a_jpeg_alone() -> None:
    small, paper, baseline = (
        load_recipe(SceneRun, name, **MACHINE) for name in ("scene-s", "scene-paper", "scene-asconv")
    )
    assert (small.proxy, small.real_codec) == ("hybrid", True)
    assert (paper.proxy, paper.real_codec, paper.machine_weight) == ("jpeg", False, 0.0)
    assert paper.as_dict() | {"size": "scene-asconv"} == baseline.as_dict(), "what is compared differs in nothing else"


@pytest.mark.parametrize(
    ("kind", "settings", "named"),
    [
        (SmcRun, {"bach": 4}, "bach"),
        (SmcRun, {"batch": "many"}, "batch"),
        (SmcRun, {"terms": {"alpha": "loud"}}, "terms.alpha"),
        (SmcRun, {"proxy": "jpeg"}, "proxy"),
        (SceneRun, {"proxy": "mpeg"}, "proxy"),
        (SceneRun, {"real_codec": "perhaps"}, "real_codec"),
    ],
)
def test_a_bad_recipe_is_refused_by_the_name_of_what_is_wrong(
    kind: type[SmcRun] | type[SceneRun], settings: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        make_run(kind, {**MACHINE, **settings})


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="smc-xl"):
        load_recipe(SmcRun, "smc-xl", **MACHINE)
    with pytest.raises(ConfigError, match="smc-xl"):
        build_smc("smc-xl")
    with pytest.raises(ConfigError, match="scene-paper"):
        load_recipe(SceneRun, "smc-s", **MACHINE)
    with pytest.raises(ConfigError, match="scene-xl"):
        build_scene("scene-xl")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Two clips of noise, and noisier copies of them at two CRFs."""
    random = np.random.default_rng(3)
    entries = []
    for number in range(2):
        original = random.integers(0, 256, (4, 16, 16, 24), dtype=np.uint8)
        np.save(tmp_path / f"{number:03d}.original.npy", original)
        for crf, spread in ((31, 8), (47, 40)):
            noise = random.integers(-spread, spread + 1, original.shape)
            lossy = np.clip(original + noise, 0, 255).astype(np.uint8)
            np.save(tmp_path / f"{number:03d}.crf{crf}.npy", lossy)
        entries.append({"file": "x", "number": number, "frames": 4, "bpp": {"31": 0.2, "47": 0.02}})
    (tmp_path / "index.json").write_text(json.dumps(entries))
    return tmp_path


def moved_by(training: SmcTraining, fraction: float) -> set[str]:
    """The networks that a step at this fraction of the time box teaches."""
    training.model.zero_grad(set_to_none=True)
    loss, figures = training.step(Progressed(fraction, 0))
    loss.backward()
    assert np.isfinite(list(figures.values())).all()
    return {name.split(".")[0] for name, value in training.model.named_parameters() if value.grad is not None}


def test_the_coder_learns_first_then_f_net_alone(cache: Path) -> None:
    run = SmcRun(data=data_folder(), out=cache / "run", batch=2, coder_batch=2, crop=64, length=3)
    training = SmcTraining(run, cache)
    trunk = training.model.sem_net.join.weight.clone()
    for fraction in (0.01, 0.05, 0.15):
        assert moved_by(training, fraction) == {"sem_net", "sem_enc", "sem_dec"}
        assert bool(training.objective.scaled) == (fraction >= run.free)
    taught = {name for name, value in training.model.sem_net.named_parameters() if value.grad is not None}
    assert taught == {"temporal.older.weight", "temporal.newer.weight"}
    assert moved_by(training, 0.5) == {"f_net"}
    assert torch.equal(training.model.sem_net.join.weight, trunk)


def test_all_learn_at_once_where_the_paper_s_terms_are_on(cache: Path) -> None:
    terms = SemanticTermsConfig(alpha=0.0, beta=0.0, perceptual=0.0, adversarial=1.0, critic_width=8)
    run = SmcRun(data=data_folder(), out=cache / "run", batch=2, crop=64, length=2, coded=0.0, terms=terms)
    assert moved_by(SmcTraining(run, cache), 0.9) == {"sem_net", "sem_enc", "sem_dec", "f_net"}


def test_a_run_starts_from_the_weights_of_another(cache: Path) -> None:
    run = SmcRun(data=data_folder(), out=cache / "first", batch=2, crop=64, length=2)
    first = SmcTraining(run, cache)
    first.trainer.average["f_net.stem.weight"].fill_(0.25)
    first.trainer.save()
    run = SmcRun(data=data_folder(), out=cache / "second", batch=2, crop=64, start=cache / "first")
    second = SmcTraining(run, cache)
    assert bool((second.model.f_net.stem.weight == 0.25).all())
    assert second.taken == set(first.model.state_dict())
    assert moved_by(second, 0.01) == {"f_net"}  # the coder came with it, and is not taught again
    with pytest.raises(ConfigError, match="start"):
        load_start(second.model, cache / "nowhere")
    (cache / "bundle").mkdir()
    (cache / "bundle" / keepsake.FILE).write_bytes(keepsake.to_bytes({"f_net.head.bias": torch.full((24,), 0.5)}))
    assert load_start(second.model, cache / "bundle") == {"f_net.head.bias"}
    assert bool((second.model.f_net.head.bias == 0.5).all())


def test_the_published_size_cannot_learn_to_code_first(cache: Path) -> None:
    with pytest.raises(ConfigError, match="coded: 0"):
        SmcTraining(SmcRun(data=data_folder(), out=cache / "run", size="smc-paper", crop=64), cache)
