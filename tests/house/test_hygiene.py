"""What must never be in the repository: local paths, large files, modules that do not say what they are."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.data import REPOSITORY

MAX_FILE_BYTES = 10_000_000
MAX_ZOO_BYTES = 25_000_000
TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".json", ".sh", ".service", ".html", ".css", ".js", ".cfg", ".txt", ""}
LOCAL_PATH = re.compile(
    r"(?<![\w.~$}\]-])/(?:" + "|".join(["wo" + "rk", "ro" + "ot", r"home/\w+", r"Users/\w+"]) + r")/\w"
)


def tracked() -> list[Path]:
    """The files under version control that exist; without git, every file outside hidden folders."""
    if shutil.which("git") and (REPOSITORY / ".git").exists():
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        names = [REPOSITORY / name for name in listed.stdout.split("\0") if name]
    else:
        names = [
            path
            for path in REPOSITORY.rglob("*")
            if not any(part.startswith(".") for part in path.relative_to(REPOSITORY).parts)
        ]
    return [path for path in names if path.is_file() and not path.is_symlink()]


@pytest.fixture(scope="module")
def files() -> list[Path]:
    return tracked()


def test_no_local_path_stands_in_any_text(files: list[Path]) -> None:
    wrong = []
    for path in files:
        if path.suffix not in TEXT or path.stat().st_size > 2_000_000:
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if LOCAL_PATH.search(line):
                wrong.append(f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()[:100]}")
    assert not wrong, "\n".join(wrong)


def test_no_file_is_large(files: list[Path]) -> None:
    large = [f"{path.relative_to(REPOSITORY)}: {path.stat().st_size} bytes" for path in files
             if path.stat().st_size > MAX_FILE_BYTES]  # fmt: skip
    assert not large, "\n".join(large)


def test_the_shipped_models_stay_small(files: list[Path]) -> None:
    zoo = REPOSITORY / "models" / "zoo"
    total = sum(path.stat().st_size for path in files if path.is_relative_to(zoo))
    assert total <= MAX_ZOO_BYTES, f"models/zoo holds {total} bytes"


def test_no_pickle_ships(files: list[Path]) -> None:
    assert not [path for path in files if path.suffix in {".pt", ".pth", ".pkl", ".pickle", ".ckpt"}]


def test_every_module_says_what_it_is(files: list[Path]) -> None:
    silent = [
        str(path.relative_to(REPOSITORY))
        for path in files
        if path.suffix == ".py" and path.name != "__init__.py" and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent, "no docstring:\n" + "\n".join(silent)


def test_what_begins_with_a_shebang_can_be_run(files: list[Path]) -> None:
    scripts = [path for path in files if path.stat().st_size and path.read_bytes()[:2] == b"#!"]
    assert REPOSITORY / ".ci/run" in scripts
    assert not [str(path) for path in scripts if not path.stat().st_mode & 0o100]


def test_make_explains_itself() -> None:
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    said = subprocess.run(["make"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for target in ("demo", "test", "check", "bench"):
        assert f"make {target}" in said
