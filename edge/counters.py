"""Which counter of each signed bundle was in use on this camera: no older one takes its place. A small JSON file.

A signature says who made a bundle, not whether it is the newest: whoever can put files on a camera could bring back an
old one with a known weakness. A counter is raised only once its bundle runs, so that a new one that does not open on
this board leaves the way back free. Without a signature counters mean nothing, and nothing is remembered.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import BundleError, StoreError

MAX_FILE_BYTES = 1 << 16
MAX_COUNTER = 2**32 - 1


class Counters:
    """The file at `path`, or nothing where it is None."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def least(self, name: str) -> int:
        """What a bundle of this name must have at least; 0 for one that was never in use.

        Raises BundleError where the file cannot be read: taking it for empty would let any old bundle in.
        """
        return self._read().get(name, 0)

    def raise_to(self, bundle: Bundle) -> None:
        """Remember that this bundle runs. Raises StoreError if that cannot be written."""
        if self._path is None or not bundle.signed:
            return
        known = self._read()
        if bundle.counter <= known.get(bundle.name, -1):
            return
        known[bundle.name] = bundle.counter
        temporary = self._path.with_name(f".{self._path.name}.new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "w", encoding="ascii") as file:
                json.dump(known, file, sort_keys=True)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        except OSError as error:
            raise StoreError(f"cannot write {self._path}", got=error.strerror or str(error)) from error

    def _read(self) -> dict[str, int]:
        if self._path is None:
            return {}
        try:
            with open(self._path, "rb") as file:
                raw = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise BundleError(f"cannot read {self._path}", got=error.strerror or str(error)) from error
        try:
            known = json.loads(raw) if len(raw) <= MAX_FILE_BYTES else None
        except (ValueError, RecursionError):
            known = None
        if not isinstance(known, dict) or not all(map(_is_counter, known.values())):
            raise BundleError(
                f"{self._path} holds no counters", hint="Check which bundles are in use, and remove the file."
            )
        return known


def _is_counter(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNTER
