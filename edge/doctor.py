"""Looks a camera over: devices, clock, encoders, engines, bundles, broker. Each finding names the next command."""

from __future__ import annotations

import contextlib
import grp
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scene_edge.codec.bundle import Bundle, shipped_bundles
from scene_edge.codec.errors import SceneEdgeError
from scene_edge.codec.planes import aligned
from scene_edge.codec.topics import Topics
from scene_edge.edge.board import board_model, clock_is_synchronised, detect_profile, read_text
from scene_edge.edge.choice import AUTO, choice_for, usual_size
from scene_edge.edge.config import CameraConfig, NetworkConfig, in_the_clear
from scene_edge.edge.encoders import EncoderSettings
from scene_edge.edge.encoders.choose import VerdictCache
from scene_edge.edge.encoders.trial import TRIAL_GOP, run_trial
from scene_edge.edge.networks import open_bundle
from scene_edge.edge.transport import Listener, Message, PahoTransport
from scene_edge.inference.session import Session, available_engines, open_session, zero_inputs

Level = Literal["ok", "warn", "fail"]

LEAST_CMA_FREE_MB = 32
LEAST_DISK_FREE_MB = 200
TRIAL_SIZE = 540, 960
TRIAL_RUNS = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """`code` is stable, for fleets; `command` is what to type next, empty where nothing has to be done."""

    code: str
    level: Level
    sentence: str
    command: str = ""


def examine(config: CameraConfig) -> Iterator[Finding]:
    """Findings as they are made; trial encodes and inferences take some seconds. Nothing raises."""
    checks: list[Callable[[CameraConfig], Iterator[Finding]]] = [
        _board,
        _devices,
        _memory,
        _throttling,
        _clock,
        _disk,
        _spool,
        _encoders,
        _engines,
        _bundles,
        _broker,
    ]
    for check in checks:
        yield from check(config)


def exit_status(findings: list[Finding]) -> int:
    """1 if anything failed, for fleets; warnings do not count."""
    return int(any(finding.level == "fail" for finding in findings))


def _board(config: CameraConfig) -> Iterator[Finding]:
    detected = detect_profile()
    yield Finding("BOARD", "ok", f"{board_model()}; profile auto means {detected} here.")
    if config.profile != detected:
        yield Finding(
            "PROFILE", "warn", f"Profile {config.profile} is configured.", f"scene-edge start --profile {detected}"
        )


def _devices(config: CameraConfig) -> Iterator[Finding]:
    cameras = sorted(Path("/dev").glob("video*"))
    wanted = config.source.url.startswith(("v4l2:", "/dev/video", "picamera2:"))
    if cameras:
        readable = [path for path in cameras if os.access(path, os.R_OK | os.W_OK)]
        yield Finding("VIDEO_DEVICES", "ok", f"{len(cameras)} video devices, {len(readable)} of them usable by us.")
        if len(readable) < len(cameras):
            yield _group_finding("video", "VIDEO_GROUP")
    else:
        yield Finding(
            "VIDEO_DEVICES",
            "fail" if wanted else "ok",
            "There is no /dev/video*; files and network cameras need none.",
            "v4l2-ctl --list-devices" if wanted else "",
        )
    nodes = sorted(Path("/dev/dri").glob("renderD*"))
    if nodes and not os.access(nodes[0], os.R_OK | os.W_OK):
        yield _group_finding("render", "RENDER_GROUP")
    elif config.profile == "intel":
        level: Level = "ok" if nodes else "fail"
        yield Finding("RENDER_NODE", level, f"Render nodes: {len(nodes)}.", "" if nodes else "ls -l /dev/dri")


def _group_finding(group: str, code: str) -> Finding:
    member = False
    with contextlib.suppress(KeyError):
        member = grp.getgrnam(group).gr_gid in os.getgroups()
    if member:
        return Finding(code, "warn", f"We are in group {group}, and still may not use the device.", "ls -l /dev")
    return Finding(code, "warn", f"We are not in group {group}.", f"sudo usermod -aG {group} $USER")


