"""A camera for minutes on end: whether its memory, its file descriptors or its spool grow; and how soon it is ready.

    python -m benchmarks.soak --minutes 20 --plot soak.png

Its source is a file that loops, a rendered street of STREET_S, so that drawing is in no figure. Real parts:
`scene-edge start` in a process of its own, mosquitto (or the embedded broker), and `scene-edge serve`, which stores
and acknowledges, and neither fuses nor detects. The camera is ready when it tells systemd so: source, encoder and
networks are open, threads run. The first start is cold: the cache is empty, and nothing is known of encoders and
networks on this board. The camera is watched from outside, and its books come from its own ledger.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import av
import numpy as np
import paho.mqtt.client as mqtt
import psutil
import typer
from rich.progress import track
from rich.table import Table

from benchmarks import _report
from benchmarks.network_cost import parse_sizes
from scene_edge.broker import LocalBroker
from scene_edge.codec.errors import ConfigError, RunError
from scene_edge.codec.media import frame_of
from scene_edge.codec.topics import Topics
from scene_edge.edge.sources.street import Street

EXAMPLE = "Example: python -m benchmarks.soak --minutes 20 --size 960x540 --json soak.json --plot docs/soak.png"

CAMERA = "soak"
PATIENCE_S = 60.0
"""For a process to say that it is ready, and for its end."""

STREET_S = 20
FPS = 30

WATCHED = ("rss_mb", "descriptors", "threads", "spool_mb")
SERVER = """
broker: {{url: "mqtt://127.0.0.1:{port}"}}
web: {{port: 0}}
database: "sqlite:///{folder}/results.db"
fusion: {{enabled: false}}
analytics: {{detector: "off", actions: []}}
"""

OURS = {"PYTHONPATH": str(_report.REPOSITORY)}

console = _report.console()


@dataclass
class Books:
    """What the camera says of itself, as a server hears it."""

    ledgers: queue.SimpleQueue[dict[str, Any]] = field(default_factory=queue.SimpleQueue)
    first_video: queue.SimpleQueue[float] = field(default_factory=queue.SimpleQueue)

    def latest(self) -> dict[str, Any] | None:
        found = None
        while not self.ledgers.empty():
            found = self.ledgers.get()
        return found


@contextmanager
def listening(port: int) -> Iterator[Books]:
    """The camera's ledger and the moment of each of its video messages."""
    books, topics = Books(), Topics(CAMERA)

    def hear(_client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        if message.topic == topics.ledger:
            books.ledgers.put(json.loads(message.payload))
        elif books.first_video.empty():
            books.first_video.put(time.monotonic())

    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="soak-listener")
    client.on_message = hear
    client.connect("127.0.0.1", port)
    client.subscribe([(topics.ledger, 0), (topics.video, 0)])
    client.loop_start()
    try:
        yield books
    finally:
        client.loop_stop()
        client.disconnect()


def stored_street(file: Path, width: int, height: int) -> None:
    """The rendered street as H.264 of good quality."""
    street = Street(width, height, float(FPS), seed=1)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "18", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in track(range(STREET_S * FPS), "street", console=console, transient=True):
            frame = frame_of(street.frame(index))
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@dataclass
class Running:
    """A camera, the time from the start of its process to its word that it is ready, and the CPU time of that."""

    process: psutil.Popen
    ready_s: float
    ready_cpu_s: float


