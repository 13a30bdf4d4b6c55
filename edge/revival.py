"""Brings back a network that failed, beside the stream; five failures within a minute, and it stays away."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from scene_edge.codec.errors import EngineError
from scene_edge.edge.clock import Clock

FAILURES, WITHIN_S = 5, 60.0
PAUSE_S = 0.5
"""Before it is opened again; twice as long after each failure within WITHIN_S."""

OPEN_LIMIT_S = 120.0
"""Compiling takes its time on a small board; what takes longer hangs."""


class Closable(Protocol):
    def close(self) -> None: ...


Network = TypeVar("Network", bound=Closable)


class Revival(Generic[Network]):
    """`failed` says that it did; `take` gives the new one, once. From any thread.

    `reopen` opens and tries it, in a thread of its own; None: it is not brought back. `degrade` and `recover` announce.
    """

    def __init__(
        self,
        name: str,
        reopen: Callable[[], Network] | None,
        clock: Clock,
        degrade: Callable[[str], None],
        recover: Callable[[str], None],
    ) -> None:
        self._name, self._reopen, self._clock, self._degrade, self._recover = name, reopen, clock, degrade, recover
        self._failed_ns: deque[int] = deque()
        self._reason = ""
        self._attempt: _Attempt[Network] | None = None
        self._lock = threading.Lock()
        self.failures = 0

    def failed(self, network: Network | None, error: EngineError) -> None:
        """It is not used any more, and closed before it is opened again."""
        with self._lock:
            self._note(network, error)

    def ready(self) -> bool:
        """Whether `take` has something to give. What did not open, or hangs at it, has failed once more."""
        with self._lock:
            attempt = self._attempt
            if attempt is None:
                return False
            if attempt.error is not None:
                self._note(None, attempt.error)
            elif attempt.network is None and self._clock.now_ns() - attempt.begun_ns > OPEN_LIMIT_S * 1e9:
                self._note(None, EngineError("it does not open", got=f"nothing for {OPEN_LIMIT_S:g} s"))
            return attempt.network is not None

    def take(self) -> Network | None:
        """What was opened anew."""
        if not self.ready():
            return None
        with self._lock:
            attempt, self._attempt = self._attempt, None
            reason, self._reason = self._reason, ""
        if attempt is None:
            return None
        self._recover(reason)
        return attempt.network

    def close(self) -> None:
        """What nobody has taken is closed, as soon as it is there."""
        with self._lock:
            attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.forget()

    def _note(self, network: Network | None, error: EngineError) -> None:
        now_ns = self._clock.now_ns()
        self.failures += 1
        self._failed_ns.append(now_ns)
        while now_ns - self._failed_ns[0] > WITHIN_S * 1e9:
            self._failed_ns.popleft()
        before, count = self._reason, len(self._failed_ns)
        if self._reopen is None or count >= FAILURES:
            self._attempt = None
            given_up = "" if self._reopen is None else f" (given up: it failed {count} times within {WITHIN_S:g} s)"
            self._reason = f"no {self._name}: {error}{given_up}"
        else:
            self._reason = f"no {self._name}: {error}"
            self._attempt = _Attempt(self._reopen, network, PAUSE_S * 2.0 ** (count - 1), self._clock)
        if before == self._reason:
            return
        if before:
            self._recover(before)
        self._degrade(self._reason)


class _Attempt(Generic[Network]):
    """One opening: `network` or `error` once it is over."""

    def __init__(self, reopen: Callable[[], Network], old: Network | None, pause_s: float, clock: Clock) -> None:
        self.network: Network | None = None
        self.error: EngineError | None = None
        self.begun_ns = clock.now_ns()
        self._forgotten = threading.Event()
        self._lock = threading.Lock()
        work = threading.Thread(target=self._work, args=(reopen, old, pause_s, clock), name="revival", daemon=True)
        work.start()

    def forget(self) -> None:
        self._forgotten.set()
        with self._lock:
            if self.network is not None:
                self.network.close()
                self.network = None

    def _work(self, reopen: Callable[[], Network], old: Network | None, pause_s: float, clock: Clock) -> None:
        try:
            if old is not None:
                old.close()
            if clock.wait(self._forgotten, pause_s):
                return
            network = reopen()
        except EngineError as error:
            self.error = error
            return
        except Exception as error:  # whatever it is, it must be told: a silent thread would be waited for
            self.error = EngineError("it does not open any more", got=f"{type(error).__name__}: {error}")
            return
        with self._lock:
            if self._forgotten.is_set():
                network.close()
            else:
                self.network = network
