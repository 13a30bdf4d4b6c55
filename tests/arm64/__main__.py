"""Tests on a 64-bit ARM processor that is none: Debian's Python and ARM wheels under QEMU's user mode.

    python -m tests.arm64                     golden bytes, and each shipped artefact against its golden run
    python -m tests.arm64 --cpu cortex-a72    as on a Raspberry Pi 4, which has no dot products
    python -m tests.arm64 tests/codec -k rans whatever pytest is to run instead

Needs no root and installs nothing: packages come through apt's and pip's own sources into build/arm64 (0.8 GB), once.
Where they cannot be had it says so and ends with success, since nothing was tested and nothing failed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "build" / "arm64"
TESTS = ["tests/codec/test_golden.py", "tests/inference/test_shipped.py"]
DEBIAN = ["python3", "libstdc++6"]
EXTRAS = ("onnx", "litert")
"""Engines that run in the emulator; OpenVINO's library for ARM wants a real one."""

TOOLS = ("hypothesis", "pytest", "pytest-timeout")
PLATFORMS = ("manylinux_2_35_aarch64", "manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")

PARTS = {"cortex-a72": "0xd08", "cortex-a76": "0xd0b"}
FEATURES = {
    "cortex-a72": "fp asimd evtstrm crc32 cpuid",
    "cortex-a76": "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
}


class Unavailable(Exception):
    """Why there is no ARM root here."""


def call(*command: str | Path, timeout_s: float = 900.0) -> None:
    """Raises Unavailable with the command's last word."""
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=timeout_s)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(str(error)) from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise Unavailable(f"{Path(command[0]).name} failed: {lines[-1] if lines else done.returncode}")


class Apt:
    """This machine's sources for two architectures, with state and cache of its own."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise Unavailable("Debian's apt-get and dpkg-deb are not here")
        self.archives = folder / "cache" / "archives"
        for part in ("state/lists/partial", "cache/archives/partial"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "state" / "status").touch()
        host = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True)
        self._host = host.stdout.strip()
        settings = {
            "APT::Architecture": "arm64",
            "APT::Sandbox::User": "",
            "Debug::NoLocking": "1",
            "Dir::State": folder / "state",
            "Dir::State::status": folder / "state" / "status",
            "Dir::Cache": folder / "cache",
        }
        self._options = [f"-o{key}={value}" for key, value in settings.items()]
        self._options += ["-oAPT::Architectures::=arm64", f"-oAPT::Architectures::={self._host}", "-qq"]

    def fetch(self) -> list[Path]:
        """ARM's Python with all that it needs, and this machine's QEMU where it has none."""
        call("apt-get", *self._options, "update")
        wanted = ["install", "-y", "--download-only", "--no-install-recommends"]
        call("apt-get", *self._options, *wanted, *DEBIAN)
        if emulator(FOLDER) is None:
            call("apt-get", *self._options, *wanted, f"qemu-user-static:{self._host}")
        return sorted(self.archives.glob("*.deb"))


def emulator(folder: Path) -> str | None:
    names = ("qemu-aarch64-static", "qemu-aarch64")
    path = os.pathsep.join([str(folder / "host" / "usr" / "bin"), os.environ.get("PATH", "")])
    return next((found for name in names if (found := shutil.which(name, path=path))), None)


def requirements() -> list[str]:
    """What a camera on ARM installs, and what tests want beside it."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    options = project["optional-dependencies"]
    tools = [item for item in options["dev"] if item.partition(">")[0] in TOOLS]
    return [*project["dependencies"], *(item for extra in EXTRAS for item in options[extra]), *tools]


def python_of(root: Path) -> Path:
    found = sorted(root.glob("usr/bin/python3.[0-9]*"))
    if not found:
        raise Unavailable("Debian's packages for ARM hold no Python")
    return found[-1]


def build(folder: Path) -> None:
    """Root and packages, once for each set of requirements."""
    stamp = folder / "stamp"
    content = hashlib.sha256("\n".join([*DEBIAN, *requirements()]).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == content:
        return
    print(f"setting up {folder.relative_to(REPOSITORY)}, once: Python, QEMU and wheels for ARM", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    root = folder / "root"
    root.mkdir(parents=True)
    for package in Apt(folder / "apt").fetch():
        call("dpkg-deb", "-x", package, folder / "host" if package.name.startswith("qemu") else root)
    if emulator(folder) is None:
        raise Unavailable("Debian's qemu-user-static holds no qemu-aarch64")
    version = python_of(root).name.removeprefix("python")
    options = [option for name in PLATFORMS for option in ("--platform", name)]
    options += ["--python-version", version, "--only-binary=:all:", "--target", str(folder / "site")]
    call(sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *options, *requirements())
    shutil.rmtree(folder / "apt")
    stamp.write_text(content)


def describe(root: Path, cpu: str) -> None:
    """QEMU shows programs the host's /proc/cpuinfo, in which engines find no ARM processor; what lies in the root goes
    first."""
    lines = [f"Features\t: {FEATURES[cpu]}", "CPU implementer\t: 0x41", "CPU architecture: 8", "CPU variant\t: 0x1"]
    content = "\n".join(["processor\t: 0", *lines, f"CPU part\t: {PARTS[cpu]}", "CPU revision\t: 1", "", ""])
    for name, text in (("proc/cpuinfo", content), ("possible", "0\n"), ("present", "0\n")):
        path = root / (name if "/" in name else f"sys/devices/system/cpu/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.arm64", description=__doc__.partition("\n")[0])
    parser.add_argument("--cpu", choices=sorted(PARTS), default="cortex-a76", help="default: that of a Raspberry Pi 5")
    options, chosen = parser.parse_known_args()
    if platform.machine() == "aarch64":
        print("this is ARM: run pytest itself")
        return 0
    try:
        build(FOLDER)
    except Unavailable as error:
        print(f"skipped: {error}")
        return 0
    root = FOLDER / "root"
    describe(root, options.cpu)
    paths = f"{REPOSITORY}:{FOLDER / 'site'}"
    given = ["-E", f"PYTHONPATH={paths}", "-E", "PYTHONDONTWRITEBYTECODE=1", "-U", "VIRTUAL_ENV"]
    machine = [emulator(FOLDER) or "", "-cpu", options.cpu, "-L", str(root), *given, str(python_of(root))]
    # Everything takes a hundred times as long here.
    test = ["-m", "pytest", "-p", "no:cacheprovider", "-o", "timeout=3000", *(chosen or TESTS)]
    return subprocess.run([*machine, *test], cwd=REPOSITORY).returncode


if __name__ == "__main__":
    sys.exit(main())
