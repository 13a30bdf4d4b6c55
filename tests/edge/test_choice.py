"""Which engine bench's figures choose, for how long that holds, and that a camera whose engines are `auto` obeys."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import ConfigError
from scene_edge.edge.board import fingerprint
from scene_edge.edge.choice import ChoiceCache, Chosen, choice_for, choose, engine_marks, usual_size
from scene_edge.edge.doctor import Finding, _choice
from scene_edge.edge.networks import open_networks
from scene_edge.edge.settings import load_config
from scene_edge.inference.stages import StageRow, without
from tests.edge.conftest import Configure

ORDER = ("openvino", "onnx", "litert")
VERDICT = Chosen("onnx", "fp32", 3.0, "onnx fp32 takes 3.0 ms a run, and nothing else is eligible")


def row(engine: str, precision: str, ms: float, *, proven: bool = True) -> StageRow:
    return StageRow("scene", "scene-s", engine, precision, 96, 64, ms, ms, 1000 / ms, proven=proven)


def test_the_fastest_that_reproduced_its_golden_run_is_chosen_and_says_why() -> None:
    rows = [row("openvino", "int8", 20), row("onnx", "fp32", 50), row("litert", "int8", 10, proven=False)]
    chosen = choose([*rows, without(row("tensorrt", "int8", 1), "absent")], ORDER)
    assert chosen is not None
    assert (chosen.engine, chosen.precision, chosen.ms) == ("openvino", "int8", 20)
    assert "openvino int8 takes 20.0 ms a run, onnx fp32 50.0" in chosen.why
    assert "not eligible: litert int8 10.0" in chosen.why


def test_float_is_chosen_where_int8_is_slower() -> None:
    chosen = choose([row("onnx", "int8", 30), row("onnx", "fp32", 20)], ORDER)
    assert chosen is not None
    assert chosen.precision == "fp32"


def test_what_is_as_fast_leaves_the_order_as_it_is() -> None:
    chosen = choose([row("onnx", "int8", 10.0), row("openvino", "int8", 10.4)], ORDER)
    assert chosen is not None
    assert chosen.engine == "openvino"
    assert "so close" in chosen.why
    further = choose([row("onnx", "int8", 10.0), row("openvino", "int8", 10.6)], ORDER)
    assert further is not None
    assert further.engine == "onnx"


def test_nothing_is_chosen_where_nothing_is_proven() -> None:
    assert choose([], ORDER) is None
    assert choose([row("litert", "int8", 5, proven=False), without(row("onnx", "int8", 1), "broken")], ORDER) is None


def test_a_verdict_holds_for_this_board_bundle_size_and_threads_alone(zoo: Path, tmp_path: Path) -> None:
    smc, scene = Bundle.open("smc-tiny", zoo=zoo), Bundle.open("scene-tiny", zoo=zoo)
    path = tmp_path / "new" / "engines.json"
    cache = ChoiceCache(path, {"board": "x", "openvino": "1"})
    assert cache.put(smc, 96, 64, None, VERDICT)
    assert cache.get(smc, 96, 64, None) == VERDICT
    assert cache.get(smc, 90, 60, 2) == VERDICT, "the same grid, and the usual number of threads"
    assert cache.get(smc, 128, 64, None) is None
    assert cache.get(smc, 96, 64, 1) is None
    assert cache.get(scene, 96, 64, None) is None
    for marks in ({"board": "y", "openvino": "1"}, {"board": "x", "openvino": "2"}):
        assert ChoiceCache(path, marks).get(smc, 96, 64, None) is None
    changed = Bundle.open("smc-tiny", zoo=zoo)
    changed.digest = bytes(32)
    assert cache.get(changed, 96, 64, None) is None


@pytest.mark.parametrize(
    "value", ["fast", 3, {"engine": "onnx"}, {"engine": "onnx", "precision": "int8", "why": "", "ms": "little"}]
)
def test_a_cache_with_something_else_in_it_is_no_verdict(zoo: Path, tmp_path: Path, value: object) -> None:
    smc, path = Bundle.open("smc-tiny", zoo=zoo), tmp_path / "engines.json"
    cache = ChoiceCache(path, {})
    cache.put(smc, 96, 64, None, VERDICT)
    path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_text()), value)))
    assert cache.get(smc, 96, 64, None) is None
    path.write_text("[]")
    assert cache.get(smc, 96, 64, None) is None


def test_marks_name_the_engines_versions() -> None:
    marks = engine_marks()
    assert fingerprint().items() <= marks.items()
    assert {"openvino", "onnxruntime", "ai-edge-litert", "tensorrt"} <= marks.keys()


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("own_cache")
def test_auto_takes_the_verdict_and_names_take_the_order(configure: Configure, zoo: Path) -> None:
    automatic = configure("semantics.engines=[auto,tensorrt,onnx]", "semantics.precision=int8", "scene.enabled=false")
    networks = open_networks(automatic, 96, 64, strict=True)
    assert any("tensorrt" in reason for reason in networks.degraded)
    assert networks.choices == {
        "smc": "in the order of the settings: tensorrt, onnx at int8; not measured here (scene-edge bench)"
    }
    networks.close()
    ChoiceCache().put(Bundle.open("smc-tiny", zoo=zoo), 96, 64, None, VERDICT)
    chosen = open_networks(automatic, 96, 64, strict=True)
    assert chosen.engines["smc"].startswith("onnx fp32")
    assert chosen.choices == {"smc": VERDICT.why}
    assert chosen.degraded == (), "what was chosen is no fallback"
    chosen.close()
    named = configure("semantics.engines=[tensorrt,onnx]", "scene.enabled=false")
    assert choice_for(named.semantics, Bundle.open("smc-tiny", zoo=zoo), 96, 64) is None
    settled = open_networks(named, 96, 64, strict=True)
    assert settled.degraded
    assert settled.choices["smc"].startswith("in the order of the settings: tensorrt, onnx at ")


@pytest.mark.usefixtures("own_cache")
def test_a_verdict_that_does_not_run_any_more_is_announced(configure: Configure, zoo: Path) -> None:
    gone = replace(VERDICT, engine="tensorrt", precision="int8")
    ChoiceCache().put(Bundle.open("smc-tiny", zoo=zoo), 96, 64, None, gone)
    config = configure("semantics.engines=[auto,onnx]", "scene.enabled=false")
    networks = open_networks(config, 96, 64, strict=True)
    assert networks.engines["smc"].startswith("onnx")
    assert any("what bench chose does not run any more" in reason for reason in networks.degraded)
    networks.close()


@pytest.mark.usefixtures("own_cache")
def test_doctor_says_what_was_chosen_and_why(configure: Configure, zoo: Path) -> None:
    bundle = Bundle.open("smc-tiny", zoo=zoo)

    def ask(*overrides: str) -> Finding:
        config = configure(*overrides)
        return _choice(config, config.semantics, bundle)

    assert "the settings give the order of engines: onnx" in ask().sentence
    open_question = ask("semantics.engines=[auto]")
    assert "nobody has measured" in open_question.sentence
    assert open_question.command == "scene-edge bench --profile cpu"
    ChoiceCache().put(bundle, *usual_size(configure()), None, VERDICT)
    settled = ask("semantics.engines=[auto]")
    assert settled.level == "ok"
    assert settled.sentence == f"smc-tiny runs on onnx fp32 at 96x64: {VERDICT.why}."


def test_auto_comes_first_or_not_at_all() -> None:
    alone = load_config("cpu", overrides=["scene.engines=[auto]"], environment={})
    assert alone.scene.named_engines == ("openvino", "onnx", "litert")
    with pytest.raises(ConfigError, match="auto comes first"):
        load_config("cpu", overrides=["scene.engines=[onnx,auto]"], environment={})
