"""Group commit: what several threads want to commit at the same time goes into one transaction.

A transaction that is to survive a power cut waits for the disk, 4 ms or more, however little is in it: one for each of
a thousand cameras, and the disk is all they wait for. So the first thread that comes commits for everybody who has
come by then; those who come meanwhile are the next group. Nobody waits for company: alone, a commit takes as long as
ever. No database here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from scene_edge.codec.errors import StoreError

MAX_GROUP = 512
"""Requests in one transaction: its end is what all of them wait for."""

Request = TypeVar("Request")


class GroupCommit(Generic[Request]):
    """`write` takes the requests of a group, in the order in which they came, and gives an answer for each: the time of
    the commit, or why that one alone was refused. It raises StoreError where nothing was written."""

    def __init__(self, write: Callable[[Sequence[Request]], Sequence[int | StoreError]]) -> None:
        self._write = write
        self._lock = threading.Lock()
        self._waiting: list[_Ticket[Request]] = []
        self._busy = False

    def commit(self, request: Request) -> int:
        """Returns once it is durable. Raises StoreError."""
        ticket = _Ticket(request)
        with self._lock:
            self._waiting.append(ticket)
            leads, self._busy = not self._busy, True
        if not leads:
            ticket.woken.wait()
        if ticket.answer is None:
            self._lead()
        if isinstance(ticket.answer, int):
            return ticket.answer
        assert ticket.answer is not None
        raise ticket.answer

    def _lead(self) -> None:
        """Commit for everybody who is waiting, and hand over to whoever came meanwhile."""
        with self._lock:
            group, self._waiting = self._waiting[:MAX_GROUP], self._waiting[MAX_GROUP:]
        try:
            self._answer(group)
        finally:
            with self._lock:
                heir = self._waiting[0] if self._waiting else None
                self._busy = heir is not None
            for ticket in group:
                if ticket.answer is None:  # raised in the leader's thread; no call to lead
                    ticket.answer = StoreError("nothing was written", hint="Another camera's worker has logged why.")
                ticket.woken.set()
            if heir is not None:
                heir.woken.set()

    def _answer(self, group: list[_Ticket[Request]]) -> None:
        try:
            answers = self._write([ticket.request for ticket in group])
        except StoreError as error:
            if len(group) == 1:
                group[0].answer = error
                return
            # One of them may be what the database refuses: the others must not suffer for it.
            for ticket in group:
                self._answer([ticket])
            return
        for ticket, answer in zip(group, answers, strict=True):
            ticket.answer = answer


class _Ticket(Generic[Request]):
    """`woken` without an answer: lead the next group."""

    __slots__ = ("answer", "request", "woken")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.answer: int | StoreError | None = None
        self.woken = threading.Event()
