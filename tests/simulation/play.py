"""One seed's story: a system, harm of every kind for a while, healing, and the verdict."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from scene_edge.codec.identity import session_hex
from scene_edge.edge.ledger import LedgerSnapshot
from scene_edge.edge.spool_sqlite import SqliteSpool
from scene_edge.server.config import ServerConfig
from tests.simulation.broker import Broker
from tests.simulation.camera import CameraActor
from tests.simulation.server import ServerActor
from tests.simulation.world import Life, World

HARM_S, MORE_S, HEAL_S = 24.0, 3.0, 300.0
MAX_FAULTS = 14
LEASE_S = 2.0
UTC_TOLERANCE_NS = 1_000_000
"""Within a message the UTC offset stands still until it has moved by so much (edge/batch.py)."""

WRITTEN = "select epoch from frames where camera = ?"
JUMPS_NS = (3600 * 10**9, -3600 * 10**9, 86_400 * 10**9, -86_400 * 10**9, None)


def quietly() -> None:
    """What the product logs about simulated harm would be most of the page."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


@dataclass
class Verdict:
    """What a seed came to; valid without `violations`."""

    seed: int
    trace: list[str]
    violations: list[str]
    counts: Counter[str] = field(default_factory=Counter)
    harm: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    events: int = 0


class System:
    """Cameras, broker and server of a seed, and what can be done to them."""

    def __init__(self, seed: int, folder: Path) -> None:
        world = self.world = World(seed, HARM_S + MORE_S + HEAL_S)
        self.harm: Counter[str] = Counter()
        random = world.random
        self.database = folder / "results.db"
        self.broker = Broker(world)
        self.broker.lossy = random.choice([0.0, 0.0, 0.01, 0.05])
        self.broker.doubling = random.choice([0.0, 0.0, 0.02, 0.2])
        join = {"gap_ms": random.choice([2_000, 10_000]), "deadline_ms": random.choice([500, 3000])}
        config = ServerConfig.model_validate({"join": join, "ownership": {"lease_s": LEASE_S}})
        living: set[str] = set()
        self.servers = [
            ServerActor(world, self.broker, self.database, config, f"server-{number + 1}", living)
            for number in range(random.choice([1, 2]))
        ]
        self.cameras = []
        for number in range(random.choice([1, 1, 2])):
            settings = [f"mqtt.video_batch_ms={random.choice([0, 200, 500])}"]
            if random.random() < 0.2:
                settings.append(f"spool.max_mb={random.choice([0.03, 0.06])}")
            if random.random() < 0.15:
                settings.append("spool.path=null")
            self.cameras.append(CameraActor(world, self.broker, f"gate-{number + 1}", folder, settings=settings))

    def start(self) -> None:
        for actor in (*self.servers, *self.cameras):
            actor.start()

    def plan_harm(self) -> None:
        random = self.world.random
        for _ in range(random.randrange(1, MAX_FAULTS)):
            self.world.at(1 + random.random() * HARM_S, None, self._do_harm)

    def _do_harm(self) -> None:
        fault = self.world.random.choice(FAULTS)
        self.harm[fault.__name__.replace("_", " ")] += 1
        fault(self)

    def heal(self) -> None:
        """Everything works again and goes on doing so."""
        self.world.note("all is well")
        self.broker.lossy = self.broker.doubling = 0.0
        self.broker.start(forgetful=False)
        for actor in (*self.servers, *self.cameras):
            actor.line_up, actor.delay_s = True, 0.002
            if actor.line is not None:
                actor.line.delay_s = actor.delay_s
            actor.disk.heal()
            actor.life.doom = None
            actor.start()

    def end_streams(self) -> None:
        for camera in self.cameras:
            camera.stream = False

    @property
    def settled(self) -> bool:
        return any(server.idle for server in self.servers) and all(
            camera.life.alive
            and camera.spool is not None
            and not _awaited(camera)
            and camera.camera is not None
            and not camera.camera.ledger.snapshot().in_pipeline  # it may stand still with a message open
            for camera in self.cameras
        )


def _awaited(camera: CameraActor) -> bool:
    """Whether the spool holds what can still be freed.

    Semantics of the session that runs whose pictures it refused, being full, wait for the server to have a later
    picture; and the stream is over.
    """
    spool = camera.spool
    if not isinstance(spool, SqliteSpool):
        return spool is not None and bool(spool.counts().records)
    last = spool._index._last_put
    return any(
        entry.record.leaf != "semantic" or entry.record.session != spool._index.session or entry.record.last_seq <= last
        for entry in spool._index.entries()
    )


# Harm. Each is done once, at a time that the seed chooses.


