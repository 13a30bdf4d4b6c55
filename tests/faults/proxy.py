"""A TCP proxy in user space whose line a test makes slow, lossy, half-open or dead. No privileges are needed.

What TCP makes of a lost packet is a stall of a retransmission's time: so that is what loss is here. Bytes are delayed
side by side, as a long line does it, and keep their order.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from dataclasses import dataclass

LOST_S = 0.25
"""A retransmission's time, about: what a lost packet costs."""

CHUNK_BYTES = 1448
QUEUE_CHUNKS = 256


@dataclass(frozen=True, slots=True)
class Line:
    """How the line is. `up`: False refuses and ends connections. `silent`: takes bytes and hands none on, half-open."""

    up: bool = True
    silent: bool = False
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    bytes_per_s: float | None = None


CLEAR = Line()


class Proxy:
    """Listens on `port` of 127.0.0.1 and hands on to `target`. Use it as a context manager."""

    def __init__(self, target: int, *, seed: int = 1) -> None:
        self.line = CLEAR
        self.connections = 0
        self.port = 0
        self._target, self._random = target, random.Random(seed)
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def set(self, line: Line) -> None:
        """From now on; a line that is down ends what is open."""
        self.line = line
        if not line.up:
            self.reset()

    def reset(self) -> None:
        """RST on every open connection, both ends."""
        done = threading.Event()
        self._loop.call_soon_threadsafe(self._abort_all, done)
        done.wait()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        try:
            self._loop.run_forever()
        finally:
            server.close()
            self._abort_all(threading.Event())
            for task in self._tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
            self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.close()

    def _abort_all(self, done: threading.Event) -> None:
        for writer in list(self._open):
            _abort(writer)
        self._open.clear()
        done.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._relay(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # either end has gone: the other one hears of it below
        finally:
            self._tasks.discard(task)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        far = None
        try:
            if not self.line.up:
                return
            far_reader, far = await asyncio.open_connection("127.0.0.1", self._target)
            self._open.add(far)
            self.connections += 1
            ways = [asyncio.create_task(self._way(reader, far)), asyncio.create_task(self._way(far_reader, writer))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        finally:
            for end in (writer, far):
                if end is not None:
                    self._open.discard(end)
                    _abort(end)

    async def _way(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction, until its reader ends."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUE_CHUNKS)
        sender = asyncio.create_task(self._send(queue, writer))
        due_s = 0.0
        try:
            while data := await reader.read(CHUNK_BYTES):
                line = self.line
                late_s = (line.delay_ms + self._random.uniform(-1, 1) * line.jitter_ms) / 1000
                if self._random.random() < line.loss:
                    late_s += LOST_S
                due_s = max(due_s, self._loop.time() + late_s)
                await queue.put((due_s, data))
        finally:
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await sender

    async def _send(self, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        while True:
            due_s, data = await queue.get()
            await asyncio.sleep(max(0.0, due_s - self._loop.time()))
            while data:
                while self.line.silent:
                    await asyncio.sleep(0.02)
                rate = self.line.bytes_per_s
                step = len(data) if rate is None else max(1, int(rate / 50))
                writer.write(data[:step])
                await writer.drain()
                data = data[step:]
                if rate is not None:
                    await asyncio.sleep(step / rate)


def _abort(writer: asyncio.StreamWriter) -> None:
    """RST, not FIN: the other end learns at once, as from a router that has forgotten the connection."""
    held = writer.get_extra_info("socket")
    if held is not None:
        with contextlib.suppress(OSError):
            held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
