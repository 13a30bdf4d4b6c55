"""Each variant changes one part of the recipe, starts where the teaching ended, and is compared on the same crops."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from rich.console import Console

from benchmarks.ablations import (
    FULL,
    RECIPE,
    VARIANTS,
    OpenLoop,
    chosen_variants,
    claim,
    compare_with_full,
    draw,
    start_from,
    summarise,
    table_of,
    taught,
    teaching_run,
    variant_run,
)
from scene_edge.codec.errors import ConfigError, FormatError
from scene_edge.models.data import ClipSampler
from scene_edge.models.loop import Trainer
from scene_edge.models.objectives import MachineDistance
from scene_edge.models.operating_point import QUALITY_STEPS, price_of_bits
from scene_edge.models.recipes import SmcRun, load_recipe
from scene_edge.models.semantic_objective import SemanticTerms, SemanticTermsConfig
from scene_edge.models.semantics import SEMANTIC
from scene_edge.models.smc import Smc, SmcConfig
from scene_edge.models.train_smc import SmcObjective

MACHINE: dict[str, Any] = {"data": Path("data"), "out": Path("out"), "max_minutes": 10.0}


def flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("full", {}),
        ("no-compensation", {"compensated": False}),
        ("no-suppression", {"terms.beta": 0.0}),
        ("no-semantics", {"terms.conditional": False}),
        ("no-masking", {"terms.alpha": 0.0}),
        ("mask-0.5", {"terms.masked.mask_ratio": 0.5}),
        ("mask-0.75", {"terms.masked.mask_ratio": 0.75}),
        ("open-loop", {"residual": False}),
        ("no-teacher", {"machine_weight": 0.0}),
    ],
)
def test_a_variant_changes_one_part_and_nothing_else(name: str, changed: dict[str, Any]) -> None:
    full = dict(flat(variant_run(FULL, **MACHINE).as_dict()))
    found = dict(flat(variant_run(name, **MACHINE).as_dict()))
    assert {key: value for key, value in found.items() if value != full[key]} == changed
    assert variant_run(name, **MACHINE).max_minutes == 10.0


def test_every_variant_is_tested_and_full_is_the_shipped_recipe_with_its_terms() -> None:
    assert len(VARIANTS) == 9
    full, shipped = (
        dict(flat(run.as_dict())) for run in (variant_run(FULL, **MACHINE), load_recipe(SmcRun, RECIPE, **MACHINE))
    )
    assert {key for key in shipped if full[key] != shipped[key] and not key.startswith("terms.")} == set()
    assert (full["terms.alpha"], full["terms.beta"], full["terms.masked.mask_ratio"]) == (1.0, 0.1, 0.9)


def test_the_shared_teaching_takes_the_recipe_s_share_of_the_minutes() -> None:
    run = teaching_run(**MACHINE)
    recipe = load_recipe(SmcRun, RECIPE, **MACHINE)
    assert run.max_minutes == pytest.approx(recipe.coded * 10.0)
    assert run.coded == 1.0
    assert run.full_price * run.max_minutes == pytest.approx(recipe.full_price * 10.0)


def test_variants_are_chosen_by_name() -> None:
    assert chosen_variants("open-loop, full") == ["full", "open-loop"]
    with pytest.raises(ConfigError, match="no-network"):
        chosen_variants("full,no-network")


def test_a_folder_belongs_to_its_settings(tmp_path: Path) -> None:
    claim(tmp_path / "a", {"minutes": 10.0, "seed": 7})
    claim(tmp_path / "a", {"minutes": 10.0, "seed": 7})
    with pytest.raises(ConfigError, match="seed"):
        claim(tmp_path / "a", {"minutes": 10.0, "seed": 8})


class Fresh:
    """A run that has taken no step yet, of small networks."""

    def __init__(self, out: Path, latent: int = 4, variant: str = FULL) -> None:
        self.config = variant_run(variant, **(MACHINE | {"out": out}))
        self.model = Smc(SmcConfig(latent=latent, coder=8, fuse_widths=(8, 8, 8), entry=8))
        self.objective = SmcObjective(latent, SemanticTerms(SemanticTermsConfig.off(), SEMANTIC, Path()))
        self.trainer = Trainer(self.config, self.model, self.objective)


def test_a_variant_starts_where_the_teaching_ended(tmp_path: Path) -> None:
    torch.manual_seed(1)
    teacher, fresh = Fresh(tmp_path / "taught"), Fresh(tmp_path / "full")
    teacher.objective.scaled.fill_(1.0)
    teacher.trainer.steps = 50
    teacher.trainer.save()
    start_from(fresh, taught(tmp_path / "taught"))  # type: ignore[arg-type]
    resumed = Fresh(tmp_path / "full")
    for weights in (resumed.model.state_dict(), resumed.trainer.average):
        assert torch.equal(weights["sem_net.join.weight"], teacher.model.sem_net.join.weight)
        assert torch.equal(weights["sem_enc.head.weight"], teacher.model.sem_enc.head.weight)
        assert torch.equal(weights["f_net.stem.weight"], teacher.model.f_net.stem.weight)
    assert bool(resumed.objective.scaled)
    assert resumed.trainer.steps == 50
    assert resumed.trainer.seconds / (10.0 * 60) >= resumed.config.coded


def test_an_open_loop_learns_a_coder_of_its_own(tmp_path: Path) -> None:
    teacher, fresh = Fresh(tmp_path / "taught"), Fresh(tmp_path / "open", variant="open-loop")
    teacher.trainer.save()
    own = fresh.model.sem_enc.stem.weight.clone()
    start_from(fresh, taught(tmp_path / "taught"))  # type: ignore[arg-type]
    for weights in (fresh.model.state_dict(), fresh.trainer.average):
        assert torch.equal(weights["sem_enc.stem.weight"], own)
        assert torch.equal(weights["f_net.stem.weight"], teacher.model.f_net.stem.weight)
    assert fresh.trainer.seconds == 0


def test_a_start_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    Fresh(tmp_path / "taught", latent=16).trainer.save()
    with pytest.raises(FormatError, match="coder"):
        start_from(Fresh(tmp_path / "full"), taught(tmp_path / "taught"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="checkpoint"):
        taught(tmp_path / "nowhere")


def test_open_loop_is_judged_on_s_itself() -> None:
    model = Smc(SmcConfig(latent=4, coder=8, fuse_widths=(8, 8, 8), entry=8))
    states = model.states(1, 8, 8)
    given = torch.rand(1, 24, 8, 8), torch.rand(1, 24, 8, 8), states["sem"], states["lossy"]
    semantic, seen, *_ = model.mine_both(*given)
    coded, beside, *_ = OpenLoop(model).mine_both(*given)
    assert torch.allclose(coded - beside, semantic, atol=1e-4)
    assert torch.equal(beside, seen)


def test_the_price_of_bits_is_that_of_the_same_crops_at_every_crf(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    original = random.integers(40, 200, (2, 16, 16, 24), dtype=np.uint8)
    np.save(tmp_path / "000.original.npy", original)
    for crf, off in ((31, 2), (47, 8)):
        np.save(tmp_path / f"000.crf{crf}.npy", original + np.uint8(off))
    entry = {"file": "x", "number": 0, "frames": 2, "bpp": {"31": 0.4, "47": 0.1}}
    (tmp_path / "index.json").write_text(json.dumps([entry]))

    class Blind:
        """Sees no difference, so that what is left is the samples'."""

        def features(self, picture: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(picture))

        def distance(self, seen: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
            return seen - truth

    config = variant_run(FULL, **MACHINE)
    sampler, blind = ClipSampler(tmp_path, 1, size=32, length=1), cast(MachineDistance, Blind())
    price = price_of_bits(sampler, blind, config.sample_weight, config.machine_weight, 1)
    assert price == pytest.approx(config.sample_weight * 6 / 255 / math.log(4), rel=1e-4)


def measured(distance: float, share: float) -> dict[str, Any]:
    rows = [{"step": None, "distance": 1.9, "share": 0.0, "cost": 1.9}]
    rows += [
        {"step": step, "distance": distance, "share": share / step, "cost": distance + share / step}
        for step in QUALITY_STEPS
    ]
    return {"qualities": rows, "lossy_distance": 2.0}


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    full = summarise("full", 100, [measured(1.6, 0.1), measured(1.64, 0.1)])
    none = summarise("no-compensation", 120, [measured(1.0, 0.0), measured(1.0, 0.0)], compensated=False)
    return compare_with_full([full, none])


def test_rows_are_means_and_differences_are_paired(rows: list[dict[str, Any]]) -> None:
    full, none = rows
    assert full["best"]["step"] == QUALITY_STEPS[-1]
    assert full["best"]["distance"] == pytest.approx(1.62)
    assert full["without_percent"] == pytest.approx(-5.0)
    assert full["against_full"] == [0.0, 0.0]
    assert [quality["step"] for quality in none["qualities"]] == [None]
    gaps = [1.9 - 1.6 - 0.1 / QUALITY_STEPS[-1], 1.9 - 1.64 - 0.1 / QUALITY_STEPS[-1]]
    assert none["against_full"] == pytest.approx([50 * (gaps[0] + gaps[1]) / 2, 50 * (gaps[0] - gaps[1]) / 2])
    assert compare_with_full([none])[0]["against_full"] is None
    once = compare_with_full([summarise("full", 1, [measured(1.6, 0.1)])])
    assert once[0]["against_full"] == [0.0, None]


def test_table_and_plot_show_every_variant(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = io.StringIO()
    Console(file=page, width=170).print(table_of(rows))
    text = page.getvalue()
    assert "1.620" in text
    assert f"{10 / QUALITY_STEPS[0]:.1f}%" in text
    assert all(VARIANTS[row["variant"]].title in text for row in rows)
    draw(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