def _any_end(system: System) -> CameraActor | ServerActor:
    return system.world.random.choice([*system.servers, *system.cameras])


def _restart_later(system: System, life: Life, start: Callable[[], None]) -> None:
    system.world.at(0.2 + 4 * system.world.random.random() ** 2, None, start)


def kill_camera(system: System) -> None:
    camera = system.world.random.choice(system.cameras)
    system.world.kill(camera.life)
    _reboot(system, camera)


def doom_camera(system: System) -> None:
    """It dies in the middle of whatever it does then."""
    camera = system.world.random.choice(system.cameras)
    camera.life.doom = system.world.random.randrange(40)
    _reboot(system, camera)


def _reboot(system: System, camera: CameraActor) -> None:
    random = system.world.random

    def start() -> None:
        if not camera.life.alive:
            if random.random() < 0.3:
                camera.clock.boot_ns = random.randrange(-900 * 10**9, 10**15)
            camera.start()

    system.world.at(0.5 + 4 * random.random() ** 2, None, start)


def kill_server(system: System) -> None:
    system.world.kill(system.world.random.choice(system.servers).life)


def doom_server(system: System) -> None:
    system.world.random.choice(system.servers).life.doom = system.world.random.randrange(60)


def kill_broker(system: System) -> None:
    random = system.world.random
    system.world.kill(system.broker.life)
    forgetful = random.random() < 0.7
    system.world.at(0.2 + 5 * random.random() ** 2, None, lambda: system.broker.start(forgetful=forgetful))


def cut_line(system: System) -> None:
    end = _any_end(system)
    system.world.note(f"the line of {end.name} breaks")
    if end.line is not None:
        end.line.cut(system.world.random.choice([0.1, 8.0]))


def line_down(system: System) -> None:
    end, seconds = _any_end(system), 15 * system.world.random.random() ** 2
    system.world.note(f"the line of {end.name} is down for {seconds:.1f} s")
    end.line_up = False
    if end.line is not None:
        end.line.cut(3.0)

    def up() -> None:
        end.line_up = True

    system.world.at(seconds, None, up)


def slow_line(system: System) -> None:
    end, random = _any_end(system), system.world.random
    end.delay_s = random.choice([0.05, 0.3, 1.5])
    system.world.note(f"the line of {end.name} takes {end.delay_s} s from its next connection on")
    if end.line is not None:
        end.line.delay_s = end.delay_s


def disk_fails(system: System) -> None:
    end, random = _any_end(system), system.world.random
    end.disk.fail_at = random.randrange(30)
    system.world.note(f"the disk of {end.name} fails at access {end.disk.fail_at}")


def disk_gone(system: System) -> None:
    end, seconds = _any_end(system), 6 * system.world.random.random()
    system.world.note(f"the disk of {end.name} fails for {seconds:.1f} s")
    end.disk.fail_until_ns = system.world.now_ns + round(seconds * 1e9)


def spool_breaks(system: System) -> None:
    camera = system.world.random.choice(system.cameras)
    system.world.note(f"the spool of {camera.name} is damaged")
    camera.disk.break_next = True


def clock_jumps(system: System) -> None:
    random = system.world.random
    end = _any_end(system)
    jump_ns = random.choice(JUMPS_NS)
    system.world.note(f"the clock of {end.name} jumps: {jump_ns}")
    if isinstance(end, CameraActor):
        end.clock.jump_ns = jump_ns
    else:
        end.clock.jump_ns = jump_ns or 0


def suspend(system: System) -> None:
    """SIGSTOP, and SIGCONT later."""
    random = system.world.random
    life = random.choice([*system.servers, *system.cameras]).life
    seconds = 12 * random.random() ** 2
    system.world.note(f"{life.name} stands still for {seconds:.1f} s")
    system.world.hold(life)
    system.world.at(seconds, None, lambda: system.world.release(life))


FAULTS: tuple[Callable[[System], None], ...] = (
    kill_camera, doom_camera, kill_server, doom_server, kill_broker, kill_broker, cut_line, line_down, slow_line,
    disk_fails, disk_gone, spool_breaks, clock_jumps, suspend,
)  # fmt: skip


# The verdict


@contextmanager
def _folder() -> Iterator[Path]:
    """In memory where there is room for it: every commit waits for its disk."""
    memory = Path("/dev/shm")
    made = tempfile.mkdtemp(prefix="scene-edge-", dir=memory if memory.is_dir() else None)
    try:
        yield Path(made)
    finally:
        shutil.rmtree(made)


