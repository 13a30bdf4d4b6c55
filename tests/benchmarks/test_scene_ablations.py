"""Variants of SCENE change one thing, and the yardstick knows a filter that does nothing from one that leaves grey."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rich.console import Console  # noqa: E402

from benchmarks import scene_ablations  # noqa: E402
from benchmarks.scene_ablations import (  # noqa: E402
    FULL,
    QPS,
    VARIANTS,
    Judged,
    Yardstick,
    draw,
    summarise,
    table_of,
    variant_run,
)
from scene_edge.codec.errors import ConfigError  # noqa: E402
from scene_edge.models.blocks import to_planes  # noqa: E402
from scene_edge.models.recipes import SceneRun, load_recipe  # noqa: E402
from scene_edge.models.sizes import build_scene  # noqa: E402

MACHINE: dict[str, Any] = {"data": Path("data"), "out": Path("out"), "max_minutes": 10.0}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_changes_what_it_says_and_nothing_else(name: str) -> None:
    full, other = load_recipe(SceneRun, "scene-m", **MACHINE).as_dict(), variant_run(name, **MACHINE).as_dict()
    assert {key: value for key, value in other.items() if full[key] != value} == dict(VARIANTS[name].recipe)
    assert build_scene(other["size"]) is not None


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ConfigError, match="no-detail"):
        variant_run("bigger", **MACHINE)


def test_what_is_better_is_worth_bits_at_the_codec_s_own_price() -> None:
    assert Judged(27, better=0.07, rise=0.02, price=0.7).rate_percent == pytest.approx(-8.0)
    draws = [[Judged(qp, 0.07 * step, 0.02, 0.7) for qp in QPS] for step in (0, 1, 2)]
    row = summarise(FULL, 9, draws)
    assert row["rate"] == pytest.approx(-8.0)
    assert row["error"] == pytest.approx(10 / 3**0.5)
    assert [point["rise"] for point in row["by_qp"]] == pytest.approx([2.0] * 4)
    assert summarise(FULL, 9, draws[:1])["error"] is None


def test_table_and_plot_show_every_variant(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [summarise(name, 9, [[Judged(qp, 0.01, 0.0, 0.7) for qp in QPS]] * 2) for name in VARIANTS]
    out = Console(file=io.StringIO(), width=170)
    out.print(table_of(rows))
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert all(variant.title in text for variant in VARIANTS.values())
    draw(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_the_yardstick_knows_nothing_from_a_loss_of_contrast(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(5)
    texture = random.integers(70, 180, (1, 1, 16, 16, 24), dtype=np.uint8).repeat(3, 1)

    def sampler(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(
            sample=lambda _: SimpleNamespace(original=texture, whole=[texture[0, 0]], clips=texture[0])
        )

    monkeypatch.setattr(scene_ablations, "ClipSampler", sampler)

    def frames(batch: Any) -> list[torch.Tensor]:
        return [torch.from_numpy(batch.original[:, i]).permute(0, 3, 1, 2).float() / 255 for i in range(3)]

    def qualities(decoded: Any, original: Any, _: Any) -> torch.Tensor:
        return torch.log((to_planes(decoded[-1])[0] - to_planes(original[-1])[0]).abs().mean((1, 2, 3)) + 1e-3)

    like: Any = SimpleNamespace(config=SimpleNamespace(crop=64, length=3, batch=1), frames=frames, qualities=qualities)
    yardstick = Yardstick(Path(), like, [1, 2], 1)

    def filter_of(greyer: float) -> Any:
        def filtered(given: Any, _: Any) -> Any:
            return [frame + greyer * (0.5 - frame) for frame in given]

        model = SimpleNamespace(eval=lambda: None)
        return SimpleNamespace(model=model, controls=lambda *_: None, filtered=filtered)

    for point in (point for each in yardstick.judge(filter_of(0.0), "nothing") for point in each):
        assert (point.better, point.rise) == (0.0, 0.0)
        assert point.price > 0
    grey = [point for each in yardstick.judge(filter_of(1.0), "grey") for point in each]
    assert grey[0].rise < -0.1
    assert grey[0].better < -0.1
