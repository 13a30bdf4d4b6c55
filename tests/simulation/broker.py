"""A broker, and the lines to it: MQTT's sessions, QoS 1, retained messages, wills; what it may lose, it loses at times.

A line is TCP's: what is sent on it comes in order, or, once it is broken, not at all, and the ends learn of that sooner
or later. A broker repeats what was not acknowledged on a new connection of a lasting session, keeps so much for one
that is away and drops the rest, and when it is killed it forgets (mosquitto without persistence) or remembers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from scene_edge.edge.transport import Message
from tests.simulation.world import Life, Work, World

MAX_QUEUED = 300
"""For a client that is away; mosquitto's default is 1000, of a longer day than ours."""

Deliver = Callable[[Message, Work], None]
"""A message for a client, and what acknowledges it."""


class Line:
    """One connection. `near` is the client's process, `far` the broker's."""

    def __init__(self, world: World, near: Life, far: Life, delay_s: float) -> None:
        self.near, self.far, self.delay_s = near, far, delay_s
        self.broken = False
        self._world = world
        self._last_ns: dict[Life, int] = {}
        self.lost: Work = lambda: None
        self.gone: Work = lambda: None

    def send(self, to: Life, work: Work) -> None:
        """In order; never on a line that broke meanwhile."""
        jitter = 1 + self._world.random.random()
        due_ns = max(self._world.now_ns + round(self.delay_s * jitter * 1e9), self._last_ns.get(to, 0))
        self._last_ns[to] = due_ns
        self._world.at((due_ns - self._world.now_ns) / 1e9, to, lambda: None if self.broken else work())

    def cut(self, notice_s: float) -> None:
        """From now on nothing comes through; each end notices at most so much later."""
        if self.broken:
            return
        self.broken = True
        self._world.at(self._world.random.random() * notice_s, self.near, self.lost)
        self._world.at(self._world.random.random() * notice_s, self.far, self.gone)


@dataclass
class Session:
    """What the broker knows of a client."""

    client: str
    lasting: bool
    line: Line | None = None
    deliver: Deliver | None = None
    will: Message | None = None
    filters: list[str] = field(default_factory=list)
    queued: deque[Message] = field(default_factory=deque)
    unacknowledged: dict[int, Message] = field(default_factory=dict)


class Broker:
    """`lossy` and `doubling`: the shares of QoS 1 messages for lasting sessions that it loses, and delivers twice."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.lossy = self.doubling = 0.0
        self.sessions: dict[str, Session] = {}
        self.retained: dict[str, Message] = {}
        self._numbers = 0
        self.life = Life("broker", self._ended)

    @property
    def up(self) -> bool:
        return self.life.alive and not self.life.held

    def start(self, *, forgetful: bool) -> None:
        if self.life.alive:
            return
        self.life = Life("broker", self._ended)
        self._world.note(f"broker starts, {'knowing nothing' if forgetful else 'knowing what it knew'}")
        if forgetful:
            self.sessions.clear()
            self.retained.clear()
        for name, session in list(self.sessions.items()):
            if not session.lasting:
                del self.sessions[name]

    def _ended(self) -> None:
        for session in self.sessions.values():
            line, session.line = session.line, None
            if line is not None:
                line.cut(0.3)

    # A client's side

    def accept(self, client: str, line: Line, deliver: Deliver, will: Message | None, *, lasting: bool) -> None:
        """A connection, which ends one that is there under the same name."""
        session = self.sessions.get(client)
        if session is not None and session.line is not None:
            self._leave(session, line=session.line)
        if session is None or not (lasting and session.lasting):
            session = self.sessions[client] = Session(client, lasting)
        session.line, session.deliver, session.will = line, deliver, will
        line.gone = lambda: self._leave(session, line=line)
        again, session.unacknowledged = list(session.unacknowledged.values()), {}
        queued, session.queued = list(session.queued), deque()
        for message in (*again, *queued):
            self._hand_over(session, message)

    def subscribe(self, client: str, filters: list[str]) -> None:
        session = self.sessions.get(client)
        if session is None:
            return
        session.filters = [*session.filters, *(item for item in filters if item not in session.filters)]
        for topic, message in self.retained.items():
            if any(matches(topic, pattern) for pattern in filters):
                self._hand_over(session, message)

    def bid_farewell(self, client: str, line: Line) -> None:
        """DISCONNECT: no will."""
        session = self.sessions.get(client)
        if session is not None and session.line is line:
            session.will = None
            self._leave(session, line=line)

    def publish(self, message: Message) -> None:
        if message.retain:
            self.retained[message.topic] = message
        plain = Message(message.topic, message.payload, message.qos)
        for session in list(self.sessions.values()):
            if any(matches(message.topic, pattern) for pattern in session.filters):
                self._route(session, plain)

    # Inside

    def _leave(self, session: Session, line: Line) -> None:
        if session.line is not line:
            return
        session.line = None
        line.cut(0.3)
        if not session.lasting:
            self.sessions.pop(session.client, None)
        will, session.will = session.will, None
        if will is not None:
            self.publish(will)

    def _route(self, session: Session, message: Message) -> None:
        random = self._world.random
        if message.qos and session.lasting and random.random() < self.lossy:
            return
        for _ in range(2 if message.qos and random.random() < self.doubling else 1):
            if session.line is not None:
                self._hand_over(session, message)
            elif session.lasting and message.qos and len(session.queued) < MAX_QUEUED:
                session.queued.append(message)

    def _hand_over(self, session: Session, message: Message) -> None:
        line, deliver = session.line, session.deliver
        if line is None or deliver is None:
            return
        self._numbers += 1
        number = self._numbers
        if message.qos:
            session.unacknowledged[number] = message

        def acknowledge() -> None:
            line.send(line.far, lambda: session.unacknowledged.pop(number, None) and None)

        line.send(line.near, lambda: deliver(message, acknowledge))


def matches(topic: str, pattern: str) -> bool:
    """Filters with + alone."""
    levels, wanted = topic.split("/"), pattern.split("/")
    return len(levels) == len(wanted) and all(w in ("+", level) for level, w in zip(levels, wanted, strict=True))