def _memory(_config: CameraConfig) -> Iterator[Finding]:
    values = dict(line.split(":", 1) for line in read_text("/proc/meminfo").splitlines() if ":" in line)
    free_kb = values.get("CmaFree", "").split()
    if values.get("CmaTotal", "0 kB").split()[0] == "0" or not free_kb:
        return
    free_mb = int(free_kb[0]) // 1024
    level: Level = "ok" if free_mb >= LEAST_CMA_FREE_MB else "warn"
    yield Finding(
        "CMA", level, f"{free_mb} MB of contiguous memory are free.", "" if level == "ok" else "cat /proc/meminfo"
    )


def _throttling(_config: CameraConfig) -> Iterator[Finding]:
    tool = shutil.which("vcgencmd")
    if tool is None:
        return
    answer = subprocess.run([tool, "get_throttled"], capture_output=True, text=True, timeout=5, check=False).stdout
    state = answer.strip().partition("=")[2]
    if state in ("0x0", ""):
        yield Finding("THROTTLING", "ok", "The processor is not throttled.")
    else:
        yield Finding("THROTTLING", "warn", f"Throttled or under-voltage: {state}.", "vcgencmd measure_temp")


def _clock(_config: CameraConfig) -> Iterator[Finding]:
    if clock_is_synchronised():
        yield Finding("CLOCK", "ok", "The clock is disciplined by NTP or PTP.")
    else:
        yield Finding(
            "CLOCK", "warn", "Nobody disciplines the clock: latencies across machines are guesses.", "timedatectl"
        )


def _disk(_config: CameraConfig) -> Iterator[Finding]:
    free_mb = shutil.disk_usage(tempfile.gettempdir()).free // 1_000_000
    if free_mb >= LEAST_DISK_FREE_MB:
        yield Finding("DISK", "ok", f"{free_mb} MB of disk are free.")
    else:
        yield Finding("DISK", "warn", f"Only {free_mb} MB of disk are free.", "df -h")


def _spool(config: CameraConfig) -> Iterator[Finding]:
    folder = config.spool.path
    if folder is None:
        yield Finding("SPOOL", "ok", "Records wait in memory and are lost with the process; spool.path keeps them.")
        return
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free_mb = shutil.disk_usage(place).free // 1_000_000
    if not (place.is_dir() and os.access(place, os.W_OK)):
        sentence = f"{place} cannot be written, so records will wait in memory."
        yield Finding("SPOOL", "warn", sentence, f'sudo install -d -o "$USER" {folder}')
    elif free_mb < config.spool.max_mb:
        sentence = f"spool.max_mb is {config.spool.max_mb:g}, and {free_mb} MB are free in {place}."
        yield Finding("SPOOL", "warn", sentence, f"df -h {place}")
    else:
        yield Finding("SPOOL", "ok", f"Records outlive the process in {folder}.")


def _encoders(config: CameraConfig) -> Iterator[Finding]:
    """Always a fresh trial: somebody who asks the doctor has just changed something."""
    names = config.video.candidates if config.video.encoder == "auto" else (config.video.encoder,)
    settings = EncoderSettings(
        width=config.video.width or 1280,
        height=720,
        fps=30,
        gop=TRIAL_GOP,
        crf=config.video.crf,
        bitrate_kbps=config.video.bitrate_kbps,
        preset=config.video.preset,
        tune=config.video.tune,
    )
    cache, passed = VerdictCache(), False
    for name in names:
        verdict = run_trial(name, settings)
        cache.put(settings, verdict)
        if verdict.passed:
            yield Finding("ENCODER", "ok", f"{name} passes a trial encode of 30 frames.")
            passed = True
        else:
            yield Finding("ENCODER_FAILS", "warn", f"{name}: {verdict.reason}.", "scene-edge doctor --json")
    if not passed:
        yield Finding(
            "NO_ENCODER", "fail", "No configured encoder works.", "scene-edge start --set video.encoder=libx264"
        )


def _engines(config: CameraConfig) -> Iterator[Finding]:
    for engine, state in available_engines().items():
        wanted = engine in (*config.scene.named_engines, *config.semantics.named_engines)
        absent = state.startswith("absent")
        level: Level = "warn" if absent and engine == config.scene.named_engines[0] else "ok"
        if wanted or not absent:
            command = f"pip install 'scene-edge[{engine}]'" if level == "warn" and engine != "tensorrt" else ""
            yield Finding("ENGINE", level, f"{engine}: {state}.", command)


