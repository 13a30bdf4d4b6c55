"""Some seeds of the whole system under harm; that a seed replays; and that the simulation sees what is broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from scene_edge.edge.lanes import Dispatcher
from scene_edge.server.join import Joiner
from scene_edge.server.session import SessionWorker
from scene_edge.server.store import Store
from tests.simulation.__main__ import page, story, verdicts
from tests.simulation.play import FAULTS, play, quietly

SEEDS = (6, 16, 35)
"""These found something once."""


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quietly()


def test_nothing_is_lost_and_nothing_is_unexpected() -> None:
    done = [play(seed) for seed in SEEDS]
    assert [story(verdict) for verdict in done if verdict.violations] == []
    assert sum(verdict.counts["stored"] for verdict in done) > 300
    assert "nothing lost" in page(done, 1.0)


def test_a_seed_replays_event_by_event() -> None:
    first, again = play(1), play(1)
    assert (first.trace, first.counts, first.events) == (again.trace, again.counts, again.events)


def acknowledges_before_it_commits(patch: pytest.MonkeyPatch) -> None:
    commit = SessionWorker.commit

    def hasty(self: SessionWorker) -> None:
        if self._results:
            self._acked_seq = self._processed_seq
            self._ack()
        commit(self)

    patch.setattr(SessionWorker, "commit", hasty)


def forgets_which_frames_have_left(patch: pytest.MonkeyPatch) -> None:
    add = Joiner.add_video

    def forgetful(self: Joiner, unit: Any, now_s: float) -> bool:
        if self.next_seq is not None and unit.frame_seq == self.next_seq - 1:
            self.next_seq = unit.frame_seq
        return add(self, unit, now_s)

    patch.setattr(Joiner, "add_video", forgetful)
    patch.setattr(Store, "_insert_once", lambda self, table: table.insert())


def frees_what_the_broker_took(patch: pytest.MonkeyPatch) -> None:
    send = Dispatcher.send

    def trusting(self: Dispatcher, record: Any) -> bool:
        again = send(self, record)
        if record.lane.value == "live":
            self._spool.acknowledge(record.session, record.last_seq)
        return again

    patch.setattr(Dispatcher, "send", trusting)


def gives_up_what_the_camera_holds(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Joiner, "camera_holds", lambda self, first_seq: None)


def lets_the_owner_of_before_write(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("scene_edge.server.store._refusal", lambda request, owner: None)


@pytest.mark.parametrize(
    ("mutation", "seed"),
    [
        (acknowledges_before_it_commits, 16),
        (forgets_which_frames_have_left, 0),
        (frees_what_the_broker_took, 0),
        (gives_up_what_the_camera_holds, 0),
        (lets_the_owner_of_before_write, 29),
    ],
)
def test_what_is_broken_is_seen(
    mutation: Callable[[pytest.MonkeyPatch], None], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once by the seed that showed it first; where chance goes another way since, by another."""
    mutation(monkeypatch)
    assert any(play(number).violations for number in (seed, *range(60)))


def test_every_kind_of_harm_is_done() -> None:
    names = {fault.__name__ for fault in FAULTS}
    assert len(names) >= 13


def test_seeds_are_played_by_several_processes_as_by_one() -> None:
    several, one = (sorted(verdict.seed for verdict in verdicts(range(2), jobs)) for jobs in (2, 1))
    assert several == one == [0, 1]
