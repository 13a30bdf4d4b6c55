"""Waiting for threads in tests, with an end."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest


def wait_until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(3000):
        if condition():
            return
        pause.wait(0.01)
    pytest.fail("what was waited for did not come")
