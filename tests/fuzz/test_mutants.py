"""The fuzzers at the size of a test run, in a process of their own with little memory; `make fuzz` is the full one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from scene_edge.codec.checksum import crc32c
from tests.data import REPOSITORY
from tests.fuzz.engine import Target, keep, storm
from tests.fuzz.headers import PACKET_PLACES, golden, header_targets
from tests.fuzz.mutate import Sealed

HEADER, DECODE = 30_000, 800


def test_nothing_but_our_errors_comes_out(tmp_path: Path) -> None:
    out = tmp_path / "fuzz.json"
    sizes = ["--header", str(HEADER), "--decode", str(DECODE), "--crashes", str(tmp_path), "--json", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *sizes], cwd=REPOSITORY, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tallies = {tally["target"]: tally for tally in json.loads(out.read_text())}
    assert sum(tally["mutants"] for tally in tallies.values()) >= (HEADER + DECODE) * 0.99
    # Behind their checksums mutants are neither all refused nor all taken.
    for name in ("packet", "video", "latents", "riders"):
        assert 0 < tallies[name]["taken"] < tallies[name]["mutants"]
    assert "EntropyError" in tallies["delta"]["refused"]


def test_most_checksums_fit_again() -> None:
    mutate, random = Sealed(golden("packet_key.bin"), PACKET_PLACES), Random(1)
    mutants = [mutate(random) for _ in range(1000)]
    fitting = sum(crc32c(data[:-4]) == int.from_bytes(data[-4:], "little") for data in mutants)
    assert fitting > 700


def test_the_same_seed_makes_the_same_mutants() -> None:
    for target in header_targets():
        assert [target.mutate(Random(3)) for _ in range(5)] == [target.mutate(Random(3)) for _ in range(5)]


def test_a_crash_is_kept_once_with_its_place(tmp_path: Path) -> None:
    def run(_data: bytes) -> None:
        raise IndexError("out of range")

    tally = storm(Target("broken", Sealed(golden("packet_key.bin")), run, (), ()), 50, seed=1)
    ((place, data),) = tally.crashes.items()
    assert "IndexError at test_mutants.py" in place
    (path,) = keep(tally, tmp_path)
    assert path.name.startswith("broken--")
    assert path.read_bytes() == data


def test_a_message_that_wants_too_much_memory_is_a_crash(tmp_path: Path) -> None:
    """In a child: the cap cannot be undone."""
    program = (
        "from tests.fuzz.engine import *\n"
        "from tests.fuzz.mutate import Plain\n"
        "cap_memory()\n"
        "tally = storm(Target('bomb', Plain((b'x',)), lambda data: bytearray(80 << 20), (), ()), 9, 1)\n"
        "print([place.split()[0] for place in tally.crashes], tally.mutants)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "['MemoryError'] 9"


@pytest.mark.parametrize("target", header_targets(), ids=lambda target: target.name)
def test_targets_say_what_may_come_out(target: Target) -> None:
    assert target.run(target.seeds[0]) is not NotImplemented
    assert target.weight > 0
