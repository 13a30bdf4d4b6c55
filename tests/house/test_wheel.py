"""The wheel: pure Python, whole, and able to run in an environment that has never seen the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.data import REPOSITORY

FOLDERS = ("codec", "inference", "edge", "server", "models", "quantize")


def run(*command: str | Path, cwd: Path = REPOSITORY) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONWARNINGS")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(target: str, source: Path, out: Path) -> Path:
    """Build without an isolated environment and without a network."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel: it is in the dev extra")
    run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", out, cwd=source)
    (built,) = out.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", REPOSITORY, tmp_path_factory.mktemp("wheel"))


def package_files() -> set[str]:
    """What an install must hold, by the path inside the wheel."""
    found = {f"scene_edge/{path.name}" for path in (REPOSITORY / "scene_edge").iterdir() if path.is_file()}
    for folder in FOLDERS:
        for path in (REPOSITORY / folder).rglob("*"):
            parts = path.relative_to(REPOSITORY).parts
            if path.is_file() and "__pycache__" not in parts and not any(part.startswith(".") for part in parts):
                found.add("scene_edge/" + "/".join(parts))
    return found


def test_the_links_of_the_package_are_relative_and_whole() -> None:
    for folder in FOLDERS:
        link = REPOSITORY / "scene_edge" / folder
        assert link.is_symlink(), f"{link} must be a symlink to ../{folder}"
        assert os.readlink(link) == f"../{folder}"


def test_wheel_holds_every_module_profile_page_and_bundle(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        links = [entry.filename for entry in archive.infolist() if (entry.external_attr >> 16) & 0o170000 == 0o120000]
    expected = package_files()
    assert not expected - held, "missing from the wheel"
    assert not held - expected, "in the wheel, but not in the repository's folders"
    assert not links, "a wheel must hold files, not links"


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("profile", "scene_edge/edge/profiles/cpu.yaml"),
        ("page", "scene_edge/server/web/static/index.html"),
        ("SCENE bundle", "scene_edge/models/zoo/scene-s/manifest.json"),
        ("SMC bundle", "scene_edge/models/zoo/smc-s/manifest.json"),
        ("detector bundle", "scene_edge/models/zoo/detector-s/manifest.json"),
        ("bundle of everyday actions", "scene_edge/models/zoo/action-arid/manifest.json"),
        ("bundle of fights", "scene_edge/models/zoo/action-fight/manifest.json"),
    ],
)
def test_wheel_holds(wheel: Path, what: str, pattern: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert pattern in archive.namelist(), f"the {what} is not in the wheel"


def test_wheel_is_pure_python(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith((".so", ".pyd", ".dylib"))]
        licences = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    assert licences


def test_source_archive_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    archive = build("sdist", REPOSITORY, tmp_path / "sdist")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    again = build("wheel", source, tmp_path / "again")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())


def test_wheel_installs_and_runs_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    """Dependencies are borrowed from this environment by a path file, so that the test needs no network."""
    place = tmp_path / "venv"
    venv.create(place, with_pip=False)
    python = place / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    site = place / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    where = run(python, "-c", "import scene_edge.edge; print(scene_edge.edge.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(place), "the installed copy must be the one that runs"
    command = place / "bin" / "scene-edge"
    assert "0." in run(command, "version", cwd=tmp_path)
    assert "cpu" in run(command, "profiles", cwd=tmp_path)
    assert "smc-s" in run(command, "models", "list", cwd=tmp_path)
