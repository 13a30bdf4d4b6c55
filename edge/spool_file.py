"""The file of a durable spool: SQLite in WAL mode, each record under CRC-32C. No threads, no locks, no policy.

A record is a head (session, last frames, time of storing, leaf, size, when its frames were read, and a CRC-32C of all
that), a payload, and a CRC-32C of both. Heads have a table of their own, so that a start reads them alone, however
much waits; a payload is read and checked when it is wanted.

What SQLite cannot do for the moment (disk full, input/output error, read-only, locked by another process) is a
StoreError and may be tried again; a file that is broken is a DamagedFileError.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from scene_edge.codec.checksum import crc32c
from scene_edge.codec.errors import StoreError
from scene_edge.edge.spool import Record

LOCK_WAIT_S = 1.0
MAX_DAMAGED = 3
"""So many damaged files are kept for whoever wants to look at them."""

QUARANTINE_BYTES = 4_000_000
"""What no broker takes is kept up to this, the newest of it."""

FOREIGN_FORMAT = "unsupported file format"
"""What SQLite says of a damaged format number. It has no code of its own, and trying again would not help."""

_LEAVES = ("video", "semantic")
_HEAD = struct.Struct("<QIIqBHI")
_CRC = struct.Struct("<I")
_SCHEMA = [
    "CREATE TABLE heads (row INTEGER PRIMARY KEY, head BLOB NOT NULL, quarantined INTEGER NOT NULL)",
    "CREATE TABLE payloads (row INTEGER PRIMARY KEY, payload BLOB NOT NULL, crc INTEGER NOT NULL)",
]
_PAYLOAD = "SELECT head, payload, crc FROM heads JOIN payloads USING (row) WHERE row = ?"


class DamagedFileError(StoreError):
    """The file is no spool, or no longer one."""


@dataclass(frozen=True, slots=True)
class Head:
    """A record without its payload, and when it was stored (UTC)."""

    record: Record
    stored_ns: int

    def to_bytes(self) -> bytes:
        record = self.record
        last_frame = record.last_seq if record.last_frame < 0 else record.last_frame
        leaf = _LEAVES.index(record.leaf)
        fields = _HEAD.pack(
            record.session, record.last_seq, last_frame, self.stored_ns, leaf, record.frames, record.size
        )
        whole = fields + struct.pack(f"<{record.frames}q", *record.taken_ns)
        return whole + _CRC.pack(crc32c(whole))

    @classmethod
    def from_bytes(cls, data: object) -> Head | None:
        """None for bytes that are damaged."""
        if not isinstance(data, bytes) or len(data) < _HEAD.size + _CRC.size:
            return None
        body = data[: -_CRC.size]
        if _CRC.pack(crc32c(body)) != data[-_CRC.size :]:
            return None
        session, last_seq, last_frame, stored_ns, leaf, frames, size = _HEAD.unpack_from(body)
        if leaf >= len(_LEAVES) or len(body) != _HEAD.size + 8 * frames:
            return None
        taken_ns = array("q", struct.unpack_from(f"<{frames}q", body, _HEAD.size))
        record = Record(_LEAVES[leaf], b"", last_seq, taken_ns, last_frame, session=session, size=size)
        return cls(record, stored_ns)


@dataclass(frozen=True, slots=True)
class Row:
    """A record on its way into the file."""

    row: int
    record: Record
    stored_ns: int
    quarantined: bool = False


class SpoolFile:
    """One connection, which keeps the file locked while it is open: two cameras never write to the same one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open or begin the file, with its folder. Raises StoreError or DamagedFileError."""
        self.close()
        with self._translated("open"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(
                self.path, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False, cached_statements=32
            )
            self._connection = connection
            # A damaged file may hold anything where a text was: bytes are compared and checked, never decoded.
            connection.text_factory = bytes
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            if not (found := _schema_of(connection)):
                connection.execute("BEGIN IMMEDIATE")
                for statement in _SCHEMA:
                    connection.execute(statement)
                connection.execute("COMMIT")
            elif found != _SCHEMA:
                raise DamagedFileError("cannot open the spool", got="the database of something else")

    def heads(self) -> list[tuple[int, Head | None]]:
        """Row and head of every record that is not in quarantine, in order; None for a damaged head."""
        with self._translated("read"):
            rows = self._open().execute("SELECT row, head FROM heads WHERE quarantined IS NOT 1 ORDER BY row")
            return [(row, Head.from_bytes(head)) for row, head in rows]

    def last_row(self) -> int:
        with self._translated("read"):
            return int(self._open().execute("SELECT coalesce(max(row), 0) FROM heads").fetchone()[0])

    def payload(self, row: int, record: Record) -> bytes | None:
        """The payload of a row; None where it is damaged, missing, or not that of `record`."""
        with self._translated("read"):
            found = self._open().execute(_PAYLOAD, (row,)).fetchone()
        if found is None:
            return None
        head, payload, crc = found
        if not (isinstance(head, bytes) and isinstance(payload, bytes) and crc32c(head + payload) == crc):
            return None
        named = Head.from_bytes(head)
        same = named is not None and (named.record.session, named.record.last_seq, named.record.leaf) == (
            record.session,
            record.last_seq,
            record.leaf,
        )
        return payload if same else None

    def write(self, rows: Sequence[Row], quarantine: Sequence[int], delete: Iterable[int]) -> None:
        """One durable transaction: new records, rows that go into quarantine, rows that are done with."""
        with self._translated("write"):
            connection = self._open()
            connection.execute("BEGIN IMMEDIATE")
            try:
                for row in rows:
                    head = Head(row.record, row.stored_ns).to_bytes()
                    # A commit that failed may stand in the file all the same: then this writes the same row again.
                    connection.execute(
                        "INSERT OR REPLACE INTO heads VALUES (?, ?, ?)", (row.row, head, row.quarantined)
                    )
                    sealed = (row.row, row.record.payload, crc32c(head + row.record.payload))
                    connection.execute("INSERT OR REPLACE INTO payloads VALUES (?, ?, ?)", sealed)
                connection.executemany("UPDATE heads SET quarantined = 1 WHERE row = ?", ((row,) for row in quarantine))
                _delete(connection, delete)
                if quarantine or any(row.quarantined for row in rows):
                    _trim_quarantine(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.rollback()
                raise

    def move_aside(self) -> Path:
        """Give a damaged file a name of its own; the next `open` begins a new one. Returns the new name."""
        self.close()
        name = re.compile(re.escape(self.path.name) + r"\.damaged-(\d+)")
        with self._translated("move"):
            found = [
                (int(match[1]), file) for file in self.path.parent.iterdir() if (match := name.fullmatch(file.name))
            ]
            number = 1 + max((taken for taken, _ in found), default=0)
            for taken, file in found:
                if taken <= number - MAX_DAMAGED:
                    file.unlink()
                    _beside(file, "-wal").unlink(missing_ok=True)
            aside = _beside(self.path, f".damaged-{number}")
            # The log first: it must never meet a file that it does not belong to.
            if _beside(self.path, "-wal").exists():
                _beside(self.path, "-wal").rename(_beside(aside, "-wal"))
            self.path.rename(aside)
            _beside(self.path, "-shm").unlink(missing_ok=True)
        return aside

    def close(self) -> None:
        """Never raises: what was written is safe by then."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreError("the spool's file is not open", got=str(self.path))
        return self._connection

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except UnicodeDecodeError as error:  # a message about what stands in the file, with what stands in the file
            raise DamagedFileError(f"cannot {what} the spool", got="a schema that is no text") from error
        except (sqlite3.OperationalError, sqlite3.ProgrammingError) as error:
            if FOREIGN_FORMAT in str(error):
                raise DamagedFileError(f"cannot {what} the spool", got=str(error)) from error
            raise StoreError(f"cannot {what} the spool", got=str(error)) from error
        except sqlite3.DatabaseError as error:
            raise DamagedFileError(f"cannot {what} the spool", got=str(error)) from error
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"cannot {what} the spool", got=str(error)) from error


def _schema_of(connection: sqlite3.Connection) -> list[object]:
    found = connection.execute("SELECT sql FROM sqlite_master ORDER BY name")
    return [sql.decode("utf-8", "replace") if isinstance(sql, bytes) else sql for (sql,) in found]


def _delete(connection: sqlite3.Connection, rows: Iterable[int]) -> None:
    keys = [(row,) for row in rows]
    connection.executemany("DELETE FROM heads WHERE row = ?", keys)
    connection.executemany("DELETE FROM payloads WHERE row = ?", keys)


def _trim_quarantine(connection: sqlite3.Connection) -> None:
    query = "SELECT row, length(payload) FROM heads JOIN payloads USING (row) WHERE quarantined = 1 ORDER BY row DESC"
    rows = connection.execute(query).fetchall()
    totals = accumulate(size for _, size in rows)
    _delete(connection, [row for (row, _), total in zip(rows, totals, strict=True) if total > QUARANTINE_BYTES])


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)
