"""Group commit: what is handed over while a transaction is written goes into the next one, all of it together.

A transaction that is to survive a power cut waits for the disk, 4 ms or more, and costs as much processor time as
twenty records, however little is in it: one for each of a thousand cameras, and that is all they wait for. So one
thread writes for everybody, and nobody who hands something over waits for it. Alone, a commit takes as long as ever.
Where one group follows the other, the thread rests for twice as long as the last one took: so each is worth its price,
and other processes that write to the same file find their turn. No database here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import structlog

from scene_edge.codec.errors import StoreError

MAX_GROUP = 512
"""Requests in one transaction: its end is what all of them wait for."""

REST, MAX_REST_S = 2.0, 0.1
"""How long to rest after a group, in times of what that took, and at most."""

Request = TypeVar("Request")

log = structlog.get_logger(__name__)


class Ticket:
    """What was handed over: `answer` is None until it is durable (the time of the commit in ns) or refused."""

    __slots__ = ("_told", "_written", "answer")

    def __init__(self, told: Callable[[], None] | None = None) -> None:
        self.answer: int | StoreError | None = None
        self._written = threading.Event()
        self._told = told

    def give(self, answer: int | StoreError) -> None:
        self.answer = answer
        self._written.set()
        if self._told is not None:
            self._told()

    def wait(self) -> int | StoreError:
        self._written.wait()
        assert self.answer is not None
        return self.answer


class GroupCommit(Generic[Request]):
    """`write` takes the requests of a group, in the order in which they came, and gives an answer for each: the time of
    the commit, or why that one alone was refused. It raises StoreError where nothing was written."""

    def __init__(self, write: Callable[[Sequence[Request]], Sequence[int | StoreError]]) -> None:
        self._write = write
        self._changed = threading.Condition()
        self._waiting: list[tuple[Request, Ticket]] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="commit", daemon=True)
        self._thread.start()

    def submit(self, request: Request, told: Callable[[], None] | None = None) -> Ticket:
        """Returns at once; `told` is called, by the thread that writes, when there is an answer."""
        ticket = Ticket(told)
        with self._changed:
            if not self._stopping:
                self._waiting.append((request, ticket))
                self._changed.notify()
                return ticket
        ticket.give(StoreError("the store is closed"))
        return ticket

    def close(self) -> None:
        """What was handed over is written first."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        rested_s = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if not self._waiting:
                    return
            time.sleep(max(0.0, rested_s - time.monotonic()))
            begun_s = time.monotonic()
            with self._changed:
                group, self._waiting = self._waiting[:MAX_GROUP], self._waiting[MAX_GROUP:]
            self._answer(group)
            ended_s = time.monotonic()
            rested_s = ended_s + min(REST * (ended_s - begun_s), MAX_REST_S)

    def _answer(self, group: list[tuple[Request, Ticket]]) -> None:
        try:
            answers = self._write([request for request, _ in group])
        except StoreError as error:
            if len(group) == 1:
                group[0][1].give(error)
                return
            # One of them may be what the database refuses: the others must not suffer for it.
            for one in group:
                self._answer([one])
            return
        except Exception as error:  # whoever waits must hear of it, and the next group be written
            log.exception("nothing was written")
            failed = StoreError("nothing was written", got=f"{type(error).__name__}: {error}")
            answers = [failed] * len(group)
        for (_, ticket), answer in zip(group, answers, strict=True):
            ticket.give(answer)
