"""A small JSON file of what was found out about this very machine, so that it need not be found out at every start.

A file that cannot be read or written costs a second look and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path


class CacheFile:
    """Values by key and by the marks of the machine: where a mark changes, what was found before is no longer seen.

    The first part of a key is a name, which stands in the file for people to read.
    """

    def __init__(self, path: Path, marks: Mapping[str, str]) -> None:
        self._path, self._marks = path, dict(marks)

    def get(self, key: Sequence[str | int]) -> object:
        """None where nothing is known."""
        return self._read().get(self._digest(key))

    def put(self, key: Sequence[str | int], value: object) -> bool:
        """False if it could not be written. `value` is anything that JSON holds."""
        values = self._read()
        values[self._digest(key)] = value
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(values, indent=1), encoding="utf-8")
            temporary.replace(self._path)
        except OSError:
            return False
        return True

    def _read(self) -> dict[str, object]:
        try:
            values = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

    def _digest(self, key: Sequence[str | int]) -> str:
        marks = json.dumps([*key, self._marks], sort_keys=True)
        return f"{key[0]}-{hashlib.sha256(marks.encode()).hexdigest()[:16]}"


def cache_path(name: str) -> Path:
    """`name` in $XDG_CACHE_HOME/scene-edge, else below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "scene-edge" / name
