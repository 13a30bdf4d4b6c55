"""The loads of the list: L1, L3, L4, L6. Each has a stage of its own, and says what it measured and what is asked."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.load.fleet import Fleet
from tests.load.stage import Stage

RATE = 2.0
"""Records a second of each camera, 1 kB each."""

Step = Callable[[float, str], None]
"""(share that is done, what is going on): for the progress bar."""


@dataclass(frozen=True, slots=True)
class Size:
    """`cameras` for `seconds`, on a server of so many worker `processes` (1: in its own). `full` is as promised; a test
    run takes less of everything."""

    cameras: int
    seconds: float
    backlog_s: float = 0.0
    queue_messages: int = 512
    processes: int = 1


@dataclass
class Outcome:
    """What was measured, by name, and each demand with whether it is met."""

    figures: dict[str, str] = field(default_factory=dict)
    demands: dict[str, bool] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        return all(self.demands.values())

    def say(self, **figures: object) -> None:
        self.figures |= {
            name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in figures.items()
        }

    def demand(self, name: str, met: bool) -> None:
        self.demands[name] = met


@dataclass(frozen=True, slots=True)
class Load:
    key: str
    says: str
    run: Callable[[Size, Step], Awaitable[Outcome]]
    full: Size
    few: Size


def percentile(values: list[float], percent: int) -> float:
    """By nearest rank; NaN where there is nothing."""
    ranked = sorted(values)
    return ranked[-(-len(ranked) * percent // 100) - 1] if ranked else float("nan")


@contextmanager
def stage(**options: int) -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="load-") as folder, Stage(Path(folder), **options) as made:
        yield made


async def ready(made: Stage) -> None:
    for _ in range(1200):
        if await asyncio.to_thread(made.ready):
            return
        await asyncio.sleep(0.1)
    raise TimeoutError("the server does not come up")


@asynccontextmanager
async def running(size: Size, step: Step, *, rate: float = RATE, **options: int) -> AsyncIterator[tuple[Stage, Fleet]]:
    """A server, and cameras that it knows already."""
    with stage(processes=size.processes, **options) as made:
        await ready(made)
        fleet = Fleet(made.broker.port, [f"cam-{number}" for number in range(size.cameras)], rate)
        step(0.0, "cameras come")
        await fleet.start()
        await fleet.warm()
        yield made, fleet
        await fleet.close()


async def pass_time(seconds: float, step: Step, what: str) -> None:
    begun_s = time.monotonic()
    while (gone_s := time.monotonic() - begun_s) < seconds:
        step(gone_s / seconds, what)
        await asyncio.sleep(0.2)


async def settle(fleet: Fleet, outcome: Outcome, seconds: float = 120.0) -> None:
    """No more records; what there is has to be committed, each once."""
    fleet.stop_making()
    await fleet.drained(seconds)
    outcome.say(sent=fleet.made, committed=fleet.made - fleet.waiting, resent=fleet.sent - fleet.made)


def count(made: Stage, fleet: Fleet, outcome: Outcome) -> list[tuple[str, str, int, float]]:
    """The rows that are stored: none lost, none unexpected. None can be there twice: that is their key."""
    rows = made.rows()
    wanted = {
        (camera.name, lane.name, seq) for camera in fleet.cameras for lane in camera.lanes for seq in range(lane.made)
    }
    stored = {row[:3] for row in rows}
    outcome.say(lost=len(wanted - stored), unexpected=len(stored - wanted))
    outcome.demand("sent = committed", not fleet.waiting and wanted == stored)
    return rows


async def steady(size: Size, step: Step) -> Outcome:
    """L1."""
    outcome = Outcome()
    async with running(size, step) as (made, fleet):
        begun_s, cpu_s, own_s = time.monotonic(), made.cpu_s(), time.process_time()
        before = {camera.name: camera.live.made for camera in fleet.cameras}
        await pass_time(size.seconds, step, "under load")
        elapsed_s, records = time.monotonic() - begun_s, fleet.made - sum(before.values())
        outcome.say(
            records_per_s=records / elapsed_s,
            server_cpu_ms_per_record=(made.cpu_s() - cpu_s) * 1000 / records,
            server_cores=(made.cpu_s() - cpu_s) / elapsed_s,
            cameras_cores=(time.process_time() - own_s) / elapsed_s,
        )
        await settle(fleet, outcome)
        rows = count(made, fleet, outcome)
        latencies = [row[3] for row in rows if row[2] >= before[row[0]]]
        outcome.say(p50_ms=percentile(latencies, 50), p99_ms=percentile(latencies, 99), rss_mb=made.memory_mb())
        outcome.demand("p99 <= 250 ms", percentile(latencies, 99) <= 250)
        outcome.demand("RSS <= 512 MB", made.memory_mb() <= 512)
    return outcome


async def broker_restart(size: Size, step: Step) -> Outcome:
    """L3. With few records: it is the connections that are the load."""
    outcome = Outcome()
    async with running(size, step, rate=RATE / 10) as (made, fleet):
        begun_s = time.monotonic()
        await asyncio.to_thread(made.restart_broker)
        there_s = time.monotonic()
        while fleet.online < size.cameras and time.monotonic() < there_s + 90:
            step(fleet.online / size.cameras, "cameras come back")
            await asyncio.sleep(0.1)
        back = [at for at in fleet.returns if at >= begun_s]
        attempts = sorted(at for at in fleet.attempts if at >= begun_s)
        busiest = max(sum(at <= other < at + 1 for other in attempts) for at in attempts)
        outcome.say(broker_away_s=there_s - begun_s, all_back_s=max(back) - begun_s, attempts=len(attempts))
        outcome.say(most_attempts_in_a_second=busiest)
        outcome.demand("all back within 30 s", fleet.online == size.cameras and max(back) - begun_s <= 30)
        outcome.demand("at most 100 connects/s", busiest <= 100)
        await settle(fleet, outcome)
        count(made, fleet, outcome)
        outcome.say(rss_mb=made.memory_mb())
    return outcome


async def backlog(size: Size, step: Step) -> Outcome:
    """L4."""
    outcome = Outcome()
    async with running(size, step) as (made, fleet):
        live_from = {camera.name: camera.live.made for camera in fleet.cameras}
        begun_s = time.monotonic()
        fleet.add_backlog(size.backlog_s)
        held = fleet.backlog
        while fleet.backlog and time.monotonic() < begun_s + 4 * size.backlog_s:
            step(1 - fleet.backlog / held, "backlog drains")
            await asyncio.sleep(0.2)
        took_s = time.monotonic() - begun_s
        until = {camera.name: camera.live.made for camera in fleet.cameras}
        await settle(fleet, outcome)
        rows = count(made, fleet, outcome)
        live = {camera.live.name for camera in fleet.cameras}
        latencies = [row[3] for row in rows if row[1] in live and live_from[row[0]] <= row[2] < until[row[0]]]
        outcome.say(backlog_records=held, drained_s=took_s, times_real_time=size.backlog_s / took_s)
        outcome.say(live_p50_ms=percentile(latencies, 50), live_p99_ms=percentile(latencies, 99))
        outcome.demand(">= 3x real time", not fleet.backlog and size.backlog_s / took_s >= 3)
        outcome.demand("live p99 <= 1 s", percentile(latencies, 99) <= 1000)
    return outcome


async def hot_camera(size: Size, step: Step) -> Outcome:
    """L6: half of the time with all cameras alike, half with one of them at 50 times its rate."""
    outcome, hot = Outcome(), "cam-0"
    async with running(size, step, queue_messages=size.queue_messages) as (made, fleet):
        quiet = {camera.name: camera.live.made for camera in fleet.cameras}
        await pass_time(size.seconds / 2, step, "all alike")
        fleet.cameras[0].rate = 50 * RATE
        loud = {camera.name: camera.live.made for camera in fleet.cameras}
        await pass_time(size.seconds / 2, step, "one is hot")
        fleet.cameras[0].rate = RATE
        after = {camera.name: camera.live.made for camera in fleet.cameras}
        view = await asyncio.to_thread(made.camera, hot)
        await settle(fleet, outcome)
        rows = count(made, fleet, outcome)
        others = [row for row in rows if row[0] != hot]
        calm = percentile([row[3] for row in others if quiet[row[0]] <= row[2] < loud[row[0]]], 99)
        stirred = percentile([row[3] for row in others if loud[row[0]] <= row[2] < after[row[0]]], 99)
        told = [reason for reason in view["degraded"] if "throttled" in reason]
        outcome.say(others_p99_ms_before=calm, others_p99_ms_after=stirred, hot_records=after[hot] - loud[hot])
        outcome.say(reported=told[0] if told else "no", hot_dropped=view["server"]["dropped"].get("throttled", 0))
        outcome.demand("others' p99 rises < 2x", stirred < 2 * calm)
        outcome.demand("throttled and reported", bool(told))
    return outcome


LOADS = (
    Load("L1", "cameras x 2 records/s x 1 kB", steady, Size(1000, 60, processes=2), Size(40, 3, processes=2)),
    Load("L3", "the broker is killed and comes back", broker_restart, Size(1000, 0), Size(60, 0)),
    Load("L4", "a backlog drains behind the live records", backlog, Size(200, 0, 600), Size(10, 0, 30)),
    Load("L6", "one camera at 50 times its rate", hot_camera, Size(200, 60), Size(20, 8, queue_messages=64)),
)
