"""A camera that is started, killed and started again on one spool file; its frames come from a clip coded once.

Everything behind the encoder is the product's. Its threads are not started: their work is done here, when it is due.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from scene_edge.codec.errors import TransportError
from scene_edge.codec.identity import AccessUnit, Frame
from scene_edge.codec.packet import CODEC_SMC_GOP, FLAG_GOP_CUT, KEY, SemanticPacket
from scene_edge.codec.sei import UTC_LOCKED
from scene_edge.edge.camera import Camera
from scene_edge.edge.config import CameraConfig
from scene_edge.edge.networks import Networks
from scene_edge.edge.pipeline import Captured, Pipeline
from scene_edge.edge.publisher import Publisher, Voice
from scene_edge.edge.settings import load_config
from scene_edge.edge.sources import SourceInfo
from scene_edge.edge.spool import Limits, MemorySpool, Notices, Record, Spool
from scene_edge.edge.spool_file import SpoolFile
from scene_edge.edge.spool_sqlite import COMMIT_RECORDS, COMMIT_S, SqliteSpool
from scene_edge.edge.transport import Listener, Message
from tests.server.camera import GOP, HEIGHT, WIDTH, access_units
from tests.simulation.broker import Broker, Line
from tests.simulation.disk import Disk, spool_file_on
from tests.simulation.world import CameraClock, Life, Violation, Work, World

FPS = 8
CLIP_FRAMES = 20 * GOP
DIGEST = b"simulate"
SMALL_DELAY_S = 0.0005


@lru_cache(maxsize=1)
def clip() -> list[AccessUnit]:
    """Real H.264, which every camera sends round and round."""
    return access_units(CLIP_FRAMES)


@dataclass
class Book:
    """What is known of one session: when its frames were captured (UTC), which of them the spool freed on the server's
    word, which were given up and why, and which stood in the file when the camera was killed."""

    captured: dict[int, int] = field(default_factory=dict)
    freed: set[int] = field(default_factory=set)
    given_up: dict[int, str] = field(default_factory=dict)
    safe: set[int] = field(default_factory=set)


class SimulatedTransport:
    """The seam to the broker."""

    def __init__(self, actor: CameraActor, life: Life) -> None:
        self._actor, self._life, self._world, self._broker = actor, life, actor.world, actor.broker
        self._line: Line | None = None
        self._handed_over = self._taken = 0

    def connect(self, will: Message, subscriptions: list[str], listener: Listener) -> None:
        self._world.point()
        self.close()
        actor, broker = self._actor, self._broker
        if not (actor.line_up and broker.up):
            raise TransportError("cannot connect", got="connection refused")
        line = self._line = actor.line = Line(self._world, self._life, broker.life, actor.delay_s)
        self._handed_over = self._taken = 0

        def deliver(message: Message, acknowledge: Work) -> None:
            listener.message(message.topic, message.payload)
            acknowledge()
            actor.after()

        def lost() -> None:
            if self._line is line:
                listener.lost("the line is dead")
                actor.after()

        line.lost = lost
        self._progress = listener.progress
        broker.accept(actor.name, line, deliver, will, lasting=False)
        broker.subscribe(actor.name, subscriptions)

    def publish(self, message: Message) -> None:
        self._world.point()
        line = self._line
        if line is None:
            raise TransportError("there is no connection to the broker")
        self._handed_over += 1

        def taken() -> None:
            if self._line is line:
                self._taken += 1
                self._progress()
                self._actor.after()

        def arrive() -> None:
            self._broker.publish(message)
            line.send(line.near, taken)

        line.send(line.far, arrive)

    def in_flight(self) -> int:
        return self._handed_over - self._taken

    def close(self) -> None:
        line, self._line = self._line, None
        if line is not None and not line.broken:
            line.send(line.far, lambda: self._broker.bid_farewell(self._actor.name, line))


class CameraActor:
    """`start` after every kill. `stream` says whether frames come."""

    def __init__(self, world: World, broker: Broker, name: str, folder: Path, *, settings: Sequence[str] = ()) -> None:
        self.world, self.broker, self.name = world, broker, name
        self.clock = CameraClock(world)
        self.disk = Disk(world)
        self.disk.moved_aside = self._forget_file
        self.line_up, self.delay_s = True, 0.002
        self.line: Line | None = None
        self.books: dict[int, Book] = {}
        self.stream = True
        self.life = Life(name, lambda: None, alive=False)
        fixed = [
            f"camera={name}", "scene.enabled=false", "semantics.enabled=false", "mqtt.resend_after_s=4",
            "mqtt.backoff_cap_ms=4000", "mqtt.window=16", f"video.gop={GOP}", f"spool.path={folder}",
        ]  # fmt: skip
        self.config: CameraConfig = load_config("cpu", overrides=[*fixed, *settings], environment={})
        self.info = SourceInfo(WIDTH, HEIGHT, float(FPS), True)
        self.camera: Camera | None = None
        self.spool: Spool | None = None
        self._clip = clip()

    # The process

    def start(self) -> None:
        if self.life.alive:
            return
        self.life = life = Life(self.name, lambda: self._ended(life))
        self.world.note(f"{self.name} starts")
        self.world.at(0, life, self._boot)

    def _boot(self) -> None:
        world = self.world
        session = world.random.getrandbits(64) | 1
        transport = SimulatedTransport(self, self.life)
        camera = self.camera = Camera(self.config, transport=transport, clock=self.clock)
        camera._first_session = session
        self.books[session] = Book()
        self._seq, self._turn_ns, self._flush_at_ns = 0, None, None
        self._coded_from = self._coded = 0
        camera._spool = self.spool = self._open_spool(camera)
        camera._info = self.info
        pipeline = self._pipeline = camera._pipeline = Pipeline(
            self.config,
            cast(Any, None),
            self.info,
            cast(Any, None),
            Networks(),
            self.spool,
            camera.ledger,
            session_id=session,
            utc_quality=UTC_LOCKED,
            clock=self.clock,
            degrade=camera.degrade,
        )
        self._outbox = pipeline._outbox
        self._publisher = camera._publisher = Publisher(
            transport,
            self.spool,
            camera.ledger,
            self.config.mqtt,
            camera=self.name,
            voice=Voice(camera.status, self._birth, camera.ledger_json, camera._part),
            clock=self.clock,
            generator=world.random,
        )
        self._turn()
        self._later(world.random.random() / FPS, self._frame)

    def _open_spool(self, camera: Camera) -> Spool:
        spool_settings = self.config.spool
        limits = Limits(round(spool_settings.max_mb * 1e6), round(spool_settings.memory_mb * 1e6), 24 * 3600)
        session, books = camera.session_id, self.books

        def given_up(record: Record, reason: str) -> None:
            camera._given_up(record, reason)
            books[record.session].given_up.update(dict.fromkeys(frames_of(record), reason))

        notices = Notices(given_up, camera.ledger.recover, camera.degrade, camera.recover)

        class Noting:
            def begin_session(self, session: int) -> bool:
                books[session] = Book()
                return bool(super().begin_session(session))  # type: ignore[misc]

            def acknowledge(self, of_session: int, seq: int) -> list[Record]:
                freed: list[Record] = super().acknowledge(of_session, seq)  # type: ignore[misc]
                for record in freed:
                    books[record.session].freed.update(frames_of(record))
                return freed

        class Durable(Noting, SqliteSpool):
            file_type = spool_file_on(self.disk)

            def _start(self) -> None:
                """Its writer's work is done in `_flush`."""

        class Fleeting(Noting, MemorySpool):
            pass

        if spool_settings.path is None:
            return Fleeting(limits, session, self.clock, notices)
        file = spool_settings.path / f"{self.name}.sqlite"
        return Durable(file, limits, session=session, clock=self.clock, notices=notices)

    def _forget_file(self) -> None:
        """A file that was found damaged before it could be read: nobody knows what stood in it."""
        if not (isinstance(self.spool, SqliteSpool) and self.spool._loaded):
            for book in self.books.values():
                book.given_up.update(dict.fromkeys(book.safe - book.freed, "moved aside"))

    def _ended(self, life: Life) -> None:
        """What stands in the file is safe, and what was in memory alone is gone with the process."""
        if self.line is not None:
            self.line.cut(2.0)
        spool = self.spool
        if isinstance(spool, SqliteSpool):
            SpoolFile.close(spool._file)
            for entry in spool._index.entries():
                if entry.row and spool._loaded:
                    self.books[entry.record.session].safe.update(frames_of(entry.record))
        self.spool = self.camera = None

    def _later(self, delay_s: float, work: Work) -> int:
        def done() -> None:
            work()
            self.after()

        return self.world.at(delay_s, self.life, done)

    def after(self) -> None:
        """Behind every event: who has work now is woken, and the books must add up."""
        camera, publisher = self.camera, self._publisher
        assert camera is not None
        if not camera.ledger.snapshot().balanced:
            raise Violation(f"{self.name}: the books do not add up: {camera.ledger.snapshot()}")
        soon_ns = self.world.now_ns + round(SMALL_DELAY_S * 1e9)
        connected = publisher._connected
        if connected and publisher._has_work() and (self._turn_ns is None or self._turn_ns > soon_ns):
            self._plan_turn(SMALL_DELAY_S)
        spool = self.spool
        if isinstance(spool, SqliteSpool) and (spool._due_s is not None or spool._failure is not None):
            full = len(spool._unsaved) >= COMMIT_RECORDS
            self._plan_flush(self.world.random.random() * (0.02 if full else COMMIT_S))

    # The threads' work

    def _plan_turn(self, delay_s: float) -> None:
        def turn(due_ns: int) -> None:
            if self._turn_ns == due_ns:
                self._turn()

        due_ns = self.world.now_ns + round(delay_s * 1e9)
        self._turn_ns: int | None = due_ns
        self._later(delay_s, lambda: turn(due_ns))

    def _turn(self) -> None:
        self._turn_ns = None
        self._plan_turn(max(self._publisher.step(), SMALL_DELAY_S))

    def _plan_flush(self, delay_s: float) -> None:
        if self._flush_at_ns is None:
            self._flush_at_ns: int | None = self._later(delay_s, self._flush)

    def _flush(self) -> None:
        self._flush_at_ns = None
        assert isinstance(self.spool, SqliteSpool)
        if not self.spool.flush():
            self._plan_flush(0.2 + self.world.random.random())

    # Frames

    def _frame(self) -> None:
        if not self.stream:
            self._close_message()
            self._outbox.send_riders()
            return
        self._later(1 / FPS, self._frame)
        number, now_ns, offset_ns = self._seq, self.clock.now_ns(), self.clock.utc_offset_ns()
        self._seq += 1
        coded = self._clip[number % CLIP_FRAMES]
        unit = replace(coded, frame_seq=number, capture_ns=now_ns)
        frame = Frame(cast(Any, None), now_ns, offset_ns)
        assert self.camera is not None
        self.camera.ledger.capture()
        pipeline = self._pipeline
        pipeline._emit(unit, Captured(frame, now_ns))
        seq = number - pipeline.sessions[pipeline.session_id]  # after an outage another session begins at a keyframe
        self.books[pipeline.session_id].captured[seq] = now_ns + offset_ns
        if coded.keyframe:
            self._coded_from, self._coded = seq, 0
        if not self._pipeline._skip_video and seq == self._coded_from + self._coded:
            self._coded += 1  # as the semantic encoder has it: nothing behind a gap, up to the next keyframe
        if seq % GOP == GOP - 1 and self._coded:
            self._outbox.add_packets([self._packet(now_ns)])
        left_s = self._outbox.left_s()
        if left_s is not None:
            self._later(left_s, self._close_if_due)

    def _close_if_due(self) -> None:
        left_s = self._outbox.left_s()
        if left_s is not None and left_s <= 0:
            self._close_message()

    def _close_message(self) -> None:
        if not self._outbox.close_message():
            self._pipeline._skip_video = True

    def _packet(self, now_ns: int) -> SemanticPacket:
        """Of a size as it comes, now and then too large to ride."""
        random, camera = self.world.random, self.camera
        assert camera is not None
        body = random.randbytes(5_000 if random.random() < 0.1 else random.randrange(1, 60))
        period_ns = self.info.frame_period_ns
        return SemanticPacket(
            KEY, CODEC_SMC_GOP, DIGEST, camera.session_id, self._coded_from, now_ns - (GOP - 1) * period_ns,
            WIDTH, HEIGHT, period_ns, 0 if self._coded == GOP else FLAG_GOP_CUT, 0, self._coded, body,
        )  # fmt: skip

    def _birth(self) -> bytes:
        assert self.camera is not None
        return json.dumps({**json.loads(self.camera.birth()), "semantics": True}).encode()


def frames_of(record: Record) -> range:
    """The frames that are complete with a record."""
    last = record.last_seq if record.last_frame < 0 else record.last_frame
    return range(last - record.frames + 1, last + 1)
