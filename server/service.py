"""The server as a whole: store, engine, ingest, hub and web, put together from one configuration."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
import uvicorn

from scene_edge.codec.errors import ConfigError, StoreError, TransportError
from scene_edge.server.analytics.seams import ActionRecogniser, Detector
from scene_edge.server.child import Setup
from scene_edge.server.config import LEVELS, ServerConfig
from scene_edge.server.engine import Engine
from scene_edge.server.hub import Hub
from scene_edge.server.ingest import Ingest
from scene_edge.server.leases import Leases, Tenure, new_owner
from scene_edge.server.pool import LocalEngine
from scene_edge.server.processes import ProcessEngine
from scene_edge.server.store import Store
from scene_edge.server.web.app import create_app
from scene_edge.server.worker import PicturesFactory
from scene_edge.server.workshop import Workshop, WorkshopPlan

PING_EVERY_S = 5.0
PRUNE_EVERY_S = 3600.0
WEB_START_S = 20.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Office:
    """What runs while this server owns its shards."""

    engine: Engine
    ingest: Ingest


class Server:
    """Everything between the broker and the page.

    `start` returns once the page answers; the broker may come later (see `wait_connected`). `stop` commits what is
    finished. `detector` and `recognisers` replace what the configuration names, `pictures` all of the work on pictures
    (benchmarks, tests); with worker processes there is `pictures` alone, and it has to be picklable.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        detector: Detector | None = None,
        recognisers: Callable[[], list[ActionRecogniser]] | None = None,
        pictures: PicturesFactory | None = None,
    ) -> None:
        self.config = config
        web = config.web
        self.hub = Hub(
            silent_after_s=config.limits.silent_after_s, history_s=web.history_s, jpeg_quality=web.jpeg_quality
        )
        self.store = Store(config.database, owner=new_owner(), grouped=True)
        self._leases = Leases(self.store, config.ownership.shard_range, config.ownership.lease_s)
        self._tenure = Tenure(self._leases, self._enter_office, self._leave_office)
        self._in_office = threading.Event()
        self._store_answer = "ok"  # it was opened just now
        self._pictures = pictures
        self._workshop: Workshop | None = None
        if config.engine.count == 1:
            made = Workshop(
                config,
                self.store,
                self.hub,
                self._publish,
                detector=detector,
                recognisers=recognisers,
                pictures=pictures,
            )
            self._workshop = made
        elif detector is not None or recognisers is not None:
            what = "networks of the caller's own run in the server's own process"
            raise ConfigError(what, got=f"engine.processes: {config.engine.processes}", allowed="engine.processes: 1")
        self.hub.role = "standby"
        self.hub.answer_for("broker", self._broker_answer)
        self.hub.answer_for("store", lambda: self._store_answer)
        self.hub.count_with(lambda: self.dropped)
        self._web: uvicorn.Server | None = None
        self._web_thread: threading.Thread | None = None
        self._keeper = threading.Thread(target=self._keep_leases, name="leases", daemon=True)
        self._housekeeper = threading.Thread(target=self._keep_house, name="housekeeper", daemon=True)
        self.port = config.web.port

    @property
    def url(self) -> str:
        host = self.config.web.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    def start(self) -> None:
        """Raises ConfigError if the address cannot be listened on."""
        listener = self._listen()
        self.hub.start()
        self._start_web(listener)
        self._follow_leases()
        self._keeper.start()
        self._housekeeper.start()

    @property
    def connected(self) -> bool:
        """Owner of the shards, connected and subscribed."""
        office = self._tenure.current
        return office is not None and office.ingest.connected

    @property
    def dropped(self) -> dict[str, int]:
        """Messages that never reached a worker, by reason, since this server became the owner."""
        office = self._tenure.current
        return office.ingest.dropped if office is not None else {}

    def wait_connected(self, timeout_s: float) -> None:
        """Raises TransportError if this server does not become the owner, or the broker does not answer, in time."""
        deadline_s = time.monotonic() + timeout_s
        self._in_office.wait(timeout_s)
        office = self._tenure.current
        if office is None:
            raise TransportError("another server owns the shards", got=f"no lease after {timeout_s:g} s")
        if not office.ingest.wait_connected(max(0.0, deadline_s - time.monotonic())):
            raise TransportError(
                f"no connection to the broker {self.config.broker.shown}", got=f"none after {timeout_s:g} s"
            )

    def drain(self, timeout_s: float) -> bool:
        """Wait until everything that came is committed."""
        office, deadline_s = self._tenure.current, time.monotonic() + timeout_s
        if office is None:
            return True
        return office.ingest.settled(timeout_s) and office.engine.drain(max(0.0, deadline_s - time.monotonic()))

    def stop(self) -> None:
        self.hub.stop()
        if self._keeper.is_alive():
            self._keeper.join()
        office = self._tenure.current
        if office is not None:
            office.engine.close()  # first, so that the last acknowledgements still go out
            self.hub.elsewhere = None
            office.ingest.stop()
            self._leases.release()
        if self._web is not None and self._web_thread is not None:
            self._web.should_exit = True
            self._web_thread.join(timeout=10)
        if self._workshop is not None:
            self._workshop.close()
        self.store.close()

    # Ownership

    def _keep_leases(self) -> None:
        while not self.hub.wait_stop(self._leases.period_s):
            self._follow_leases()

    def _follow_leases(self) -> None:
        self._tenure.follow()
        office = self._tenure.current
        if office is not None and not self._in_office.is_set():
            office.ingest.start()
            self._in_office.set()
        self.hub.role = "owner" if self._leases.held else "standby"

    def _enter_office(self) -> _Office:
        """The one client id of all servers is the broker's fence: whoever connects under it gets what waits there, and
        ends the connection of the one before."""
        limits = self.config.limits
        engine = self._make_engine()
        ingest = Ingest(self.config.broker, engine, limits, self.hub, self.config.ownership.shard_range)
        return _Office(engine, ingest)

    def _leave_office(self, office: _Office) -> None:
        self._in_office.clear()
        office.ingest.stop()
        office.engine.close()
        self.hub.elsewhere = None

    def _make_engine(self) -> Engine:
        limits, web = self.config.limits, self.config.web
        if self._workshop is not None:
            make = self._workshop.make_worker
            return LocalEngine(make, max_cameras=limits.max_cameras, queue_messages=limits.queue_messages)
        setup = Setup(
            WorkshopPlan(self.config, self.store.owner, self._pictures),
            limits.max_cameras,
            limits.queue_messages,
            limits.silent_after_s,
            web.history_s,
            web.jpeg_quality,
            LEVELS[self.config.log_level],
        )
        engine = self.hub.elsewhere = ProcessEngine(setup, self._publish, self.config.engine.count)
        return engine

    def _broker_answer(self) -> str:
        return "ok" if self._tenure.current is None or self.connected else "not connected"

    def _publish(self, topic: str, payload: bytes, qos: int) -> None:
        """What a server out of office would say is not said."""
        office = self._tenure.current
        if office is not None:
            office.ingest.publish(topic, payload, qos)

    # Upkeep

    def _keep_house(self) -> None:
        """Ask the database now and then whether it is well, and remove what is too old."""
        prune_due_s = time.monotonic()
        while not self.hub.wait_stop(PING_EVERY_S):
            try:
                self.store.ping()
                if time.monotonic() >= prune_due_s:
                    prune_due_s = time.monotonic() + PRUNE_EVERY_S
                    kept_ns = round(self.config.limits.retention_days * 86_400 * 1e9)
                    log.info("old results removed", frames=self.store.prune(time.time_ns() - kept_ns))
                self._store_answer = "ok"
            except StoreError as error:
                log.error("database fails", error=str(error))
                self._store_answer = str(error)

    def _listen(self) -> socket.socket:
        host, port = self.config.web.host, self.config.web.port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            listener.close()
            raise ConfigError(
                f"cannot listen on {host}:{port}", got=str(error), hint="Choose another address with --listen."
            ) from error
        self.port = int(listener.getsockname()[1])
        return listener

    def _start_web(self, listener: socket.socket) -> None:
        app: Any = create_app(self.hub, self.config.web)
        settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, lifespan="off", ws="none")
        web = self._web = uvicorn.Server(settings)
        self._web_thread = threading.Thread(target=lambda: web.run(sockets=[listener]), name="web", daemon=True)
        self._web_thread.start()
        deadline_s = time.monotonic() + WEB_START_S
        while not web.started and time.monotonic() < deadline_s and self._web_thread.is_alive():
            time.sleep(0.02)
        if not web.started:
            with contextlib.suppress(OSError):
                listener.close()
            raise ConfigError("the page does not start", got=self.url)
