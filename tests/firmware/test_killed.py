"""F11: an update or a configuration that is killed at any moment leaves the old or the new one, never neither.

Each script runs once to count the commands that it starts; then once for each of them, and dies with `kill -9` as that
one begins. What a command has begun to write is as empty then as the shell has made it. Afterwards the camera must have
a whole version in use and a whole configuration, and the same script must get through.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from scene_edge.edge.config import CameraConfig
from scene_edge.edge.counters import Counters
from tests.firmware.test_scripts import PYTHON, SCRIPTS, Board

COMMANDS = (
    "cat",
    "chmod",
    "cp",
    "cut",
    "flock",
    "ln",
    "mkdir",
    "mv",
    "readlink",
    "rm",
    "sed",
    "sh",
    "sha256sum",
    "sync",
    "tr",
    "uname",
)

# Counts itself; the one whose turn it is kills the script, with all that the script has started.
SHIM = """#!/bin/sh
n=$(/usr/bin/wc -l <"$STEPS")
echo "$0 $*" >>"$STEPS"
if [ "$n" = "$KILL_AT" ]; then kill -9 0; fi
exec {real} "$@"
"""


class Mortal:
    """A board whose commands can be made to kill the script that calls them."""

    def __init__(self, folder: Path) -> None:
        self.shims, self.steps = folder / "shims", folder / "steps"
        self.shims.mkdir(parents=True)
        for name in COMMANDS:
            real = shutil.which(name)
            if real is None:
                pytest.skip(f"there is no {name} here")
            (self.shims / name).write_text(SHIM.format(real=real))
            (self.shims / name).chmod(0o755)
        python = folder / "python"
        python.write_text(PYTHON)
        python.chmod(0o755)
        (folder / "root").mkdir()
        self.board = Board(folder / "root", folder.parent / "calls", python)

    def run(self, kill_at: int | None, script: str, *arguments: str) -> int:
        """The exit status; below 0 for a script that was killed."""
        self.steps.write_text("")
        environment = {
            "PATH": f"{self.shims}:{os.environ['PATH']}",
            "SCENE_EDGE_ROOT": str(self.board.root),
            "PYTHON": str(self.board.python),
            "CALLS": str(self.board.calls),
            "SCENE_EDGE_HEALTH_COMMAND": "true",
            "STEPS": str(self.steps),
            "KILL_AT": "" if kill_at is None else str(kill_at),
        }
        # A session of its own: the process group that dies is the script's, not the test's.
        command = [str(SCRIPTS / script), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, timeout=60, start_new_session=True)
        return done.returncode

    def count(self) -> int:
        return len(self.steps.read_text().splitlines())

    def version(self) -> str:
        """Which wheel the service would start now. Fails where that is none."""
        self.board.calls.write_text("")
        started = self.board.root / "opt/scene-edge/current/bin/scene-edge"
        subprocess.run(
            [str(started), "start"], env={"PATH": os.environ["PATH"], "CALLS": str(self.board.calls)}, check=True
        )
        (line,) = self.board.calls.read_text().splitlines()
        return line.rpartition("/")[2].partition("[")[0]

    def settings(self) -> tuple[str, str]:
        """Camera and profile that it would start with."""
        config = CameraConfig.model_validate(yaml.safe_load(self.board.settings.read_text()))
        environment = (self.board.root / "etc/scene-edge/environment").read_text().splitlines()
        (profile,) = [line.partition("=")[2] for line in environment if line.startswith("SCENE_EDGE_PROFILE=")]
        assert "SCENE_EDGE_MQTT__PASSWORD=secret" in environment
        return config.camera, profile


@pytest.fixture
def made(tmp_path: Path) -> Callable[[int], Mortal]:
    """Boards that are provisioned, with version 0.1.0 in use and a password in the environment."""

    def make(number: int) -> Mortal:
        mortal = Mortal(tmp_path / str(number))
        if number:
            shutil.copytree(tmp_path / "0/first", mortal.board.root, symlinks=True, dirs_exist_ok=True)
            return mortal
        old = mortal.board.wheel("scene_edge-0.1.0.whl")
        assert mortal.run(None, "provision.sh", "--wheel", str(old), "--profile", "cpu", "--camera", "gate-1") == 0
        with (mortal.board.root / "etc/scene-edge/environment").open("a") as environment:
            environment.write("SCENE_EDGE_MQTT__PASSWORD=secret\n")
        shutil.copytree(mortal.board.root, tmp_path / "0/first", symlinks=True)
        return mortal

    return make


OLD, NEW = "scene_edge-0.1.0.whl", "scene_edge-0.2.0.whl"


@pytest.mark.parametrize(
    ("script", "arguments", "least"),
    [
        ("update.sh", (), 8),
        ("update.sh", ("--rollback",), 4),
        ("provision.sh", ("--profile", "rpi5", "--camera", "x"), 12),
    ],
    ids=["update", "rollback", "provision"],
)
def test_whatever_step_it_is_killed_at_the_old_or_the_new_is_in_use(
    made: Callable[[int], Mortal], script: str, arguments: tuple[str, ...], least: int
) -> None:
    def begun(number: int) -> tuple[Mortal, list[str], str, str]:
        """A board, what to run on it, and the versions before and after."""
        mortal = made(number)
        if "--rollback" in arguments:
            assert mortal.run(None, "update.sh", "--wheel", str(mortal.board.wheel(NEW))) == 0
            return mortal, list(arguments), NEW, OLD
        return mortal, ["--wheel", str(mortal.board.wheel(NEW)), *arguments], OLD, NEW

    mortal, command, _, after = begun(0)
    assert mortal.run(None, script, *command) == 0
    assert mortal.version() == after
    steps, seen = mortal.count(), set()
    assert steps >= least
    for step in range(steps):
        mortal, command, before, after = begun(step + 1)
        assert mortal.run(step, script, *command) < 0, mortal.steps.read_text()
        last = mortal.steps.read_text().splitlines()[-1]
        version = mortal.version()
        assert version in (before, after), last
        seen.add(version)
        camera, profile = mortal.settings()
        assert camera == "gate-1", last
        assert profile in ("cpu", "rpi5"), last
        if "--rollback" not in arguments:  # a second one would go forth again
            assert mortal.run(None, script, *command) == 0, last
            assert mortal.version() == after, last
            assert mortal.settings()[0] == "gate-1", last
    both = {OLD, NEW} if "--rollback" not in arguments else {NEW}  # whose last step is the switch
    assert seen == both, "it is killed before the switch, and behind it"


@pytest.mark.parametrize("dies_at", ["open", "json.dump", "os.fsync", "replace"])
def test_counters_that_are_killed_while_they_are_written_are_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: str
) -> None:
    class Bundle:
        name, counter, signed = "smc-s", 3, True

    class Killed(BaseException):
        pass

    def dies(*_: object, **__: object) -> None:
        raise Killed

    counters = Counters(tmp_path / "counters.json")
    counters.raise_to(Bundle())  # type: ignore[arg-type]
    Bundle.counter = 4
    with monkeypatch.context() as patch:
        if dies_at == "open":
            patch.setattr("builtins.open", lambda *a, real=open, **k: dies() if "w" in a else real(*a, **k))
        elif dies_at == "replace":
            patch.setattr(Path, "replace", dies)
        else:
            patch.setattr(f"scene_edge.edge.counters.{dies_at}", dies)
        with pytest.raises(Killed):
            counters.raise_to(Bundle())  # type: ignore[arg-type]
    assert Counters(tmp_path / "counters.json").least("smc-s") == 3
    counters.raise_to(Bundle())  # type: ignore[arg-type]
    assert Counters(tmp_path / "counters.json").least("smc-s") == 4
