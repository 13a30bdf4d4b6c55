"""Every example in the documentation of codec and inference runs."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

MODULES = [
    *(f"scene_edge.codec.{name}" for name in ("annexb", "checksum", "identity", "manifest", "rans", "topics")),
    *(f"scene_edge.inference.{name}" for name in ("fake", "probe", "roofline", "stages")),
]


@pytest.mark.parametrize("module", MODULES)
def test_examples(module: str) -> None:
    failed, attempted = doctest.testmod(import_module(module))
    assert attempted > 0
    assert failed == 0
