"""`scene-edge quantize`: names, folders, refusals, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="quantisation needs the extra train: pip install scene-edge[train]")
pytest.importorskip("onnxscript", reason="quantisation needs the extra train: pip install scene-edge[train]")

import typer
from typer.testing import CliRunner

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import ConfigError, EngineError
from scene_edge.models import registry
from scene_edge.quantize.cli import quantize
from tests.quantize.toys import toy_graphs

app = typer.Typer()
app.command()(quantize)
runner = CliRunner()


def toy_export(run: Path, data: Path, cache: Path) -> registry.BundleExport:
    graphs = {"filter": toy_graphs(4)["filter"]}
    return registry.BundleExport("toy-s", "scene", graphs, {"grid": 4}, {"steps": 1}, {})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an (empty) run of a registered toy."""
    monkeypatch.setitem(registry.EXPORTS, "toy-s", toy_export)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "toy").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    return tmp_path


@pytest.mark.parametrize("model", ["toy-s", "runs/toy"])
def test_by_name_or_by_run_and_the_counter_goes_up(folder: Path, model: str) -> None:
    arguments = [model, "--engine", "onnx", "--calibration", "data", "--out", "zoo/toy", "--json", "report.json"]
    for counter in (1, 2):
        result = runner.invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0
        assert Bundle.open(folder / "zoo" / "toy").counter == counter
    assert "filter.int8.onnx" in result.output
    report = json.loads((folder / "report.json").read_text())
    assert {item["file"] for item in report["artifacts"]} == {"filter.fp32.onnx", "filter.int8.onnx"}


def test_a_loss_beyond_max_error_is_refused(folder: Path) -> None:
    arguments = ["toy-s", "--engine", "onnx", "--calibration", "data", "--out", "zoo/toy", "--max-error", "0.0000001"]
    result = runner.invoke(app, arguments)
    assert isinstance(result.exception, EngineError)
    assert "--max-error" in str(result.exception)
    assert not (folder / "zoo" / "toy").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "--calibration", "data"], "no such model or run"),
        (["data", "--calibration", "data"], "which model"),
        (["toy-s", "--calibration", "nowhere"], "no such folder with clips"),
    ],
)
def test_bad_input_is_a_usage_error(folder: Path, arguments: list[str], message: str) -> None:
    result = runner.invoke(app, arguments)
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)
    assert result.exception.exit_code == 2


def test_an_unknown_method_is_refused_and_the_allowed_ones_are_named(folder: Path) -> None:
    result = runner.invoke(app, ["toy-s", "--method", "magic", "--calibration", "data"])
    assert result.exit_code == 2
    assert "ptq" in result.output
    assert "qat" in result.output


def test_training_in_int8_is_told_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(run: Path, data: Path, cache: Path) -> registry.BundleExport:
        return registry.BundleExport("toy-s", "smc", {"encoder": toy_graphs(24)["encoder"]}, {}, {"steps": 1}, {})

    monkeypatch.setitem(registry.EXPORTS, "toy-s", export)
    arguments = ["toy-s", "--engine", "onnx", "--calibration", "data", "--out", "zoo/toy", "--json", "report.json"]
    result = runner.invoke(app, [*arguments, "--method", "qat", "--steps", "2"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "encoder, trained: latent " in result.output
    report = json.loads((folder / "report.json").read_text())
    assert (report["method"], report["training"]["encoder"]["steps"]) == ("qat", 2)


def test_help_has_an_example() -> None:
    assert "Example: scene-edge quantize" in " ".join(runner.invoke(app, ["--help"]).output.split())
