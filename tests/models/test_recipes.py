"""Recipes are complete and refuse what they do not know; every stage of SMC's training takes a step and learns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from scene_edge.codec.errors import ConfigError  # noqa: E402
from scene_edge.models.loop import Progressed  # noqa: E402
from scene_edge.models.recipes import SmcRun, load_recipe, make_run, recipe_names  # noqa: E402
from scene_edge.models.sizes import SIZES, build_smc  # noqa: E402
from scene_edge.models.train_smc import SmcObjective, SmcTraining  # noqa: E402
from tests.data import data_folder  # noqa: E402

MACHINE = {"data": Path("data"), "out": Path("out")}


def test_every_size_has_a_recipe() -> None:
    assert recipe_names() == sorted(SIZES)
    for name in SIZES:
        run = load_recipe(name, **MACHINE, max_minutes=3.0)
        assert (run.size, run.max_minutes) == (name, 3.0)
        assert 0.0 <= run.mined <= run.free <= run.full_price <= 1.0
        assert not set(run.as_dict()) & {"data", "out", "threads"}
        json.dumps(run.as_dict())


def test_the_paper_s_recipe_has_the_paper_s_terms() -> None:
    terms = load_recipe("smc-paper", **MACHINE).terms
    assert (terms.alpha, terms.beta, terms.components, terms.masked.mask_ratio) == (1.0, 0.1, 5, 0.9)
    assert load_recipe("smc-s", **MACHINE).terms.is_off


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"bach": 4}, "bach"),
        ({"batch": "many"}, "batch"),
        ({"terms": {"alpha": "loud"}}, "terms.alpha"),
    ],
)
def test_a_bad_recipe_is_refused_by_the_name_of_what_is_wrong(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make_run({**MACHINE, **settings})


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="smc-xl"):
        load_recipe("smc-xl", **MACHINE)
    with pytest.raises(ConfigError, match="smc-xl"):
        build_smc("smc-xl")


def test_the_basis_explains_a_feature_that_has_few_dimensions() -> None:
    from scene_edge.models.semantic_objective import SemanticTerms, SemanticTermsConfig

    objective = SmcObjective(8, 4, SemanticTerms(SemanticTermsConfig.off(), 8, Path()))
    generator = torch.Generator().manual_seed(1)
    mixed = torch.einsum(
        "bkhw,kc->bchw", torch.randn(4, 8, 8, 8, generator=generator), torch.randn(8, 128, generator=generator)
    )
    assert objective.fit_basis(mixed) > 0.999
    wanted = objective.wanted(mixed)
    assert wanted.shape == (4, 8, 8, 8)
    assert float(wanted.square().mean()) == pytest.approx(1.0, rel=1e-2)


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


def test_every_stage_takes_a_step_and_a_taught_sem_net_stands_still(cache: Path) -> None:
    run = SmcRun(data=data_folder(), out=cache / "run", batch=2, crop=64, length=2)
    training = SmcTraining(run, cache)
    networks = training.model
    for fraction, moves in ((0.01, "sem_net"), (0.3, "f_net"), (0.6, "sem_enc"), (0.9, "f_net")):
        loss, figures = training.step(Progressed(fraction, 0))
        networks.zero_grad(set_to_none=True)
        loss.backward()
        assert np.isfinite(list(figures.values())).all()
        moved = {name.split(".")[0] for name, value in networks.named_parameters() if value.grad is not None}
        assert moves in moved
        assert ("sem_net" in moved) == (moves == "sem_net")
    assert bool(training.objective.scaled)
