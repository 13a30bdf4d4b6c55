"""Every file of tests/corpus, by the target that its name begins with: what crashed once never does again."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.fuzz.decoders import decoder_targets
from tests.fuzz.engine import CORPUS, Target
from tests.fuzz.headers import header_targets

FILES = sorted(CORPUS.glob("*.bin"))


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    made = [*header_targets(), *decoder_targets(tmp_path_factory.mktemp("targets"))]
    return {target.name: target for target in made}


def test_every_seed_is_good(targets: dict[str, Target]) -> None:
    """Else all mutants of it would die at the same place."""
    for target in targets.values():
        for seed in target.seeds:
            target.run(seed)


def test_the_corpus_is_there() -> None:
    assert FILES


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_what_crashed_once(targets: dict[str, Target], file: Path) -> None:
    target = targets[file.stem.partition("--")[0]]
    with contextlib.suppress(*target.allowed):
        target.run(file.read_bytes())