@contextmanager
def camera(folder: Path, settings: Sequence[str]) -> Iterator[Running]:
    """A camera that is ready. Raises RunError with its last words if it never is."""
    address = folder / "notify"
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified, (folder / "camera.log").open("ab") as log:
        notified.bind(str(address))
        notified.settimeout(PATIENCE_S)
        options = [part for item in settings for part in ("--set", item)]
        started = time.monotonic()
        process = psutil.Popen(
            [sys.executable, "-m", "scene_edge", "start", "--profile", "cpu", "--camera", CAMERA, *options],
            cwd=_report.REPOSITORY,
            env={**os.environ, **OURS, "XDG_CACHE_HOME": str(folder / "cache"), "NOTIFY_SOCKET": str(address)},
            stdout=log,
            stderr=log,
        )
        try:
            try:
                while b"READY=1" not in notified.recv(1024):
                    pass
            except TimeoutError as error:
                raise RunError("the camera was never ready", got=last_words(folder / "camera.log")) from error
            times = process.cpu_times()
            yield Running(process, time.monotonic() - started, times.user + times.system)
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE_S)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def server(folder: Path, port: int) -> Iterator[None]:
    """What acknowledges. Cameras wait for it, so nobody else has to."""
    (folder / "server.yaml").write_text(SERVER.format(port=port, folder=folder))
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "scene_edge", "serve", "--config", str(folder / "server.yaml")],
            cwd=_report.REPOSITORY,
            env={**os.environ, **OURS},
            stdout=log,
            stderr=log,
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "nothing was said"


def look(process: psutil.Process, spool: Path) -> dict[str, float]:
    """The camera from outside, now. Raises RunError if it is gone."""
    try:
        with process.oneshot():
            times = process.cpu_times()
            return {
                "rss_mb": process.memory_info().rss / 1e6,
                "descriptors": process.num_fds(),
                "threads": process.num_threads(),
                "cpu_s": times.user + times.system,
                "spool_mb": sum(path.stat().st_size for path in spool.iterdir()) / 1e6,
            }
    except psutil.NoSuchProcess as error:
        raise RunError("the camera ended", got=last_words(spool.parent / "camera.log")) from error


def trend(samples: Sequence[Mapping[str, float]], name: str, warm_up_s: float) -> dict[str, float]:
    """After the warm-up: first and last fifth (medians), the largest, and the least-squares slope an hour.

    Raises ConfigError where fewer than ten samples are left.
    """
    kept = [(sample["s"], sample[name]) for sample in samples if sample["s"] >= warm_up_s]
    if len(kept) < 10:
        raise ConfigError("too few samples behind the warm-up", got=len(kept), hint="Run for longer.")
    seconds, values = np.array(kept).T
    fifth = len(kept) // 5
    slope = float(np.polyfit(seconds, values, 1)[0]) * 3600
    return {
        "first": round(float(np.median(values[:fifth])), 2),
        "last": round(float(np.median(values[-fifth:])), 2),
        "largest": round(float(values.max()), 2),
        "slope_an_hour": round(slope, 2),
    }


def starts(folder: Path, settings: Sequence[str], books: Books, count: int) -> list[dict[str, float]]:
    """Seconds from the start of the process to ready, and to its first video at the broker. The first is cold."""
    found = []
    for _ in track(range(count), "starts", console=console, transient=True):
        while not books.first_video.empty():
            books.first_video.get()
        began = time.monotonic()
        with camera(folder, settings) as running:
            video_s = books.first_video.get(timeout=PATIENCE_S) - began
            spent = {"ready_s": running.ready_s, "ready_cpu_s": running.ready_cpu_s, "first_video_s": video_s}
            found.append({name: round(value, 2) for name, value in spent.items()})
    return found


