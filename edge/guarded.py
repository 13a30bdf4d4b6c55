"""An inference session that may hang: its runs have a time limit, for an accelerator that is silent raises nothing.

What hangs in a driver cannot be ended from here: its thread is left behind, and the session is of no use any more.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from queue import Empty, SimpleQueue
from typing import Any

from numpy.typing import NDArray

from scene_edge.codec.errors import EngineError
from scene_edge.inference.session import Session, TensorInfo, Tensors

Outputs = dict[str, NDArray[Any]]


class GuardedSession:
    """`session` with at most `limit_s` for a run. It belongs to this object from now on."""

    def __init__(self, session: Session, limit_s: float) -> None:
        self.engine, self.precision, self.device = session.engine, session.precision, session.device
        self.inputs: Mapping[str, TensorInfo] = session.inputs
        self.outputs: Mapping[str, TensorInfo] = session.outputs
        self.fallbacks, self.proven = session.fallbacks, session.proven
        self._limit_s = limit_s
        self._asked: SimpleQueue[Tensors | None] = SimpleQueue()
        self._answers: SimpleQueue[Outputs | Exception] = SimpleQueue()
        self._hangs = self._closed = False
        self._thread = threading.Thread(target=self._work, args=(session,), name="inference", daemon=True)
        self._thread.start()

    def run(self, inputs: Tensors) -> Outputs:
        """As `Session.run`. Raises EngineError also where no answer comes in time."""
        if self._hangs or self._closed:
            raise EngineError(f"{self.engine} session is closed", got="it did not answer" if self._hangs else None)
        self._asked.put(inputs)
        try:
            answer = self._answers.get(timeout=self._limit_s)
        except Empty:
            self._hangs = True
            raise EngineError(
                f"{self.engine} hangs", got=f"no answer for {self._limit_s:g} s", hint="See scene-edge doctor."
            ) from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._asked.put(None)
            if not self._hangs:
                self._thread.join()

    def _work(self, session: Session) -> None:
        while (inputs := self._asked.get()) is not None:
            try:
                self._answers.put(session.run(inputs))
            except Exception as error:  # told to whoever asked
                self._answers.put(error)
        session.close()
