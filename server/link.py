"""Messages between a server and its worker processes: lists of Python objects over a socket that both inherited.

Pickle is at home here, and only here: both ends are one program of one user, and no other can reach the socket.
"""

from __future__ import annotations

import contextlib
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

GATHER_S = 0.002
"""What is posted within so long goes out together: one waking for all of it."""

MAX_ITEMS = 256
BEAT_S = 1.0
"""An empty list goes out where there is nothing to say for so long: the other end knows that we live."""


class Link:
    """One end. `post` never waits: a thread of its own sends. Whoever posts bounds what is under way."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._changed = threading.Condition()
        self._items: list[Any] = []
        self._closing = False
        self._thread = threading.Thread(target=self._send, name="link", daemon=True)
        self._thread.start()

    def post(self, item: Any) -> None:
        with self._changed:
            self._items.append(item)
            if len(self._items) == 1:
                self._changed.notify()

    def received(self) -> Iterator[Any]:
        """The objects of the other end as they come, until it is gone."""
        with contextlib.suppress(OSError, EOFError, pickle.UnpicklingError), self._socket.makefile("rb") as stream:
            while True:
                yield pickle.load(stream)

    def close(self) -> None:
        """What was posted is sent first, if the other end takes it."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _send(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._closing, BEAT_S)
                if self._closing and not self._items:
                    return
            time.sleep(GATHER_S)
            with self._changed:
                items, self._items = self._items[:MAX_ITEMS], self._items[MAX_ITEMS:]
            try:
                self._socket.sendall(pickle.dumps(items, protocol=5))
            except OSError:
                return  # the other end is gone, which `received` tells
