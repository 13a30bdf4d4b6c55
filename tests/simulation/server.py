"""Servers that are started, killed and started again on one database: leases, ingest, engine, workers, join, store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import paho.mqtt.client as mqtt

from scene_edge.codec.errors import StoreError
from scene_edge.edge.transport import Message
from scene_edge.server.config import ServerConfig
from scene_edge.server.engine import InlineEngine
from scene_edge.server.hub import Hub
from scene_edge.server.ingest import Ingest
from scene_edge.server.leases import Leases, Tenure
from scene_edge.server.pictures import Analytics, PicturePipeline
from scene_edge.server.pool import RETRY_S
from scene_edge.server.state import CameraState
from scene_edge.server.worker import CameraWorker
from tests.simulation.broker import Broker, Line
from tests.simulation.disk import Disk, SimulatedStore
from tests.simulation.world import Life, ServerClock, Work, World, WorldEvent

TICK_S = 0.1
RESTART_S = 1.0
DONE = SimpleNamespace(is_failure=False)
FAILED = SimpleNamespace(is_failure=True)


class SimulatedClient:
    """What ingest sees of paho: comes back by itself, sends again what the broker has not taken."""

    on_connect: Callable[..., None]
    on_connect_fail: Callable[..., None]
    on_subscribe: Callable[..., None]
    on_disconnect: Callable[..., None]
    on_message: Callable[..., None]

    def __init__(self, actor: ServerActor, life: Life, name: str) -> None:
        self._actor, self._life, self._world, self._broker, self._name = actor, life, actor.world, actor.broker, name
        self._line: Line | None = None
        self._unacknowledged: dict[int, Message] = {}
        self._number = 0
        self._running = False

    def max_inflight_messages_set(self, _count: int) -> None:
        pass

    def max_queued_messages_set(self, _count: int) -> None:
        pass

    def reconnect_delay_set(self, _least: int, _most: int) -> None:
        pass

    def connect_async(self, _host: str, _port: int, keepalive: int) -> None:
        pass

    def loop_start(self) -> None:
        self._running = True
        self._world.at(0.01, self._life, self._connect)

    def loop_stop(self) -> None:
        self._running = False

    def disconnect(self) -> None:
        line, self._line = self._line, None
        if line is not None and not line.broken:
            line.send(line.far, lambda: self._broker.bid_farewell(self._name, line))

    def is_connected(self) -> bool:
        return self._line is not None

    def subscribe(self, filters: list[tuple[str, int]]) -> None:
        line = self._line
        assert line is not None

        def arrive() -> None:
            self._broker.subscribe(self._name, [topic for topic, _ in filters])
            line.send(line.near, lambda: self.on_subscribe(self, None, 0, [DONE], None))

        line.send(line.far, arrive)

    def publish(self, topic: str, payload: bytes, qos: int) -> Any:
        self._world.point()
        message = Message(topic, payload, qos)
        self._number += 1
        if qos:
            self._unacknowledged[self._number] = message
        self._send(self._number, message)
        return SimpleNamespace(rc=mqtt.MQTT_ERR_SUCCESS)

    def _send(self, number: int, message: Message) -> None:
        line = self._line
        if line is None:
            return

        def arrive() -> None:
            self._broker.publish(message)
            line.send(line.near, lambda: self._unacknowledged.pop(number, None) and None)

        line.send(line.far, arrive)

    def _connect(self) -> None:
        if not self._running or self._line is not None:
            return
        actor, broker = self._actor, self._broker
        if not (actor.line_up and broker.up):
            self.on_connect_fail(self, None)
            self._world.at(1 + 2 * self._world.random.random(), self._life, self._connect)
            return
        line = self._line = actor.line = Line(self._world, self._life, broker.life, actor.delay_s)

        def deliver(message: Message, acknowledge: Work) -> None:
            if self._line is line:
                told = SimpleNamespace(topic=message.topic, payload=message.payload, retain=message.retain)
                self.on_message(self, None, told)
                acknowledge()

        def lost() -> None:
            if self._line is line:
                self._line = None
                self.on_disconnect(self, None, None, FAILED, None)
                self._world.at(1.0, self._life, self._connect)

        line.lost = lost
        broker.accept(self._name, line, deliver, None, lasting=True)
        self.on_connect(self, None, None, DONE, None)
        for number, message in list(self._unacknowledged.items()):
            self._send(number, message)


@dataclass
class Office:
    """What runs while a server owns the shards."""

    engine: InlineEngine
    ingest: Ingest
    stop: WorldEvent
    workers: dict[str, CameraWorker] = field(default_factory=dict)


class ServerActor:
    """Restarts by itself, as under systemd. `living` has the names of all owners that run, as the system knows them."""

    def __init__(
        self, world: World, broker: Broker, database: Path, config: ServerConfig, name: str, living: set[str]
    ) -> None:
        self.world, self.broker, self.name, self.config = world, broker, name, config
        self.url = f"sqlite:///{database}"
        self.clock = ServerClock(world)
        self.disk = Disk(world)
        self.line_up, self.delay_s = True, 0.002
        self.line: Line | None = None
        self.life = Life(name, lambda: None, alive=False)
        self.store: SimulatedStore | None = None
        self.tenure: Tenure[Office] | None = None
        self._living, self._starts, self._owner = living, 0, ""

    def start(self) -> None:
        if self.life.alive:
            return
        self.life = Life(self.name, self._ended)
        self.world.note(f"{self.name} starts")
        self.world.at(0, self.life, self._boot)

    def _boot(self) -> None:
        self._starts += 1
        self._owner = f"{self.name}-{self._starts}"
        self._living.add(self._owner)
        try:
            self.store = SimulatedStore(self.url, self.clock, self.disk, owner=self._owner)
        except StoreError:
            self.world.kill(self.life)
            return
        settings = self.config.ownership
        self._leases = Leases(
            self.store,
            settings.shard_range,
            settings.lease_s,
            clock=self.clock,
            is_gone=lambda owner: owner not in self._living,
        )
        self.tenure = Tenure(self._leases, self._enter, self._leave)
        self._follow()
        self._tick()

    def _follow(self) -> None:
        """As the thread of the leases does."""
        assert self.tenure is not None
        self.world.at(self._leases.period_s, self.life, self._follow)
        before = self.tenure.current
        self.tenure.follow()
        office = self.tenure.current
        if office is not None and office is not before:
            self.world.note(f"{self.name} is the owner")
            office.ingest.start()

    def _enter(self) -> Office:
        engine = InlineEngine(self._make_worker)
        client = SimulatedClient(self, self.life, self.config.broker.client_id)
        limits = self.config.limits.model_copy(update={"messages_per_s": 10_000.0})  # no door closes, so no thread runs
        ingest = Ingest(self.config.broker, engine, limits, Hub(), client=cast(mqtt.Client, client), clock=self.clock)
        return Office(engine, ingest, WorldEvent(self.world))

    def _leave(self, office: Office) -> None:
        self.world.note(f"{self.name} is the owner no more")
        office.ingest.stop()
        office.engine.close()

    def _ended(self) -> None:
        if self.line is not None:
            self.line.cut(1.0)
        if self.store is not None:
            self.store._engine.dispose()
        self._living.discard(self._owner)
        self.store = self.tenure = None
        self.world.at(RESTART_S * self.world.random.random(), None, self.start)

    def _tick(self) -> None:
        self.world.at(TICK_S, self.life, self._tick)
        if self.tenure is not None and self.tenure.current is not None:
            self.tenure.current.engine.tick(self.clock.now_s())

    @property
    def idle(self) -> bool:
        """The owner, with nothing to do."""
        office = self.tenure.current if self.tenure is not None else None
        return self.life.alive and office is not None and all(worker.idle for worker in office.workers.values())

    def _publish(self, topic: str, payload: bytes, qos: int) -> None:
        if self.tenure is not None and self.tenure.current is not None:
            self.tenure.current.ingest.publish(topic, payload, qos)

    def _make_worker(self, camera: str, _stop: threading.Event) -> CameraWorker:
        """As the engine with threads does: until the store answers."""
        state = CameraState(camera)
        assert self.store is not None
        assert self.tenure is not None
        office = self.tenure.current
        assert office is not None

        def pictures(shown: CameraState) -> PicturePipeline:
            return PicturePipeline(shown, Analytics(None, None, [], 5.0), None)

        while True:
            try:
                worker = CameraWorker(
                    camera, self.config, self.store, state, pictures, self._publish, office.stop, self.clock
                )
            except StoreError:
                if office.stop.wait(RETRY_S):
                    raise
                continue
            office.workers[camera] = worker
            return worker