def soak(
    folder: Path, settings: Sequence[str], books: Books, minutes: float, every_s: float
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Samples of a camera that runs for so long, and its last ledger."""
    samples, ledger = [], {}
    with camera(folder, settings) as running:
        began = time.monotonic()
        for turn in track(range(round(minutes * 60 / every_s)), "soak", console=console, transient=True):
            time.sleep(max(0.0, began + (turn + 1) * every_s - time.monotonic()))
            samples.append({"s": round(time.monotonic() - began, 1), **look(running.process, folder / "spool")})
            ledger = books.latest() or ledger
    return samples, ledger


def show(report: Mapping[str, Any]) -> None:
    for name, found in (("cold", report["starts"][:1]), ("warm", report["starts"][1:])):
        if not found:
            continue
        ready, cpu, video = (
            statistics.median(item[key] for item in found) for key in ("ready_s", "ready_cpu_s", "first_video_s")
        )
        worst = max(item["ready_s"] for item in found)
        console.print(
            f"{name}: ready {ready:.2f} s after its start (worst of {len(found)}: {worst:.2f}; CPU {cpu:.2f} s), first "
            f"video at the broker after {video:.2f} s",
            highlight=False,
        )
    if not report["samples"]:
        return
    table = Table("", "first fifth", "last fifth", "largest", "slope an hour", title="after the warm-up")
    for name in WATCHED:
        row = report["trends"][name]
        table.add_row(name, *(f"{row[key]:.2f}" for key in ("first", "last", "largest", "slope_an_hour")))
    console.print(table)
    books = report["ledger"]
    keys = ("captured", "committed", "spooled", "dropped", "connections", "resent", "faults")
    console.print(", ".join(f"{key} {books.get(key)}" for key in keys), highlight=False)
    console.print(f"CPU {report['cpu_share']:.0%} of a core; stages, ms: {books.get('stage_ms')}", highlight=False)


def draw(samples: Sequence[Mapping[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(WATCHED), figsize=(3.2 * len(WATCHED), 2.8), layout="constrained")
    for axis, name in zip(axes, WATCHED, strict=True):
        axis.plot([sample["s"] / 60 for sample in samples], [sample[name] for sample in samples], linewidth=1)
        axis.set(title=name, xlabel="minutes", ylim=(0, None))
        axis.grid(visible=True, alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def run(
    minutes: Annotated[float, typer.Option(min=0, help="How long the camera runs; 0: starts alone.")] = 20.0,
    warm_up_s: Annotated[float, typer.Option(min=0, help="First seconds that no trend counts.")] = 120.0,
    every_s: Annotated[float, typer.Option(min=0.5, help="Seconds between samples.")] = 5.0,
    restarts: Annotated[int, typer.Option(min=0, help="Starts that are timed before, of which the first is cold.")] = 6,
    source: Annotated[str | None, typer.Option(help="Of a camera; default: a rendered street's file.")] = None,
    size: Annotated[str, typer.Option(help="Of the pictures, where the source can choose.")] = "640x360",
    crf: Annotated[int, typer.Option(min=0, max=51, help="Where video is good, SMC does not run: see 26.")] = 40,
    extra: Annotated[list[str] | None, typer.Option("--set", help="Any setting of the camera; repeatable.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the samples into this PNG.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
) -> None:
    """Run a camera for minutes at 30 frames/s and see what grows."""
    report = _report.envelope("soak")
    ((width, height),) = parse_sizes(size)
    with tempfile.TemporaryDirectory(prefix="scene-edge-soak-") as name:
        folder = Path(name)
        (folder / "spool").mkdir()
        with LocalBroker(folder) as broker, server(folder, broker.port), listening(broker.port) as books:
            if source is None:
                stored_street(folder / "street.mp4", width, height)
                source = str(folder / "street.mp4")
            settings = [f"source.url={source}", f"source.width={width}", f"source.height={height}", f"source.fps={FPS}"]
            settings += ["source.pace=realtime", "source.loop=true", f"video.crf={crf}"]
            settings += [f"mqtt.broker=mqtt://127.0.0.1:{broker.port}", f"spool.path={folder / 'spool'}"]
            settings += extra or []
            report["starts"] = starts(folder, settings, books, restarts)
            samples, ledger = soak(folder, settings, books, minutes, every_s) if minutes else ([], {})
    report |= {"size": [width, height], "minutes": minutes, "samples": samples, "ledger": ledger}
    if samples:
        report["trends"] = {watched: trend(samples, watched, warm_up_s) for watched in WATCHED}
        spent = samples[-1]["cpu_s"] - samples[0]["cpu_s"]
        report["cpu_share"] = round(spent / (samples[-1]["s"] - samples[0]["s"]), 3)
    show(report)
    for key in ("machine", "command"):
        console.print(f"{key}: {report[key]}", highlight=False, soft_wrap=True)
    if plot is not None and samples:
        draw(samples, plot)
    _report.write_json(json_file, report)


def main() -> None:
    _report.command(run, EXAMPLE)


if __name__ == "__main__":
    main()
