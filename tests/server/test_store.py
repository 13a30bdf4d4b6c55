"""The store: once and only once, fenced by epoch, all or nothing."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from scene_edge.codec.errors import ConfigError, StoreError
from scene_edge.server.analytics.seams import Action, Track
from scene_edge.server.store import Batch, FencedError, FrameResult, Store

SESSION = "00000000000000ff"


def result(seq: int, captured_ns: int = 5) -> FrameResult:
    tracks = (Track(3, (1.0, 2.0, 3.0, 4.0), 0.5, "person"),)
    actions = (Action("wave", 0.9, 0, seq, "tiny"),)
    return FrameResult(seq, captured_ns, "matched", "fused", 100, 10, tracks, actions)


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store("sqlite://" if request.param == "memory" else f"sqlite:///{tmp_path}/results.db")


def test_a_repeated_batch_is_stored_once(store: Store) -> None:
    epoch = store.claim("gate")
    for _ in range(2):
        store.commit("gate", epoch, Batch(SESSION, 2, [result(seq) for seq in range(3)]))
    assert store.count_frames("gate", SESSION) == 3
    assert store.last_seq("gate", SESSION) == 2
    assert len(store.latest_actions("gate")) == 3


def test_a_commit_that_is_tried_again_counts_what_is_missing_once(store: Store) -> None:
    epoch = store.claim("gate")
    store.commit("gate", epoch, Batch(SESSION, 2, [result(2)]))
    for _ in range(2):
        store.commit("gate", epoch, Batch(SESSION, 9, [result(9)], missing_video=6))
    with store.transaction("look") as connection:
        assert connection.exec_driver_sql("select last_seq, missing_video from sessions").all() == [(9, 6)]


def test_the_last_number_never_goes_back(store: Store) -> None:
    epoch = store.claim("gate")
    store.commit("gate", epoch, Batch(SESSION, 9, [], missing_video=2))
    store.commit("gate", epoch, Batch(SESSION, 4, []))
    assert store.last_seq("gate", SESSION) == 9
    assert store.last_seq("gate", "ee" * 8) is None


def test_an_older_epoch_writes_nothing(store: Store) -> None:
    old, new = store.claim("gate"), store.claim("gate")
    assert new == old + 1
    with pytest.raises(FencedError, match="newer owner"):
        store.commit("gate", old, Batch(SESSION, 0, [result(0)]))
    assert store.count_frames("gate") == 0
    store.commit("gate", new, Batch(SESSION, 0, [result(0)]))
    assert store.count_frames("gate") == 1


def test_cameras_do_not_touch_each_other(store: Store) -> None:
    first, second = store.claim("a"), store.claim("b")
    store.commit("a", first, Batch(SESSION, 0, [result(0)]))
    store.commit("b", second, Batch(SESSION, 0, [result(0)]))
    assert (store.count_frames("a"), store.count_frames("b")) == (1, 1)


def test_old_results_are_removed_with_their_tracks(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old by the server's clock: the camera's may stand at 1970, or a day ahead."""
    epoch = store.claim("gate")
    for seq in range(4):
        monkeypatch.setattr(store._clock, "utc_ns", lambda seq=seq: seq * 10)
        store.commit("gate", epoch, Batch(SESSION, seq, [result(seq, captured_ns=(3 - seq) * 1000)]))
    monkeypatch.undo()
    assert store.prune(20) == 2
    assert store.count_frames("gate") == 2
    with store._engine.begin() as connection:
        assert connection.exec_driver_sql("select seq from frames order by seq").scalars().all() == [2, 3]
        assert connection.exec_driver_sql("select count(*) from tracks").scalar() == 2


def test_threads_commit_side_by_side(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/results.db")
    failures: list[Exception] = []

    def run(camera: str) -> None:
        try:
            epoch = store.claim(camera)
            for seq in range(10):
                store.commit(camera, epoch, Batch(SESSION, seq, [result(seq)]))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(f"camera-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert all(store.count_frames(f"camera-{number}") == 10 for number in range(4))


def test_what_is_committed_outlives_the_process(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/results.db"
    first = Store(url)
    first.commit("gate", first.claim("gate"), Batch(SESSION, 0, [result(0)]))
    first.close()
    second = Store(url)
    assert second.last_seq("gate", SESSION) == 0
    assert second.claim("gate") == 2


def test_databases_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="database URL"):
        Store("not a url")
    with pytest.raises(StoreError):
        Store(f"sqlite:///{tmp_path}/missing/results.db")
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"this is no database" * 100)
    with pytest.raises(StoreError, match="not a database"):
        Store(f"sqlite:///{garbage}")
    store = Store(f"sqlite:///{tmp_path}/ok.db")
    store.ping()


def test_a_database_of_before_gets_the_indexes_that_it_lacks(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/results.db"
    old = Store(url)
    with old.transaction("drop") as connection:
        connection.exec_driver_sql("drop index frames_by_commit")
    old.close()
    with Store(url).transaction("look") as connection:
        names = connection.exec_driver_sql("select name from sqlite_master where type = 'index'").scalars().all()
    assert "frames_by_commit" in names
