"""Provisioning, updating and removing: run for real below a temporary root with a stand-in for Python, or dry."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from scene_edge.edge.config import CameraConfig
from tests.data import REPOSITORY

SCRIPTS = REPOSITORY / "firmware_scripts"

# Plays `python -m venv`, `python -m pip install` and the installed command; a wheel named *broken* does not install,
# and one named *picky* installs a version that refuses the configuration.
PYTHON = """#!/bin/sh
echo "python $*" >>"$CALLS"
case "$1 $2" in
    "-m venv")
        for place in "$@"; do :; done
        mkdir -p "$place/bin"
        cp "$0" "$place/bin/python" ;;
    "-m pip")
        for wheel in "$@"; do :; done
        case "$wheel" in *broken*) exit 1 ;; esac
        { echo '#!/bin/sh'; echo "echo \\"scene-edge \\$* of $wheel\\" >>\\"$CALLS\\""
          echo 'if [ "$1 $2" = "fleet request" ]; then mkdir -p "$5"; echo secret >"$5/client.key"; fi'
          case "$wheel" in *picky*) echo '[ "$1" != validate ]' ;; esac; } >"${0%/python}/scene-edge"
        chmod +x "${0%/python}/scene-edge" ;;
esac
"""


@dataclass
class Board:
    """A root folder that stands for a board's file system."""

    root: Path
    calls: Path
    python: Path

    def run(self, script: str, *arguments: str | Path, health: str = "true") -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": os.environ["PATH"],
            "SCENE_EDGE_ROOT": str(self.root),
            "PYTHON": str(self.python),
            "CALLS": str(self.calls),
            "SCENE_EDGE_HEALTH_COMMAND": health,
        }
        command = [str(SCRIPTS / script), *(str(argument) for argument in arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    def wheel(self, name: str = "scene_edge-0.1.0-py3-none-any.whl") -> Path:
        path = self.root.parent / name
        path.write_bytes(name.encode())
        return path

    @property
    def slot(self) -> str:
        return os.readlink(self.root / "opt/scene-edge/current")

    @property
    def settings(self) -> Path:
        return self.root / "etc/scene-edge/camera.yaml"


@pytest.fixture
def board(tmp_path: Path) -> Board:
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    (tmp_path / "root").mkdir()
    return Board(tmp_path / "root", tmp_path / "calls", python)


@pytest.fixture
def camera(board: Board) -> Board:
    done = board.run("provision.sh", "--wheel", board.wheel(), "--profile", "rpi5", "--camera", "gate-1")
    assert done.returncode == 0, done.stderr
    return board


def test_provisioning_lays_out_a_camera(camera: Board) -> None:
    assert camera.slot == "a"
    text = camera.settings.read_text()
    assert "camera: gate-1" in text
    assert 'url: "picamera2:0"' in text
    assert "SCENE_EDGE_PROFILE=rpi5" in (camera.root / "etc/scene-edge/environment").read_text()
    assert (camera.root / "etc/systemd/system/scene-edge.service").is_file()
    calls = camera.calls.read_text()
    assert "-m venv --system-site-packages" in calls, "libcamera comes from the system on a Pi"
    assert "scene_edge-0.1.0-py3-none-any.whl[litert]" in calls


@pytest.mark.parametrize(
    ("model", "profile"),
    [
        ("Raspberry Pi 4 Model B Rev 1.4", "rpi4"),
        ("Raspberry Pi 5 Model B Rev 1.0", "rpi5"),
        ("NVIDIA Jetson Orin Nano Developer Kit", "jetson"),
        ("Some Board", "cpu"),
    ],
)
def test_the_profile_follows_from_the_board(board: Board, model: str, profile: str) -> None:
    told = board.root / "proc/device-tree/model"
    told.parent.mkdir(parents=True)
    told.write_bytes(model.encode() + b"\0")
    done = board.run("provision.sh", "--dry-run", "--wheel", board.wheel())
    assert done.returncode == 0, done.stderr
    assert f"profile {profile}," in done.stdout


def validated(board: Board) -> CameraConfig:
    return CameraConfig.model_validate(yaml.safe_load(board.settings.read_text()))


def test_the_configuration_it_writes_is_valid(camera: Board) -> None:
    config = validated(camera)
    assert (config.camera, config.source.url) == ("gate-1", "picamera2:0")


def test_provisioning_again_keeps_what_the_operator_wrote(camera: Board) -> None:
    camera.settings.write_text("camera: mine\n")
    environment = camera.root / "etc/scene-edge/environment"
    environment.write_text(environment.read_text() + "SCENE_EDGE_MQTT__PASSWORD=secret\n")
    done = camera.run("provision.sh", "--wheel", camera.wheel(), "--profile", "cpu")
    assert done.returncode == 0, done.stderr
    assert camera.settings.read_text() == "camera: mine\n"
    assert "SCENE_EDGE_MQTT__PASSWORD=secret" in environment.read_text()
    assert environment.read_text().count("SCENE_EDGE_PROFILE=") == 1
    assert camera.slot == "b"
    assert "secret" not in done.stdout + done.stderr


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    folder = tmp_path / "devices/gate-1"
    folder.mkdir(parents=True)
    for name in ("ca.crt", "client.crt", "client.key"):
        (folder / name).write_text(f"secret {name}")
    return folder


def test_a_certificate_comes_with_the_camera(board: Board, identity: Path) -> None:
    settings = ("--camera", "gate-1", "--broker", "mqtts://broker:8883", "--tls", identity)
    done = board.run("provision.sh", "--wheel", board.wheel(), *settings)
    assert done.returncode == 0, done.stderr
    tls = board.root / "etc/scene-edge/tls"
    assert (tls / "client.key").read_text() == "secret client.key"
    assert not [path for path in tls.iterdir() if path.stat().st_mode & 0o007]
    config = validated(board)
    assert (str(config.mqtt.key_file), str(config.mqtt.ca_file)) == (
        "/etc/scene-edge/tls/client.key",
        "/etc/scene-edge/tls/ca.crt",
    )


def test_a_key_that_is_made_on_the_camera_stays_there(board: Board, identity: Path) -> None:
    settings = ("--camera", "gate-1", "--broker", "mqtts://broker:8883")
    done = board.run("provision.sh", "--wheel", board.wheel(), *settings, "--enrol", "--no-start")
    assert done.returncode == 0, done.stderr
    key = board.root / "etc/scene-edge/tls/client.key"
    assert key.read_text() == "secret\n"
    assert "fleet request gate-1" in board.calls.read_text()
    (identity / "client.key").unlink()
    done = board.run("provision.sh", "--wheel", board.wheel(), *settings, "--tls", identity)
    assert done.returncode == 0, done.stderr
    assert key.read_text() == "secret\n"
    assert (key.parent / "client.crt").read_text() == "secret client.crt"


def test_a_dry_run_shows_no_key(board: Board, identity: Path) -> None:
    done = board.run("provision.sh", "--dry-run", "--wheel", board.wheel(), "--broker", "mqtts://b", "--tls", identity)
    assert done.returncode == 0, done.stderr
    assert "tls/client.key" in done.stdout
    assert "secret" not in done.stdout + done.stderr


def test_an_update_goes_to_the_other_slot(camera: Board) -> None:
    wheel = camera.wheel("scene_edge-0.2.0-py3-none-any.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    done = camera.run("update.sh", "--wheel", wheel, "--sha256", digest)
    assert done.returncode == 0, done.stderr
    assert camera.slot == "b"
    assert f"scene-edge validate {camera.settings} of {wheel}" in camera.calls.read_text()
    assert camera.run("update.sh", "--rollback").returncode == 0
    assert camera.slot == "a"


@pytest.mark.parametrize(
    ("name", "health", "why"),
    [
        ("scene_edge-broken-py3-none-any.whl", "true", "did not install"),
        ("scene_edge-picky-py3-none-any.whl", "true", "does not accept the configuration"),
        ("scene_edge-0.2.0-py3-none-any.whl", "false", "rolled back to slot a"),
    ],
)
def test_a_bad_update_leaves_the_old_version_in_use(camera: Board, name: str, health: str, why: str) -> None:
    done = camera.run("update.sh", "--wheel", camera.wheel(name), health=health)
    assert done.returncode == 1
    assert why in done.stderr
    assert camera.slot == "a"
    good = camera.run("update.sh", "--wheel", camera.wheel("scene_edge-0.3.0-py3-none-any.whl"))
    assert good.returncode == 0, good.stderr


def test_a_wheel_with_another_digest_is_refused(camera: Board) -> None:
    before = camera.calls.read_text()
    done = camera.run("update.sh", "--wheel", camera.wheel(), "--sha256", "0" * 64)
    assert done.returncode == 1
    assert "nothing was changed" in done.stderr
    assert camera.calls.read_text() == before


def test_two_updates_at_once_are_refused(camera: Board) -> None:
    with (camera.root / "opt/scene-edge/update.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = camera.run("update.sh", "--wheel", camera.wheel())
    assert done.returncode == 1
    assert "under way" in done.stderr


def test_there_is_nothing_to_update_before_provisioning(board: Board) -> None:
    done = board.run("update.sh", "--wheel", board.wheel())
    assert done.returncode == 1
    assert "provision.sh first" in done.stderr


def test_nothing_to_roll_back_to(camera: Board) -> None:
    done = camera.run("update.sh", "--rollback")
    assert done.returncode == 1
    assert camera.slot == "a"


def test_uninstalling_keeps_the_configuration_until_told_otherwise(camera: Board) -> None:
    assert camera.run("uninstall.sh").returncode == 0
    assert not (camera.root / "opt/scene-edge").exists()
    assert not (camera.root / "etc/systemd/system/scene-edge.service").exists()
    assert camera.settings.exists()
    assert camera.run("uninstall.sh", "--purge").returncode == 0
    assert not camera.settings.exists()


@pytest.mark.parametrize(
    ("script", "arguments", "shown"),
    [
        ("provision.sh", ("--profile", "jetson", "--broker", "mqtts://broker:8883"), "[onnx]"),
        ("provision.sh", ("--profile", "intel"), "[openvino]"),
        ("uninstall.sh", ("--purge",), "rm -rf"),
    ],
)
def test_a_dry_run_shows_everything_and_changes_nothing(
    board: Board, script: str, arguments: tuple[str, ...], shown: str
) -> None:
    wheel = ("--wheel", board.wheel()) if script == "provision.sh" else ()
    done = board.run(script, "--dry-run", *wheel, *arguments)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    assert "systemctl" in done.stdout
    assert not list(board.root.iterdir())


def test_a_dry_run_of_an_update_changes_nothing(camera: Board) -> None:
    done = camera.run("update.sh", "--dry-run", "--wheel", camera.wheel())
    assert done.returncode == 0, done.stderr
    assert "systemctl restart" in done.stdout
    assert camera.slot == "a"
    assert not (camera.root / "opt/scene-edge/b").exists()


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("provision.sh", ()),
        ("provision.sh", ("--wheel", "/nowhere.whl")),
        ("provision.sh", ("--wheel",)),
        ("provision.sh", ("--wheel", "WHEEL", "--profile", "amiga")),
        ("provision.sh", ("--wheel", "WHEEL", "--camera", "a/b")),
        ("provision.sh", ("--wheel", "WHEEL", "--broker", "http://broker")),
        ("provision.sh", ("--wheel", "WHEEL", "--enrol")),
        ("provision.sh", ("--wheel", "WHEEL", "--broker", "mqtts://b", "--tls", "/nowhere")),
        ("uninstall.sh", ("--everything",)),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(board: Board, script: str, arguments: tuple[str, ...]) -> None:
    wheel = str(board.wheel())
    done = board.run(script, *(wheel if argument == "WHEEL" else argument for argument in arguments))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert not list(board.root.iterdir())


@pytest.mark.parametrize("script", ["provision.sh", "update.sh", "uninstall.sh"])
def test_help_has_an_example_or_options(board: Board, script: str) -> None:
    done = board.run(script, "--help")
    assert done.returncode == 0
    assert "--dry-run" in done.stdout


def test_shellcheck_finds_nothing() -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    scripts = [str(path) for path in sorted(SCRIPTS.glob("*.sh"))] + [str(REPOSITORY / ".ci/run")]
    done = subprocess.run([shellcheck, "-x", *scripts], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_service_gives_up_what_it_does_not_need() -> None:
    """Also where no systemd-analyze is at hand."""
    unit = (SCRIPTS / "scene-edge.service").read_text().splitlines()
    for line in (
        "User=scene-edge",
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
        "AmbientCapabilities=",
        "ProtectSystem=strict",
        "ProtectHome=yes",
        "DevicePolicy=closed",
        "RestrictNamespaces=yes",
        "RestrictSUIDSGID=yes",
        "SystemCallFilter=@system-service",
        "UMask=0077",
    ):
        assert line in unit
    assert not [line for line in unit if line.startswith(("ListenStream", "Sockets"))]


def test_the_service_is_hardened() -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    unit = str(SCRIPTS / "scene-edge.service")
    command = [analyze, "security", "--offline=yes", "--threshold=30", "--no-pager", unit]
    done = subprocess.run(command, capture_output=True, text=True)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze cannot judge a file offline")
    assert done.returncode == 0, done.stdout[-600:] + done.stderr