def _bundles(config: CameraConfig) -> Iterator[Finding]:
    """Digests and signature, then a real inference on each engine against the bundle's golden output."""
    for network in (config.scene, config.semantics):
        if not network.enabled:
            continue
        try:
            bundle = open_bundle(config, network.bundle)
        except SceneEdgeError as error:
            shipped = ", ".join(shipped_bundles()) or "none"
            yield Finding(
                "BUNDLE", "fail", f"{error} (shipped: {shipped})", f"scene-edge models verify {network.bundle}"
            )
            continue
        signed = "signed" if bundle.signed else "digests good, no key configured"
        yield Finding("BUNDLE", "ok", f"{bundle.name} {bundle.version} {bundle.digest.hex()[:16]}: {signed}.")
        yield from _inferences(bundle, network)
        yield _choice(config, network, bundle)


def _choice(config: CameraConfig, network: NetworkConfig, bundle: Bundle) -> Finding:
    """Which engine `bench` chose for this board, and why; or what serves instead."""
    width, height = usual_size(config)
    order = ", ".join(network.named_engines)
    if network.engines[0] != AUTO:
        return Finding("ENGINE_CHOICE", "ok", f"{bundle.name}: the settings give the order of engines: {order}.")
    chosen = choice_for(network, bundle, width, height)
    if chosen is None:
        sentence = f"{bundle.name}: nobody has measured which engine is fastest at {width}x{height}; in order: {order}."
        return Finding("ENGINE_CHOICE", "ok", sentence, f"scene-edge bench --profile {config.profile}")
    sentence = f"{bundle.name} runs on {chosen.engine} {chosen.precision} at {width}x{height}: {chosen.why}."
    return Finding("ENGINE_CHOICE", "ok", sentence)


def _inferences(bundle: Bundle, network: NetworkConfig) -> Iterator[Finding]:
    for position, engine in enumerate(network.named_engines):
        for name, graph in bundle.graphs.items():
            if bundle.kind == "smc" and name == "decoder":
                continue  # the server's half
            any_size = any(None in spec.shape for spec in graph.inputs)
            rows, columns = (aligned(side) // 4 for side in TRIAL_SIZE)
            try:
                session = open_session(
                    bundle,
                    name,
                    height=rows if any_size else None,
                    width=columns if any_size else None,
                    prefer=(engine,),
                    precision=network.precision,
                    threads=network.threads,
                )
                mean_ms = _mean_ms(session)
                session.close()
            except SceneEdgeError as error:
                level: Level = "warn" if position == 0 else "ok"
                yield Finding("INFERENCE", level, f"{bundle.name}/{name} does not run on {engine}: {error}")
                continue
            where = f"{engine} {session.precision} {session.device}"
            size = f" for {TRIAL_SIZE[1]}x{TRIAL_SIZE[0]}" if any_size else ""
            yield Finding("INFERENCE", "ok", f"{bundle.name}/{name} runs on {where}: {mean_ms:.1f} ms{size}.")


def _mean_ms(session: Session) -> float:
    zeros = zero_inputs(session)
    session.run(zeros)
    started = time.perf_counter()
    for _ in range(TRIAL_RUNS):
        session.run(zeros)
    return (time.perf_counter() - started) * 1000 / TRIAL_RUNS


def _broker(config: CameraConfig) -> Iterator[Finding]:
    transport = PahoTransport(config.mqtt, f"{config.camera[:50]}-doctor")
    nothing = Listener(lambda _topic, _payload: None, lambda: None, lambda _reason: None)
    try:
        # The will goes to a topic that an access list grants this camera; a goodbye takes it back.
        transport.connect(Message(Topics(config.camera).ledger, b"", qos=0), [], nothing)
    except SceneEdgeError as error:
        yield Finding("BROKER", "fail", str(error), f"mosquitto_sub -L {config.mqtt.broker}/scene/1/# -C 1")
        return
    finally:
        transport.close()
    yield Finding("BROKER", "ok", f"{config.mqtt.broker} accepts us.")
    if in_the_clear(config.mqtt.broker):
        sentence = f"{config.mqtt.broker}: pictures cross the network in the clear, and anybody may send in our name."
        yield Finding("BROKER_IN_THE_CLEAR", "warn", sentence, f"scene-edge fleet request {config.camera}")
