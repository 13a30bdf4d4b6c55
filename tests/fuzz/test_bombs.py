"""Messages that claim as much as they can cost no more than 64 MB and raise nothing foreign. How long they take is for
`python -m tests.fuzz.bombs` to judge: here it would judge the machine."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from scene_edge.codec.errors import DecoderError
from scene_edge.codec.h264 import H264Decoder
from tests.data import REPOSITORY
from tests.fuzz.bombs import claiming, in_child
from tests.fuzz.engine import Target


def test_no_bomb_goes_off() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.bombs"], cwd=REPOSITORY, capture_output=True, text=True, timeout=200
    )
    said = json.loads(done.stdout)
    assert said["failed"] == {}, done.stderr
    assert said["bombs"] > 5000


def test_one_that_did_would_be_seen() -> None:
    hungry = Target("hungry", lambda _random: b"", lambda _data: bytearray(4 << 30), (), ())
    assert str(in_child(hungry, [b""])).startswith("MemoryError")
    idle = in_child(Target("idle", lambda _random: b"", lambda _data: None, (), ()), [b""])
    assert isinstance(idle, list), idle


def test_the_pictures_are_what_a_decoder_reads() -> None:
    """Those too large are refused for what they claim: the same bytes with a smaller claim are a picture."""
    assert len(H264Decoder().decode(claiming(96, 64), 0)) == 1
    with pytest.raises(DecoderError):
        H264Decoder(max_pixels=4096 * 2304).decode(claiming(4096, 4096), 0)
