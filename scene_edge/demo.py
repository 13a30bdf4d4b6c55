"""`scene-edge demo`: camera, broker, server and page as child processes here, watched until all is committed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from scene_edge.broker import LocalBroker, end_process, free_port
from scene_edge.codec.errors import RunError, SceneEdgeError, UsageError

CAMERA = "demo"
STREET_SECONDS = 30.0
STREET_FPS = 15.0
"""Half of a camera's usual rate, so that two slow cores can play every part at once."""

LIVE_FPS = 30.0
POLL_S = 0.5
SERVER_START_S = 240.0
PATIENCE = ("source.pace=steady", "mqtt.drain_s=600")
"""Settings with which a slow machine takes longer, and loses nothing."""

THIN = "video.crf=40"
"""A thin uplink, for which all this is made: at the cameras' default quality the server has nothing to mend."""

INTERRUPTED = 130
SETTLE_S = 60.0
"""How long after the camera's end the server may take to commit what is still on its way."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is played: the source, its rate, how many frames of it (None: to its end), and the camera's settings."""

    source: str
    fps: float
    frames: int | None
    settings: tuple[str, ...]


def plan(source: str | None, seconds: float | None) -> Plan:
    """A street of STREET_SECONDS without a source; a file is played once. Raises SourceError for what is no video."""
    if source is None or source.startswith("street:"):
        frames = math.ceil((seconds or STREET_SECONDS) * STREET_FPS)
        size = ("source.width=960", "source.height=540", f"source.fps={STREET_FPS:g}", f"video.gop={STREET_FPS:g}")
        return Plan(source or "street:", STREET_FPS, frames, (*PATIENCE, *size, THIN))
    if "://" in source or source.startswith(("v4l2:", "picamera2:", "testsrc:", "/dev/video")):
        if seconds is None:
            raise UsageError("a live source has no end", got=source, hint="Say how long: --seconds 30")
        return Plan(source, LIVE_FPS, math.ceil(seconds * LIVE_FPS), (f"source.fps={LIVE_FPS:g}", THIN))
    from scene_edge.codec.media import probe

    info = probe(source)
    part = None if seconds is None else max(1, math.ceil(seconds * info.fps))
    return Plan(str(Path(source).absolute()), info.fps, part, (*PATIENCE, THIN))


