"""What has reproduced its golden run on this very board, kept between starts, so that it need not be compiled twice.

A file stands for one artefact at one set of shapes. It holds how far the artefact was from its golden run, what its
outputs were at these shapes on the golden run's inputs (`witness_of`), and, where the engine can give one, the compiled
network. None of that is believed: the file is under SHA-256, the errors are held against the bundle's tolerance again,
and what is opened must give the witnessed outputs to the last bit. Anything else, and the golden run is done anew.

The name of a file follows from bundle, artefact, shapes, threads, and `marks` of board and engines: where one of them
changes, nothing is found. A file is taken away while it is tried, and put back afterwards: a compiled network that
brings its process down does so once.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import structlog

from scene_edge.inference.seam import Order, Tensors

MAX_FILES = 24
MAX_BYTES = 256 << 20
"""Of one file: the compiled form of the largest network that trains here is below it."""

log = structlog.get_logger(__name__)

_MAGIC = b"scene-edge proof 1\n"
_TAKEN = ".taken"
_DIGEST_BYTES = 32


@dataclass(frozen=True)
class Proof:
    """`errors`: relative RMS error of each output of the golden run. `compiled` is empty where the engine has none."""

    errors: Mapping[str, float]
    witness: str
    compiled: bytes = field(default=b"", repr=False)

    def holds(self, tolerance: float) -> bool:
        return bool(self.errors) and all(0 <= error <= tolerance for error in self.errors.values())


class Proofs:
    """Proofs in a folder of their own; one that cannot be read or written costs a golden run and nothing else.

    `marks` say which board and which versions of the engines this is.
    """

    def __init__(self, folder: Path, marks: Mapping[str, str]) -> None:
        self._folder, self._marks = folder, dict(marks)

    def key(self, order: Order, graph: str, engine: ModuleType) -> str:
        """Of one artefact at the order's shapes, as this release of ours opens it."""
        shapes = [[name, list(info.shape), str(info.dtype)] for name, info in sorted(order.inputs.items())]
        opened_by = hashlib.sha256(Path(str(engine.__file__)).read_bytes()).hexdigest()
        what = [order.bundle.digest.hex(), graph, order.artifact.file, order.artifact.precision, order.threads, shapes]
        text = json.dumps([*what, opened_by, _release(), self._marks], sort_keys=True)
        return f"{order.bundle.name}-{graph}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    def take(self, key: str) -> Proof | None:
        """The proof, whose file is out of the way until it is put back; None where there is none that can be read."""
        taken = self._path(key, _TAKEN)
        try:
            self._path(key).replace(taken)
            proof = _parsed(_read_own(taken), key)
        except OSError:
            return None
        if proof is None:
            taken.unlink(missing_ok=True)
        return proof

    def put_back(self, key: str) -> None:
        """What was taken did what it should."""
        with suppress(OSError):
            self._path(key, _TAKEN).replace(self._path(key))

    def put(self, key: str, proof: Proof) -> bool:
        """False if it could not be written."""
        data = _written(key, proof)
        if len(data) > MAX_BYTES:
            return False
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = self._path(key, ".tmp")
            temporary.write_bytes(data)
            temporary.chmod(0o600)
            temporary.replace(self._path(key))
            self._path(key, _TAKEN).unlink(missing_ok=True)
            self._make_room()
        except OSError as error:
            log.warning("what was proven cannot be kept: the next start takes as long", error=str(error))
            return False
        return True

    def _path(self, key: str, suffix: str = ".proof") -> Path:
        return self._folder / f"{key}{suffix}"

    def _make_room(self) -> None:
        """The newest MAX_FILES stay."""
        files = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in files[MAX_FILES:]:
            path.unlink(missing_ok=True)


def witness_of(outputs: Tensors) -> str:
    """A digest of all outputs: equal only where they are, to the last bit."""
    digest = hashlib.sha256()
    for name, value in sorted(outputs.items()):
        digest.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()


def _written(key: str, proof: Proof) -> bytes:
    head = json.dumps({"key": key, "errors": dict(proof.errors), "witness": proof.witness}).encode() + b"\n"
    body = head + proof.compiled
    return _MAGIC + hashlib.sha256(body).digest() + body


def _parsed(data: bytes, key: str) -> Proof | None:
    start = len(_MAGIC) + _DIGEST_BYTES
    digest, body = data[len(_MAGIC) : start], data[start:]
    if not data.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
        return None
    head, _, compiled = body.partition(b"\n")
    try:
        fields: Any = json.loads(head)
        errors = {str(name): float(error) for name, error in fields["errors"].items()}
        return Proof(errors, str(fields["witness"]), compiled) if fields["key"] == key else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _read_own(path: Path) -> bytes:
    """A plain file that nobody else may write. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        writable_by_others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or writable_by_others:
            raise PermissionError(f"{path} is not ours alone")
        if found.st_size > MAX_BYTES:
            raise OSError(f"{path} is too large")
        return file.read(found.st_size)


def _release() -> str:
    try:
        return version("scene-edge")
    except PackageNotFoundError:
        return ""
