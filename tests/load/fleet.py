"""Simulated cameras: light, but each with a connection, a session, records of real H.264 in the real wire format, a
window, the product's back-off and lanes, and a copy of every record until the server's own acknowledgement."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np

from scene_edge.codec.identity import AccessUnit, new_session_id, session_hex
from scene_edge.codec.topics import Topics
from scene_edge.codec.videomessage import split_video
from scene_edge.edge.backoff import Backoff
from scene_edge.edge.config import MqttConfig
from scene_edge.edge.lanes import BACKFILL_WINDOW, UNANSWERED, BackfillPace
from tests.load.wire import Ear, Wire, connect, publish, subscribe

WIDTH, HEIGHT, GOP = 64, 64, 10
HEADER_BYTES = 48
"""Header, UTC offset, table and checksum of a message of one access unit, about."""

MQTT = MqttConfig()
"""What a camera does that nobody has told anything."""


def coded_pictures(record_bytes: int) -> list[bytes]:
    """One GOP of real H.264 whose access units take `record_bytes` on average: noise, as finely coded as that needs."""
    coded = [_coded(qp) for qp in range(10, 51, 2)]
    return min(coded, key=lambda units: abs(sum(map(len, units)) / GOP - record_bytes))


def _coded(qp: int) -> list[bytes]:
    noise = np.random.default_rng(5)
    context = av.CodecContext.create("libx264", "w")
    context.width, context.height, context.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    context.time_base, context.framerate, context.gop_size = Fraction(1, 25), Fraction(25), GOP
    keys = f"keyint={GOP}:min-keyint={GOP}:scenecut=0:repeat-headers=1:annexb=1"
    context.options = {"preset": "ultrafast", "tune": "zerolatency", "qp": str(qp), "x264-params": keys}
    units: list[bytes] = []
    for index in range(GOP):
        picture = noise.integers(96, 160, (HEIGHT * 3 // 2, WIDTH), dtype=np.uint8)
        frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
        frame.pts = index
        units += [bytes(packet) for packet in context.encode(frame)]
    return units


@dataclass
class Lane:
    """One session's records: `made` so far, `acked` by the server, `next` to send. `captured_ns` of what is not acked,
    on the monotonic clock."""

    session_id: int = field(default_factory=new_session_id)
    made: int = 0
    acked: int = 0
    next: int = 0
    captured_ns: dict[int, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return session_hex(self.session_id)

    def add(self, captured_ns: int) -> None:
        self.captured_ns[self.made] = captured_ns
        self.made += 1

    def acknowledge(self, seq: int) -> bool:
        """Whether that freed anything."""
        moved = seq >= self.acked
        while self.acked <= min(seq, self.made - 1):
            self.captured_ns.pop(self.acked, None)
            self.acked += 1
        self.next = max(self.next, self.acked)
        return moved


class SimCamera:
    """See the module. It makes `rate` records a second from `start` to `stop_making`."""

    def __init__(self, fleet: Fleet, name: str, rate: float) -> None:
        self.name, self.rate = name, rate
        self.live = Lane()
        self.backlog: Lane | None = None
        self.online = False
        self._fleet = fleet
        self._topics = Topics(name)
        self._backoff = Backoff(MQTT.backoff_base_ms / 1e3, MQTT.backoff_cap_ms / 1e3, random.Random(name))
        self._pace = BackfillPace(MQTT.window // BACKFILL_WINDOW)
        self._backlog_sent_ns: dict[int, int] = {}
        self._wire: Wire | None = None
        self._under_way = 0
        self._number = 0
        self._answered_s = 0.0
        self._task: asyncio.Task[None] | None = None
        self._making = False

    @property
    def lanes(self) -> list[Lane]:
        return [self.live, *([self.backlog] if self.backlog else [])]

    @property
    def waiting(self) -> int:
        """Records that the server has not acknowledged."""
        return sum(lane.made - lane.acked for lane in self.lanes)

    def start(self) -> None:
        self._task = asyncio.create_task(self._stay_connected())
        self._making = True
        loop = asyncio.get_running_loop()
        loop.call_later(random.Random(self.name).random() / self.rate, self._make, loop.time())

    def stop_making(self) -> None:
        self._making = False

    def add_backlog(self, seconds: float) -> None:
        self.backlog = Lane()
        now_ns, count = time.monotonic_ns(), round(seconds * self.rate)
        for number in range(count):
            self.backlog.add(now_ns - round((count - number) / self.rate * 1e9))
        self._pump()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._wire is not None:
            self._wire.close()

    def _make(self, due_s: float) -> None:
        """A record, and the next one when it is due: late ones are not forgotten, so the rate holds on a busy core."""
        if not self._making:
            return
        loop = asyncio.get_running_loop()
        self.live.add(time.monotonic_ns())
        due_s = max(due_s + 1 / self.rate, loop.time() - 1.0)
        loop.call_at(due_s, self._make, due_s)
        if self.online and loop.time() > self._answered_s + MQTT.resend_after_s:
            self._rewind()
        self._pump()

    # The connection

    async def _stay_connected(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            lost = asyncio.Event()
            hello = connect(self.name, self._topics.status, b"offline", MQTT.keepalive_s)
            ear = Ear(self._accepted, self._heard, self._taken, lost.set)
            self._fleet.attempts.append(time.monotonic())
            try:
                _, self._wire = await loop.create_connection(
                    lambda hello=hello, ear=ear: Wire(ear, hello), "127.0.0.1", self._fleet.port
                )
                await lost.wait()
            except OSError:
                pass  # refused: the broker is away
            self.online, self._wire = False, None
            await asyncio.sleep(self._backoff.next_s())

    def _accepted(self) -> None:
        assert self._wire is not None
        self.online = True
        self._backoff.reset()
        self._fleet.returns.append(time.monotonic())
        self._under_way = 0
        self._wire.write(subscribe(self._topics.ack))
        self._publish(self._topics.birth, self._birth(), retain=True)
        self._publish(self._topics.status, b"online", retain=True)
        self._rewind()
        self._pump()

    def _birth(self) -> bytes:
        facts = {"session": self.live.name, "profile": "cpu", "width": WIDTH, "height": HEIGHT, "fps": self.rate,
                 "gop": GOP, "semantics": False, "degraded": [], "version": "load"}  # fmt: skip
        return json.dumps(facts, separators=(",", ":")).encode()

    def _publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        assert self._wire is not None
        self._number = self._number % 65_535 + 1
        self._under_way += 1
        self._wire.write(publish(topic, payload, self._number, retain=retain))

    def _taken(self, _number: int) -> None:
        self._under_way = max(0, self._under_way - 1)
        self._pump()

    # Records

    def _rewind(self) -> None:
        self._answered_s = asyncio.get_running_loop().time()
        for lane in self.lanes:
            lane.next = lane.acked

    def _pump(self) -> None:
        """Live first; a backlog has a quarter of the window."""
        while self.online and self._under_way < MQTT.window:
            backlog = self.backlog
            if self.live.next < min(self.live.made, self.live.acked + UNANSWERED):
                self._send(self.live)
            elif backlog and backlog.next < min(backlog.made, backlog.acked + self._pace.room):
                self._backlog_sent_ns[backlog.next] = time.monotonic_ns()
                self._send(backlog)
            else:
                return

    def _send(self, lane: Lane) -> None:
        seq, lane.next = lane.next, lane.next + 1
        captured_ns = lane.captured_ns[seq]
        data = self._fleet.pictures[seq % GOP]
        unit = AccessUnit(data, seq, captured_ns, seq % GOP == 0, time.time_ns() - time.monotonic_ns())
        (message,) = split_video([unit], session_id=lane.session_id, width=WIDTH, height=HEIGHT)
        self._fleet.sent += 1
        self._publish(self._topics.video, message.to_bytes())

    def _heard(self, payload: bytes) -> None:
        ack = json.loads(payload)
        self._backoff.company = ack.get("cameras", self._backoff.company)
        if "missing" in ack:
            self._fleet.asked += 1
            self._rewind()
        for lane in self.lanes:
            if ack["session"] == lane.name and "seq" in ack and lane.acknowledge(ack["seq"]):
                self._answered_s = asyncio.get_running_loop().time()
                if lane is self.backlog and (sent_ns := self._backlog_sent_ns.pop(ack["seq"], None)) is not None:
                    self._pace.answered(sent_ns, time.monotonic_ns())
        self._pump()


class Fleet:
    """Cameras at the broker on `port`. `attempts` and `returns`: when one connected, when a broker took it."""

    def __init__(self, port: int, names: list[str], rate: float, record_bytes: int = 1000) -> None:
        self.port = port
        self.pictures = coded_pictures(record_bytes - HEADER_BYTES)
        self.cameras = [SimCamera(self, name, rate) for name in names]
        self.attempts: list[float] = []
        self.returns: list[float] = []
        self.sent = self.asked = 0

    @property
    def online(self) -> int:
        return sum(camera.online for camera in self.cameras)

    @property
    def made(self) -> int:
        return sum(lane.made for camera in self.cameras for lane in camera.lanes)

    @property
    def waiting(self) -> int:
        return sum(camera.waiting for camera in self.cameras)

    async def start(self, connects_per_s: float = 100.0) -> None:
        """Returns once all are online."""
        for camera in self.cameras:
            camera.start()
            await asyncio.sleep(1 / connects_per_s)
        while self.online < len(self.cameras):
            await asyncio.sleep(0.02)

    async def warm(self) -> None:
        """Until the server has met every camera and is not behind: opening sessions is not the load."""
        while any(camera.live.acked == 0 for camera in self.cameras) or self.waiting > 2 * len(self.cameras):
            await asyncio.sleep(0.1)

    def add_backlog(self, seconds: float) -> None:
        """Every camera has, of an earlier session, so much that nobody has acknowledged."""
        for camera in self.cameras:
            camera.add_backlog(seconds)

    @property
    def backlog(self) -> int:
        """Records that still wait in it."""
        return sum(camera.backlog.made - camera.backlog.acked for camera in self.cameras if camera.backlog)

    def stop_making(self) -> None:
        for camera in self.cameras:
            camera.stop_making()

    async def drained(self, seconds: float) -> bool:
        """Whether the server acknowledges everything in time."""
        until_s = time.monotonic() + seconds
        while self.waiting and time.monotonic() < until_s:
            await asyncio.sleep(0.05)
        return not self.waiting

    async def close(self) -> None:
        await asyncio.gather(*(camera.close() for camera in self.cameras))
