"""Disks that fail: at the n-th access, for a while, before a commit or behind it; processes that die at any of these.

SQLite under them is real. A commit that fails is undone, or stands in the file although it was reported as failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from scene_edge.codec.errors import StoreError
from scene_edge.codec.topics import shard_of
from scene_edge.edge.spool import Record
from scene_edge.edge.spool_file import DamagedFileError, Head, Row, SpoolFile
from scene_edge.server.clock import Clock
from scene_edge.server.store import Batch, Store, leases
from tests.simulation.world import Violation, World


class Disk:
    """`fail_until_ns`: every access fails till then. `fail_at`: the one after so many. `break_next`: what is read or
    written next turns out to be damaged."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.fail_until_ns = 0
        self.fail_at: int | None = None
        self.break_next = False
        self.moved_aside: Callable[[], None] = lambda: None

    def heal(self) -> None:
        self.fail_until_ns, self.fail_at, self.break_next = 0, None, False

    def reach(self, what: str) -> None:
        """Before an access, in the middle of it, and when all of it is done but nobody knows yet."""
        self._world.point()
        if self._world.now_ns < self.fail_until_ns:
            raise StoreError(f"cannot {what}", got="disk I/O error")
        if self.fail_at is not None:
            self.fail_at -= 1
            if self.fail_at < 0:
                self.fail_at = None
                raise StoreError(f"cannot {what}", got="database or disk is full")

    def reach_spool(self, what: str) -> None:
        if self.break_next:
            self.break_next = False
            raise DamagedFileError(f"cannot {what} the spool", got="database disk image is malformed")
        self.reach(what)


def spool_file_on(disk: Disk) -> type[SpoolFile]:
    """A spool's file on that disk."""

    class SimulatedFile(SpoolFile):
        def open(self) -> None:
            disk.reach("open the spool")
            super().open()

        def heads(self) -> list[tuple[int, Head | None]]:
            disk.reach_spool("read")
            return super().heads()

        def payload(self, row: int, record: Record) -> bytes | None:
            disk.reach("read the spool")
            return super().payload(row, record)

        def write(self, rows: Sequence[Row], quarantine: Sequence[int], delete: Iterable[int]) -> None:
            disk.reach_spool("write")
            super().write(rows, quarantine, delete)
            disk.reach("write the spool")

        def move_aside(self) -> Path:
            disk.reach("move the spool")
            disk.moved_aside()
            return super().move_aside()

    return SimulatedFile


class SimulatedStore(Store):
    """Results on that disk."""

    def __init__(self, url: str, clock: Clock, disk: Disk, *, owner: str) -> None:
        self._disk = disk
        super().__init__(url, clock, owner=owner)

    def commit(self, camera: str, epoch: int, batch: Batch) -> int:
        committed_ns = super().commit(camera, epoch, batch)
        with self._engine.connect() as connection:
            owner = connection.scalar(sa.select(leases.c.owner).where(leases.c.shard == shard_of(camera)))
        if owner != self.owner:
            raise Violation(f"{self.owner} has written what {owner} owns")
        return committed_ns

    @contextmanager
    def transaction(self, what: str) -> Iterator[sa.Connection]:
        self._disk.reach(what)
        with super().transaction(what) as connection:
            yield connection
            self._disk.reach(what)
        self._disk.reach(what)