def play(seed: int) -> Verdict:
    """Run a seed to its end. Whatever escapes is a violation too."""
    with _folder() as folder:
        system = System(seed, folder)
        world, violations = system.world, list[str]()
        counts: Counter[str] = Counter()
        try:
            system.start()
            system.plan_harm()
            world.at(1 + HARM_S, None, system.heal)
            world.at(1 + HARM_S + MORE_S, None, system.end_streams)
            world.run(2 + HARM_S + MORE_S)
            while not system.settled and world.now_ns < world.end_ns:
                world.run(1)
            violations += judge(system, counts)
        except Exception as error:
            violations.append(f"{type(error).__name__}: {error}")
        finally:
            for camera in system.cameras:
                if isinstance(camera.spool, SqliteSpool):
                    camera.spool._file.close()
            for server in system.servers:
                if server.store is not None:
                    server.store.close()
        return Verdict(seed, world.trace, violations, counts, system.harm, world.now_s, world.events)


def judge(system: System, counts: Counter[str]) -> list[str]:
    """Everything that is wrong at the end, when all is well and the streams are over."""
    found = []
    connection = sqlite3.connect(system.database)
    try:
        for camera in system.cameras:
            found += [f"{camera.name}: {what}" for what in _judge_camera(camera, connection, counts)]
    finally:
        connection.close()
    if not system.settled:
        found.append("it did not come to rest")
    return found


def _judge_camera(camera: CameraActor, results: sqlite3.Connection, counts: Counter[str]) -> Iterator[str]:
    sql = "select session, seq, captured_ns from frames where camera = ?"
    stored: dict[str, dict[int, int]] = {}
    for session, seq, captured_ns in results.execute(sql, (camera.name,)):
        if seq in stored.setdefault(session, {}):
            yield f"frame {seq} of {session} is stored twice"
        stored[session][seq] = captured_ns
    counts["stored"] += sum(map(len, stored.values()))
    known = {session_hex(session): book for session, book in camera.books.items()}
    if unknown := set(stored) - set(known):
        yield f"unexpected sessions {unknown}"
    epochs = [epoch for (epoch,) in results.execute(f"{WRITTEN} order by rowid", (camera.name,))]
    if epochs != sorted(epochs):
        yield "an owner of before has written behind the one after it"
    counts["owners"] += len(set(epochs))
    sql = "select session, last_seq, missing_video from sessions where camera = ?"
    for session, last_seq, missing in results.execute(sql, (camera.name,)):
        rows = stored.get(session, {})
        # Those before the first that a server met are not counted as missing: it may have come later than its camera.
        if last_seq + 1 - len(rows) - missing not in (0, min(rows, default=0)):
            yield f"{session}: {len(rows)} stored and {missing} missing of {last_seq + 1}"
    for session, book in known.items():
        rows = stored.get(session, {})
        counts["captured"] += len(book.captured)
        counts["freed"] += len(book.freed)
        if lost := sorted(book.freed - set(rows)):
            yield f"lost: {session} was told that {lost[:9]} are committed, {len(lost)} in all"
        if unexpected := sorted(set(rows) - set(book.captured)):
            yield f"unexpected: {unexpected[:9]} of {session}"
        wrong = [
            seq for seq in set(rows) & set(book.captured) if abs(rows[seq] - book.captured[seq]) > UTC_TOLERANCE_NS
        ]
        if wrong:
            yield f"{session}: frames {sorted(wrong)[:9]} are stored with another time than theirs"
        if gone := sorted(book.safe - book.freed - set(book.given_up)):
            yield f"lost: {gone[:9]} of {session} stood in the file"
    if camera.camera is not None:
        yield from _judge_ledger(camera, camera.camera.ledger.snapshot(), counts)


def _judge_ledger(camera: CameraActor, ledger: LedgerSnapshot, counts: Counter[str]) -> Iterator[str]:
    assert camera.camera is not None
    books = [camera.books[session] for session in camera.camera.sessions]
    captured, freed = sum(len(book.captured) for book in books), sum(len(book.freed) for book in books)
    counts["sessions begun after an outage"] += len(books) - 1
    dropped = sum(ledger.dropped.values())
    for reason, frames in ledger.dropped.items():
        counts[f"dropped: {reason}"] += frames
    for reason, frames in ledger.backfill.dropped.items():
        counts[f"dropped of earlier sessions: {reason}"] += frames
    counts["recovered"] += ledger.backfill.recovered
    if ledger.captured != captured:
        yield f"captured {captured}, and the ledger says {ledger.captured}"
    if ledger.committed != freed:
        yield f"{freed} frames were acknowledged, and the ledger says {ledger.committed}"
    if ledger.captured != ledger.committed + dropped or ledger.spooled or ledger.backfill.waiting:
        yield f"the books are not closed: {ledger}"
