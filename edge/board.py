"""Which board this is, and what identifies its drivers: for the profile `auto` and the cache of trial encodes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_DRIVER_FILES = ("/proc/driver/nvidia/version", "/etc/nv_tegra_release", "/sys/module/i915/srcversion")


def board_model() -> str:
    """The board's name from the device tree, else the processor's, else the architecture."""
    model = read_text("/proc/device-tree/model").strip("\0 \n")
    if model:
        return model
    for line in read_text("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def detect_profile(model: str | None = None, render_nodes: list[str] | None = None) -> str:
    """The profile of this board, or of the one described.

    >>> detect_profile("Raspberry Pi 5 Model B Rev 1.0", [])
    'rpi5'
    """
    model = board_model() if model is None else model
    nodes = sorted(str(path) for path in Path("/dev/dri").glob("renderD*")) if render_nodes is None else render_nodes
    if "Raspberry Pi 5" in model:
        return "rpi5"
    if "Raspberry Pi" in model:
        return "rpi4"
    if any(word in model for word in ("Jetson", "Orin", "NVIDIA")):
        return "jetson"
    if "Intel" in model and nodes:
        return "intel"
    return "cpu"


def fingerprint() -> dict[str, str]:
    """Board, kernel, drivers and package versions: where these are unchanged, a trial encode's verdict still holds."""
    marks = {
        "board": board_model(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cpu": _cpu_features(),
        "identity": _identity(),
        "render": ",".join(sorted(os.listdir("/dev/dri"))) if Path("/dev/dri").is_dir() else "",
    }
    for path in _DRIVER_FILES:
        marks[path] = read_text(path).strip()
    for package in ("av", "picamera2", "scene-edge"):
        try:
            marks[package] = version(package)
        except PackageNotFoundError:
            marks[package] = ""
    return marks


def _cpu_features() -> str:
    """A digest of what the processor can do: kernels are chosen, and round, by it. Empty where nobody says."""
    lines = (line for line in read_text("/proc/cpuinfo").splitlines() if line.startswith(("flags", "Features")))
    return hashlib.sha256(next(lines, "").encode()).hexdigest()[:16]


def _identity() -> str:
    """A digest of what tells this board from another of its kind, for what must hold on this very one."""
    parts = [read_text(path) for path in ("/proc/device-tree/serial-number", "/etc/machine-id")]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def read_text(path: str) -> str:
    """A small system file's text; empty where it is absent or not ours to read, which is an answer too."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def resident_mb() -> float:
    """Resident memory of this process in 10^6 bytes; 0 where the system does not say."""
    fields = read_text("/proc/self/statm").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6 if len(fields) > 1 else 0.0


def clock_is_synchronised() -> bool:
    """Whether the kernel says that NTP or PTP disciplines the clock, whoever does it. False where it cannot say."""
    time_error = 5
    try:
        adjtimex = ctypes.CDLL(None).adjtimex
    except (OSError, AttributeError):
        return False
    # struct timex with modes = 0: a question, nothing is set. 512 bytes are more than any ABI's.
    return int(adjtimex(ctypes.create_string_buffer(512))) not in (-1, time_error)
