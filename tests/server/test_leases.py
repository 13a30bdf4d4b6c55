"""Leases on shards: one owner at a time, epochs that only rise, takeover from the gone and the silent, nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from scene_edge.codec.errors import ConfigError, StoreError
from scene_edge.codec.topics import shard_of
from scene_edge.server.config import load_config
from scene_edge.server.leases import Leases, new_owner, process_is_gone
from scene_edge.server.store import Batch, FencedError, FrameResult, Store

LEASE_S = 4.0
SESSION = "00000000000000ff"
EVERY = range(256)


@dataclass
class HandClock:
    time_s: float = 100.0

    def now_s(self) -> float:
        return self.time_s

    def utc_ns(self) -> int:
        return 0


@dataclass
class Bench:
    """Servers on one database; `gone` has the owners whose process has ended."""

    url: str
    clock: HandClock = field(default_factory=HandClock)
    gone: set[str] = field(default_factory=set)

    def server(self, owner: str, shards: range = EVERY) -> tuple[Store, Leases]:
        store = Store(self.url, owner=owner)
        leases = Leases(store, shards, LEASE_S, clock=self.clock, is_gone=self.gone.__contains__)
        return store, leases


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(f"sqlite:///{tmp_path}/results.db")


def commit(store: Store, epoch: int, seq: int) -> None:
    store.commit("gate", epoch, Batch(SESSION, seq, [FrameResult(seq, 1, "matched", "lossy", 1, 0)]))


def test_the_first_has_the_shards_and_the_second_waits(bench: Bench) -> None:
    (store_a, a), (store_b, b) = bench.server("a"), bench.server("b")
    assert a.step()
    for _ in range(20):
        bench.clock.time_s += LEASE_S / 2
        assert a.step()
        assert not b.step()
    store_a.claim("gate")
    with pytest.raises(FencedError, match="another owner"):
        store_b.claim("gate")


def test_an_owner_that_stands_still_is_taken_over_from_and_writes_nothing_more(bench: Bench) -> None:
    (store_a, a), (store_b, b) = bench.server("a"), bench.server("b")
    a.step()
    old = store_a.claim("gate")
    commit(store_a, old, 0)
    b.step()
    bench.clock.time_s += LEASE_S * 0.9
    assert not b.step()
    bench.clock.time_s += LEASE_S * 0.2
    assert b.step()
    with pytest.raises(FencedError):
        commit(store_a, old, 1)  # it wakes up, and has not looked at its lease yet
    with pytest.raises(FencedError):
        store_a.claim("gate")
    with pytest.raises(FencedError):
        store_a.claim("a-camera-that-nobody-met")
    new = store_b.claim("gate")
    assert new > old + 1, "the takeover itself has fenced it off, and not the first message at the new owner"
    commit(store_b, new, 1)
    assert not a.step()
    assert store_b.count_frames("gate") == 2


def test_epochs_only_rise_however_often_the_owner_changes(bench: Bench) -> None:
    servers, epochs = [bench.server("a"), bench.server("b")], []
    for turn in range(6):
        store, leases = servers[turn % 2]
        leases.step()  # learns that it is not the owner any more
        leases.step()  # sees who is
        bench.clock.time_s += 2 * LEASE_S
        assert leases.step()
        epochs.append(store.claim("gate"))
    assert epochs == sorted(set(epochs))


def test_the_shards_of_a_process_that_has_ended_are_free_at_once(bench: Bench) -> None:
    (_, a), (_, b) = bench.server("a"), bench.server("b")
    a.step()
    assert not b.step()
    bench.gone.add("a")
    assert b.step()


def test_what_is_released_is_free_at_once(bench: Bench) -> None:
    (_, a), (_, b) = bench.server("a"), bench.server("b")
    a.step()
    b.step()
    a.release()
    assert b.step()
    assert not a.step()


def test_one_that_looks_seldom_takes_nothing_from_the_living(bench: Bench) -> None:
    """It slept for an hour itself: what it saw before says nothing."""
    (_, a), (_, b) = bench.server("a"), bench.server("b")
    a.step()
    b.step()
    for _ in range(100):
        bench.clock.time_s += LEASE_S / 4
        a.step()
    assert not b.step()


def test_servers_may_share_the_shards_out(bench: Bench) -> None:
    camera = "gate"
    low, high = range(128), range(128, 256)
    (store_a, a), (store_b, b) = bench.server("a", low), bench.server("b", high)
    assert a.step()
    assert b.step()
    mine, other = (store_a, store_b) if shard_of(camera) in low else (store_b, store_a)
    mine.claim(camera)
    with pytest.raises(FencedError):
        other.claim(camera)
    _, both = bench.server("c")
    assert not both.step()
    bench.gone.add("a")
    assert not both.step(), "all of its shards or none"
    bench.gone.add("b")
    assert both.step()


def test_while_the_store_fails_the_owner_stays_the_owner(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    store, leases = bench.server("a")
    leases.step()

    def fails(what: str) -> None:
        raise StoreError(f"cannot {what}", got="disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(store, "transaction", fails)
        assert leases.step()
        leases.release()
    assert not leases.held


def test_without_leases_anybody_may_claim(bench: Bench) -> None:
    assert Store(bench.url).claim("gate") == 1


def test_a_process_is_known_by_its_name() -> None:
    assert not process_is_gone(new_owner())
    code = "from scene_edge.server.leases import new_owner; print(new_owner())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert process_is_gone(ended.stdout.strip())


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: ["", parts[0]],
        lambda parts: [parts[0], "elsewhere", *parts[2:]],
        lambda parts: [*parts[:2], "-1", *parts[3:]],
        lambda parts: [*parts[:3], "", parts[4]],
    ],
)
def test_of_what_cannot_be_known_nothing_is_said(change: Callable[[list[str]], list[str]]) -> None:
    assert not process_is_gone("/".join(change(new_owner().split("/"))))


def test_shards_are_a_range() -> None:
    assert load_config(environ={"SCENE_EDGE_SERVER_OWNERSHIP__SHARDS": "3-7"}).ownership.shard_range == range(3, 8)
    for wrong in ("7-3", "0-256", "all"):
        with pytest.raises(ConfigError, match="shards"):
            load_config(environ={}, overrides={"ownership.shards": wrong})
