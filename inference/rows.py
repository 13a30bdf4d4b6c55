"""The rows that a bench fills, stage by stage, at one picture size; camera and server each have one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import SceneEdgeError
from scene_edge.inference.roofline import Peaks, work_of
from scene_edge.inference.session import Session
from scene_edge.inference.stages import Advance, StageRow, candidates, without


class Rows:
    """`rows` so far, held against this machine's `peaks`; `advance` is told of each."""

    def __init__(self, size: tuple[int, int], peaks: Peaks, advance: Advance = lambda _: None) -> None:
        self._size, self._peaks, self._advance = size, peaks, advance
        self.rows: list[StageRow] = []

    def _row(self, stage: str, model: str, engine: str) -> StageRow:
        """One of this size that says nothing yet."""
        return StageRow(stage, model, engine, None, *self._size)

    def _keep(self, row: StageRow) -> None:
        self.rows.append(row)
        self._advance(f"{row.stage} {row.engine} {row.precision or ''}".strip())

    def _attempt(self, row: StageRow, run: Callable[[StageRow], StageRow]) -> None:
        """What fails is listed with its reason; the other stages go on."""
        try:
            self._keep(run(row))
        except SceneEdgeError as error:
            self._keep(without(row, str(error)))

    def _candidates(
        self, stage: str, name: str, graph: str, engines: Sequence[str], opened: Callable[[], Bundle]
    ) -> Iterator[tuple[StageRow, Bundle]]:
        """A row for each engine and precision that may run the network; none, and a row that says why, otherwise."""
        row = self._row(stage, name, "")
        try:
            bundle = opened()
            found = candidates(bundle, graph, engines)
        except SceneEdgeError as error:
            self._keep(without(row, str(error)))
            return
        if not found:
            self._keep(without(row, f"bundle {bundle.name} has no artefact for {', '.join(engines)}"))
        for engine, precision in found:
            yield replace(row, model=bundle.name, engine=engine, precision=precision), bundle

    def _roofline_ms(self, bundle: Bundle, graph: str, session: Session) -> float | None:
        """The least that one run takes here; None where that is not known."""
        work = work_of(bundle, bundle.graph(graph), session)
        return None if work is None else self._peaks.roofline_ms(work, session.precision)