@dataclass(slots=True)
class Child:
    """One of our own commands running beside us, its words in a log file."""

    name: str
    log: Path
    process: subprocess.Popen[bytes] | None = None
    rss_mb: float = 0.0

    def start(self, *arguments: str) -> None:
        with self.log.open("ab") as written:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "scene_edge", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=written,
                start_new_session=True,
            )

    def watch(self) -> int | None:
        """Exit status, None while it runs; notes the largest resident size on the way."""
        if self.process is None:
            return None
        with contextlib.suppress(OSError, IndexError, ValueError):
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
            self.rss_mb = max(self.rss_mb, pages * os.sysconf("SC_PAGESIZE") / 1e6)
        return self.process.poll()

    def failure(self, what: str) -> SceneEdgeError:
        """Its end as our error: bad input stays bad input."""
        status = self.process.poll() if self.process else None
        kind = UsageError if status == UsageError.exit_code else RunError
        return kind(f"{what}: {self.last_words()}")

    def last_words(self) -> str:
        """The line that says why: the last one that names an error, else the last one."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        told = [line for line in lines if "error" in line.lower()]
        return (told or lines or ["it said nothing"])[-1][:300].removeprefix("error: ")


@dataclass(slots=True)
class Demo:
    """The running demo. `view` is the camera's entry of GET /api/cameras as it was last read."""

    plan: Plan
    folder: Path
    server: Child
    camera: Child
    broker: LocalBroker
    port: int = field(default_factory=free_port)
    view: dict[str, Any] = field(default_factory=dict)
    interrupted: bool = False
    """Set by a signal, obeyed by `pause`: an exception in the middle of starting a child would lose that child."""

    @property
    def page(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @classmethod
    def prepare(cls, plan: Plan, folder: Path) -> Demo:
        server, camera = Child("server", folder / "server.log"), Child("camera", folder / "camera.log")
        return cls(plan, folder, server, camera, LocalBroker(folder))

    def start(self) -> None:
        """Broker, then server, then - once the server is ready - the camera. Raises RunError with the reason."""
        self.broker.start()
        database = f"sqlite:///{self.folder / 'demo.db'}"
        listen = f"127.0.0.1:{self.port}"
        self.server.start("serve", "--broker", self.broker.url, "--listen", listen, "--database", database)
        deadline = time.monotonic() + SERVER_START_S
        while self._get("healthz") is None:
            if self.server.watch() is not None:
                raise self.server.failure("the server did not start")
            if time.monotonic() > deadline:
                raise RunError(f"the server was not ready within {SERVER_START_S:g} s: {self.server.last_words()}")
            self.pause(0.1)
        options = [part for setting in self.plan.settings for part in ("--set", setting)]
        if self.plan.frames is not None:
            options += ["--frames", str(self.plan.frames)]
        self.pause(0)
        self.camera.start(
            "start", "--profile", "auto", "--source", self.plan.source, "--camera", CAMERA,
            "--broker", self.broker.url, *options,
        )  # fmt: skip

    def run(self) -> Iterator[None]:
        """Yields after every look at the server, until every captured frame is committed. Raises RunError."""
        ended_at: float | None = None
        while True:
            self.look()
            yield
            if self.server.watch() is not None:
                raise self.server.failure("the server ended")
            status = self.camera.watch()
            if status is not None and ended_at is None:
                if status:
                    raise self.camera.failure("the camera failed")
                ended_at = time.monotonic()
            if ended_at is not None:
                if self.settled:
                    return
                if time.monotonic() - ended_at > SETTLE_S:
                    ledger = self.view.get("ledger")
                    raise RunError(f"not everything was committed within {SETTLE_S:g} s of the end: {ledger}")
            self.pause(POLL_S)

    def pause(self, seconds: float) -> None:
        """Wait a little. Raises KeyboardInterrupt when somebody wants the demo to end."""
        until = time.monotonic() + seconds
        while not self.interrupted:
            left_s = until - time.monotonic()
            if left_s <= 0:
                return
            time.sleep(min(left_s, 0.1))
        raise KeyboardInterrupt

    def interrupt(self, *_: object) -> None:
        """As a signal handler: end at the next pause, and with it every child."""
        self.interrupted = True

    def look(self) -> None:
        """Read the camera's state from the server."""
        cameras = self._get("api/cameras")
        if isinstance(cameras, list):
            self.view = next((entry for entry in cameras if entry.get("camera") == CAMERA), self.view)

    def stop(self) -> None:
        """Camera first, so that it can say goodbye; then server, then broker."""
        for child in (self.camera, self.server):
            end_process(child.process)
        self.broker.stop()

    @property
    def settled(self) -> bool:
        """The ledger's last word: nothing under way, and the server has committed as much as the camera counts."""
        ledger = self.view.get("ledger", {})
        captured, committed = ledger.get("captured"), ledger.get("committed")
        if not captured or ledger.get("spooled") != 0:
            return False
        at_server = self.view.get("server", {}).get("committed") or 0
        return bool(captured == committed + sum(ledger.get("dropped", {}).values()) and at_server >= committed)

    def report(self) -> dict[str, Any]:
        """What --json writes. Rates are means over the played time: bytes on the wire / (frames / frame rate)."""
        view = self.view
        ledger = view.get("ledger", {})
        captured = ledger.get("captured") or 0
        seconds = captured / (view.get("fps") or self.plan.fps)
        sent = view.get("bytes", {})
        kbps = {
            name: round(sent.get(name, 0) * 8 / 1000 / seconds, 2) if seconds else 0.0
            for name in ("video", "semantic", "sei", "overhead")
        }
        return {
            "source": self.plan.source,
            "broker": self.broker.kind,
            "seconds": round(seconds, 3),
            "frames": {
                "captured": captured,
                "committed": ledger.get("committed") or 0,
                "joined": view.get("match", {}).get("matched", 0),
                "dropped": ledger.get("dropped", {}),
            },
            "match_rate": view.get("match_rate"),
            "kbps": {**kbps, "total": round(sum(kbps.values()), 2)},
            "latency_ms": view.get("latency_ms", {"p50": None, "p95": None, "p99": None}),
            "tracks": view.get("tracks_seen", 0),
            "actions": view.get("actions", []),
            "encoder": view.get("encoder"),
            "engine": {part: name for part, name in view.get("engine", {}).items() if name},
            "degraded": view.get("degraded", []),
            "rss_mb": {
                "camera": round(max(self.camera.rss_mb, view.get("rss_mb", {}).get("camera") or 0), 1),
                "server": round(self.server.rss_mb, 1),
            },
            "stage_ms": view.get("stage_ms", {}),
        }

    def _get(self, path: str) -> Any:
        try:
            with urllib.request.urlopen(self.page + path, timeout=5) as answer:
                body = answer.read()
        except (OSError, urllib.error.URLError):
            return None
        with contextlib.suppress(ValueError):
            return json.loads(body)
        return body.decode(errors="replace")


def panel(demo: Demo) -> Panel:
    """The terminal's view of the running demo."""
    view, ledger = demo.view, demo.view.get("ledger", {})
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", justify="right")
    rows.add_column()

    def number(value: object, unit: str = "") -> str:
        return f"{value:,.1f}{unit}" if isinstance(value, float) else "-" if value is None else f"{value}{unit}"

    total = f" of {demo.plan.frames}" if demo.plan.frames else ""
    dropped = ", ".join(f"{count} {why}" for why, count in ledger.get("dropped", {}).items()) or "none"
    rows.add_row(
        "frames",
        f"{number(ledger.get('captured'))}{total} captured, [b]{number(ledger.get('committed'))}[/b] committed, "
        f"{number(ledger.get('spooled'))} under way, dropped: {dropped}",
    )
    rate = view.get("match_rate")
    rows.add_row("match rate", "-" if rate is None else f"{100 * rate:.1f} %")
    kbps = view.get("kbps", {})
    names = ("video", "semantic", "sei", "overhead", "total")
    rows.add_row("kbit/s", "  ".join(f"{name} {number(kbps.get(name))}" for name in names))
    latency = view.get("latency_ms", {})
    rows.add_row("latency", "  ".join(f"{name} {number(latency.get(name), ' ms')}" for name in ("p50", "p95", "p99")))
    actions = view.get("actions", [])
    latest = f"{actions[0]['label']} ({actions[0]['score']:.2f}, {actions[0]['model']})" if actions else "-"
    rows.add_row("seen", f"{view.get('tracks_seen', 0)} tracks; latest action: {latest}")
    engine = ", ".join(f"{part} {name}" for part, name in view.get("engine", {}).items() if name) or "-"
    rows.add_row("running on", f"encoder {view.get('encoder') or '-'}; {engine}")
    for reason in view.get("degraded", []):
        rows.add_row("degraded", Text(str(reason), style="yellow"))
    source = "the rendered street" if demo.plan.source.startswith("street:") else demo.plan.source
    status = view.get("status") or "starting"
    return Panel(Group(rows, Text(f"page: {demo.page}", style="cyan")), title=f"scene-edge demo: {source} ({status})")


def watch(demo: Demo, console: Console) -> None:
    """Run to the end under a live panel, or with one line every few seconds where the output is no terminal."""
    if console.is_terminal:
        with Live(panel(demo), console=console, refresh_per_second=4) as live:
            for _ in demo.run():
                live.update(panel(demo))
        return
    said_at = 0.0
    for _ in demo.run():
        if time.monotonic() - said_at >= 5:
            said_at = time.monotonic()
            ledger = demo.view.get("ledger", {})
            if ledger.get("captured") is None:
                console.print("the camera opens its networks", highlight=False)
            else:
                console.print(f"captured {ledger['captured']}, committed {ledger['committed']}", highlight=False)


def summary(report: dict[str, Any]) -> str:
    frames, kbps, latency = report["frames"], report["kbps"], report["latency_ms"]
    rate = report["match_rate"]
    matched = "unknown" if rate is None else f"{100 * rate:.1f} %"
    return (
        f"{frames['committed']} of {frames['captured']} frames committed, match rate {matched}; "
        f"{kbps['total']:.1f} kbit/s (video {kbps['video']:.1f}, "
        f"semantic {kbps['semantic']:.1f}, SEI {kbps['sei']:.1f}, overhead {kbps['overhead']:.1f}); "
        f"latency p50 {latency.get('p50')} ms; {report['tracks']} tracks, {len(report['actions'])} actions"
    )


def write_report(report: dict[str, Any], path: Path | None) -> None:
    """As JSON to the file; `-` is standard output."""
    text = json.dumps(report, indent=2)
    if path is None:
        return
    if str(path) == "-":
        print(text)
        return
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}", got=error.strerror) from error


