"""The command line: what scripts depend on, in words, exit codes and JSON; errors are one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

import scene_edge.cli as cli
from scene_edge.codec.errors import RunError

FLEET = [f"fleet {name}" for name in ("init", "device", "request", "revoke", "list")]
COMMANDS = [*cli.PARTS, *FLEET, "version", "models list", "models show", "models verify"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cli-cache"))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index in range(10):
            array = np.full((96, 96), 60 + 5 * index, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(array, format="yuv420p")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    return error


def importable(command: str) -> bool:
    """Whether this environment has what the command's part needs."""
    module = cli.PARTS.get(command, ("scene_edge.cli", "", ""))[0]
    try:
        __import__(module)
    except ModuleNotFoundError as error:
        return (error.name or "").partition(".")[0] not in cli.EXTRAS
    return True


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    if not importable(command):
        pytest.skip(f"{command} needs an extra that is not installed")
    assert cli.run([*command.split(), "--help"]) == 0
    assert re.search(r"Examples?: scene-edge", " ".join(capsys.readouterr().out.split()))


def test_the_overview_names_every_command_and_imports_no_part() -> None:
    code = (
        "import sys, scene_edge.cli as cli; cli.run(['--help']);"
        "heavy = {'torch', 'openvino', 'fastapi', 'av', 'numpy', 'paho'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in (*cli.PARTS, "version", "models"):
        assert re.search(rf"^  {command} ", done.stdout, re.MULTILINE)


def test_nothing_at_all_shows_the_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 0
    assert "Usage" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bogus"], "No such command"),
        (["start", "--bogus"], "No such option"),
        (["start", "--frames", "many"], "--frames"),
        (["start", "--profile", "pentium"], "no such profile"),
        (["start", "--config", "absent.yaml"], "cannot read"),
        (["start", "--source", "absent.mp4"], "no such video file"),
        (["start", "--camera", "a b"], "camera"),
        (["start", "--broker", "http://x"], "mqtt://"),
        (["start", "--set", "video.crf=99"], "less than or equal to 51"),
        (["start", "--set", "video.crf"], "key=value"),
        (["encode"], "Missing argument"),
        (["encode", "absent.mp4", "out.mkv"], "no such video file"),
        (["encode", "a", "b.mkv", "--crf", "30", "--bitrate", "500"], "exclude each other"),
        (["encode", "a", "b.mkv", "--crf", "99"], "--crf"),
        (["bench", "--size", "big"], "not a picture size"),
        (["bench", "--size", "961x540"], "not a picture size"),
        (["bench", "--size", "16x16"], "not a picture size"),
        (["bench", "--engine", "abacus"], "no such engine"),
        (["bench", "--frames", "0"], "--frames"),
        (["bench", "--size", "96x64", "--source", "absent.mp4"], "no such video file"),
        (["validate", "absent.yaml"], "cannot read"),
        (["validate"], "--schema"),
        (["profiles", "--show", "pentium"], "no such profile"),
        (["models", "show", "absent"], "no such bundle"),
        (["models", "verify", "absent"], "no such bundle"),
        (["models"], "Missing command"),
    ],
)
def test_bad_usage_and_bad_input_are_one_line_and_exit_code_2(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(arguments) == 2
    assert words in one_line(capsys)


def test_a_failure_at_run_time_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["start", "--profile", "cpu", "--source", "testsrc:", "--frames", "4", "--broker", "mqtt://127.0.0.1:9"]
    settings = ["--set", "scene.enabled=false", "semantics.enabled=false", "mqtt.drain_s=0.1", "source.pace=asap"]
    small = ["source.width=96", "source.height=64", "log.level=error"]
    assert cli.run([*arguments, *settings, *small]) == 1
    assert "4 of 4 frames were never acknowledged" in one_line(capsys)


def test_what_nobody_foresaw_is_one_line_too_unless_debugging(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(cli, "version", fails)
    assert cli.run(["version"]) == 1
    assert "internal: ZeroDivisionError: oh" in one_line(capsys)
    assert cli.run(["version", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_run_errors_and_interrupts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run_error() -> None:
        raise RunError("broke", got=3)

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "version", run_error)
    assert cli.run(["version"]) == 1
    assert one_line(capsys) == "error: broke; got 3\n"
    monkeypatch.setattr(cli, "version", interrupt)
    assert cli.run(["version"]) == cli.INTERRUPTED


@pytest.mark.parametrize(("package", "extra"), [("torch", "train"), ("fastapi", "server"), ("openvino", "openvino")])
def test_a_missing_package_names_its_extra(
    package: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise ModuleNotFoundError(f"No module named '{package}'", name=f"{package}.sub")

    monkeypatch.setattr(cli, "version", fails)
    assert cli.run(["version"]) == 2
    assert f"pip install 'scene-edge[{extra}]'" in one_line(capsys)


def test_train_without_torch_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['torch'] = None;"
        "import scene_edge.cli as cli; sys.exit(cli.run(['train', 'scene-s', '--data', '.', '--out', 'x']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: this command needs the package torch. pip install 'scene-edge[train]'"


def test_version_and_module(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["version"]) == 0
    assert capsys.readouterr().out.startswith("scene-edge ")
    done = subprocess.run([sys.executable, "-m", "scene_edge", "version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("scene-edge ")


def test_encode_writes_the_recording_and_its_report(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "out.mkv", tmp_path / "report.json"
    plain = ["--no-scene", "--no-semantics", "--profile", "cpu"]
    assert cli.run(["encode", str(clip), str(out), *plain, "--crf", "35", "--json", str(report)]) == 0
    document = json.loads(report.read_text())
    assert document["frames"] == 10
    assert document["fps"] > 0
    assert document["bytes"].keys() == {"video", "semantic", "sei", "container", "total"}
    assert document["bytes"]["total"] == out.stat().st_size
    assert set(document["ms"]) >= {"encode", "total"}
    capsys.readouterr()
    small = tmp_path / "small.mkv"
    assert cli.run(["encode", str(clip), str(small), *plain, "--bitrate", "40", "--width", "64", "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["width"], document["height"]) == (64, 42)


def test_encode_without_bundles_is_an_error_that_says_how_to_go_on(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.mkv"
    assert cli.run(["encode", str(clip), str(out), "--profile", "cpu", "--set", f"bundles.zoo={tmp_path}"]) == 2
    assert "no such bundle" in one_line(capsys)
    assert not out.exists()


def test_an_unwritable_report_is_an_error(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["encode", str(clip), str(tmp_path / "o.mkv"), "--no-scene", "--no-semantics", "--profile", "cpu"]
    assert cli.run([*arguments, "--json", str(tmp_path / "none" / "r.json")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_validate_names_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("profile: rpi5\ncamera: gate-1\n")
    bad.write_text("video:\n  gop: 0\n")
    assert cli.run(["validate", str(good)]) == 0
    assert "camera gate-1, profile rpi5" in capsys.readouterr().out
    assert cli.run(["validate", str(bad)]) == 2
    assert "bad.yaml:2: video.gop" in one_line(capsys)
    assert cli.run(["validate", "--schema"]) == 0
    assert "properties" in json.loads(capsys.readouterr().out)


def test_profiles_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["profiles"]) == 0
    table = capsys.readouterr().out
    for name in ("auto", "cpu", "intel", "jetson", "rpi4", "rpi5"):
        assert name in table
    assert cli.run(["profiles", "--show", "rpi5"]) == 0
    assert "NO H.264 encoder" in capsys.readouterr().out


def test_models_verify_finds_what_was_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from scene_edge.codec.bundle import public_key_of, sign_bundle
    from tests.edge.bundles import scene_bundle

    folder = tmp_path / "scene-tiny"
    scene_bundle(folder)
    assert cli.run(["models", "verify", str(folder)]) == 0
    assert "good" in capsys.readouterr().out
    assert cli.run(["models", "show", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "scene-tiny"
    secret = bytes(range(32))
    key = tmp_path / "key"
    key.write_text(public_key_of(secret).hex())
    assert cli.run(["models", "verify", str(folder), "--key", str(key)]) == 2
    assert "not signed" in one_line(capsys)
    sign_bundle(folder, secret)
    assert cli.run(["models", "verify", str(folder), "--key", str(key)]) == 0
    assert "signed" in capsys.readouterr().out
    file = folder / "filter.fp32.onnx"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert cli.run(["models", "verify", str(folder)]) == 2
    assert "SHA-256 differs" in one_line(capsys)


def test_models_list_is_json_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["models", "list", "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), list)
    assert cli.run(["models", "list"]) == 0


def test_doctor_tells_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["doctor", "--profile", "cpu", "--broker", "mqtt://127.0.0.1:9", "--json"]
    settings = ["--set", "scene.bundle=absent-a", "--set", "semantics.enabled=false"]
    assert cli.run([*arguments, *settings]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    found = {finding["code"]: finding for finding in document["findings"]}
    assert found["ENCODER"]["level"] == "ok"
    assert found["BROKER"]["level"] == "fail"
    assert found["BUNDLE"]["level"] == "fail"
    assert all(finding["sentence"] for finding in document["findings"])
    assert all(finding["command"] for finding in document["findings"] if finding["level"] == "fail")


@pytest.mark.parametrize(
    ("path", "max_mb", "level", "words"),
    [
        ("null", "1", "ok", "lost with the process"),
        ("here/spool", "1", "ok", "outlive the process"),
        ("here/spool", "900000", "warn", "are free in"),
        ("here/file/spool", "1", "warn", "cannot be written"),
    ],
)
def test_doctor_looks_at_the_spool(tmp_path: Path, path: str, max_mb: str, level: str, words: str) -> None:
    from scene_edge.edge.doctor import _spool
    from scene_edge.edge.settings import load_config

    (tmp_path / "file").touch()
    overrides = [f"spool.path={path.replace('here', str(tmp_path))}", f"spool.max_mb={max_mb}"]
    (finding,) = _spool(load_config("cpu", overrides=overrides, environment={}))
    assert (finding.code, finding.level) == ("SPOOL", level)
    assert words in finding.sentence


def test_doctor_runs_a_real_inference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from tests.edge.bundles import smc_bundle

    smc_bundle(tmp_path / "smc-tiny")
    arguments = ["doctor", "--profile", "cpu", "--broker", "mqtt://127.0.0.1:9", "--set", f"bundles.zoo={tmp_path}"]
    settings = ["scene.enabled=false", "semantics.bundle=smc-tiny", "semantics.engines=[tensorrt,onnx]"]
    assert cli.run([*arguments, *settings]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "smc-tiny/encoder runs on onnx" in text
    assert "smc-tiny/encoder does not run on tensorrt" in text


BENCH_KEYS = {"stage", "model", "engine", "precision", "width", "height", "ms_p50", "ms_p95", "fps", "peak_ratio"}


def test_bench_lists_every_stage_and_writes_what_it_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from scene_edge.inference.stages import CAMERA_STAGES, STAGES
    from tests.edge.bundles import scene_bundle, smc_bundle

    scene_bundle(tmp_path / "scene-tiny")
    smc_bundle(tmp_path / "smc-tiny")
    settings = [f"bundles.zoo={tmp_path}", "scene.bundle=scene-tiny", "semantics.bundle=smc-tiny"]
    arguments = ["bench", "--profile", "cpu", "--size", "96x64", "--frames", "6", "--json", str(tmp_path / "b.json")]
    assert cli.run([*arguments, "--set", *settings]) == 0
    document = json.loads((tmp_path / "b.json").read_text())
    assert {"machine", "stages"} <= document.keys()
    rows = document["stages"]
    assert list(dict.fromkeys(row["stage"] for row in rows)) == list(STAGES)
    for row in rows:
        assert row.keys() >= BENCH_KEYS
        assert (row["width"], row["height"]) == (96, 64)
        assert (row["ms_p50"] is None) == bool(row["reason"])
        if row["ms_p50"] is not None:
            assert row["ms_p50"] <= row["ms_p95"]
            assert row["fps"] > 0
    ran = {row["stage"] for row in rows if row["ms_p50"] is not None}
    assert set(CAMERA_STAGES) - {"publish"} <= ran
    assert "smc_decode" not in ran, "the tiny bundle has no decoder"
    assert document["machine"]["peaks"]["copy_gbytes_per_s"] > 0
    assert document["choice"]["smc_encode"]["engine"] in ("onnx", "openvino"), "both run its float32"
    assert document["choice"]["scene"] is None, "the tiny filter ships no golden run"
    assert document["choice_stored"] is True
    text = " ".join(capsys.readouterr().out.split())
    assert "limits the camera, at" in text
    assert document["limit"]["sentence"].split(";")[0] in text
    assert "smc_decode did not run: bundle smc-tiny has no such graph" in text
    few = ["bench", "--size", "96x64", "--frames", "1", "--engine", "onnx", "--json", str(tmp_path / "b.json")]
    assert cli.run([*few, "--set", *settings]) == 0
    assert json.loads((tmp_path / "b.json").read_text())["choice_stored"] is False, "others were left out"