def open_page(page: str) -> bool:
    """Show the page where there is a display."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    return webbrowser.open(page)


def demo(
    source: Annotated[
        str | None, typer.Option(help="A video file or a source URL. Default: a rendered street.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Play so much of it. Default: 30 of the street, all of a file.")
    ] = None,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Do not open the page, and end when all is done.")
    ] = False,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the measured figures to this file; - is standard output.")
    ] = None,
) -> None:
    """Camera, broker, server and page on this machine, with every byte counted.

    Example: scene-edge demo --source street.mp4 --no-browser --json demo.json
    """
    if json_path is not None and not json_path.absolute().parent.is_dir():
        raise UsageError(f"no such folder for --json: {json_path.parent}")
    if source is not None and source.startswith("file:"):
        source = source.removeprefix("file://").removeprefix("file:")
    to_stdout = str(json_path) == "-"
    console = Console(stderr=to_stdout)
    with tempfile.TemporaryDirectory(prefix="scene-edge-demo-") as folder:
        running = Demo.prepare(plan(source, seconds), Path(folder))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, running.interrupt)
        try:
            console.print(f"starting {running.broker.kind}, server and camera; page: {running.page}", highlight=False)
            running.start()
            shown = not no_browser and open_page(running.page)
            watch(running, console)
            report = running.report()
            write_report(report, json_path)
            console.print(summary(report), highlight=False, soft_wrap=True)
            if shown and console.is_terminal:
                console.print("the page stays until Ctrl-C")
                with contextlib.suppress(KeyboardInterrupt):
                    while running.server.watch() is None:
                        running.pause(POLL_S)
        except KeyboardInterrupt:
            console.print("stopped")
            raise typer.Exit(INTERRUPTED) from None
        finally:
            running.stop()
