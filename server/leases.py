"""Who owns the shards, where several servers share a store: leases there, with epochs that only rise.

A server has all of its shards, or waits for them (a hot standby). The owner has a beat, which it raises four times in
`lease_s`. Another takes its shards over once they were released, their owner's process is gone, or its beat has stood
still for `lease_s` by the clock of the one who looks: no two clocks are compared, and none need be right. In the
transaction that takes a lease its epoch rises, and that of every camera of the shard; the owner before may wake up and
go on, but nothing that it writes is taken, and no camera listens to its acks.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import sqlalchemy as sa
import structlog

from scene_edge.codec.errors import StoreError
from scene_edge.codec.topics import shard_of
from scene_edge.server.clock import SYSTEM, Clock
from scene_edge.server.store import Store, cameras, leases, owners

STEPS_A_LEASE = 4

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Lease:
    """As it stands in the store, with its owner's beat. `owner` is empty where it was released."""

    owner: str
    epoch: int
    beat: int


class Leases:
    """Those of `shards` in a store, for the store's owner. Call `step` every `period_s`."""

    def __init__(
        self,
        store: Store,
        shards: range,
        lease_s: float,
        *,
        clock: Clock = SYSTEM,
        is_gone: Callable[[str], bool] | None = None,
    ) -> None:
        self._store, self._shards, self._lease_s, self._clock = store, shards, lease_s, clock
        self._is_gone = is_gone or process_is_gone
        self._seen: dict[int, tuple[Lease, float]] = {}
        self.held = False
        self.period_s = lease_s / STEPS_A_LEASE

    def step(self) -> bool:
        """Renew, or try to take over; whether the shards are ours. While the store fails that stays as it was: nobody
        else can take them either, and every commit asks anew."""
        try:
            was_held, self.held = self.held, self._renew() if self.held else self._take_over()
        except StoreError as error:
            log.error("leases not renewed", error=str(error))
            return self.held
        if was_held and not self.held:
            log.error("another server has taken over", owner=self._store.owner)
        elif self.held and not was_held:
            log.info("owner of the shards", owner=self._store.owner, shards=f"{self._shards[0]}-{self._shards[-1]}")
        return self.held

    def release(self) -> None:
        """Whoever waits need wait no longer."""
        self.held = False
        try:
            with self._store.transaction("release leases") as connection:
                connection.execute(leases.update().where(leases.c.owner == self._store.owner).values(owner=""))
        except StoreError as error:
            log.error("leases not released", error=str(error))

    def _renew(self) -> bool:
        ours = sa.and_(self._ranged(), leases.c.owner == self._store.owner)
        with self._store.transaction("renew leases") as connection:
            count = connection.scalar(sa.select(sa.func.count()).select_from(leases).where(ours))
            if count == len(self._shards):
                beat = owners.update().where(owners.c.owner == self._store.owner)
                connection.execute(beat.values(beat=owners.c.beat + 1))
                return True
            # A part of the shards is of no use to us, and may be to another.
            connection.execute(leases.update().where(ours).values(owner=""))
        self._seen.clear()
        return False

    def _take_over(self) -> bool:
        ours = self._store.owner
        with self._store.transaction("take leases") as connection:
            found = self._read(connection)
            if not self._are_free(found):
                return False
            new = [{"shard": shard, "owner": ours, "epoch": 0} for shard in self._shards if shard not in found]
            if new:
                connection.execute(leases.insert(), new)
            connection.execute(leases.update().where(self._ranged()).values(owner=ours, epoch=leases.c.epoch + 1))
            connection.execute(owners.delete().where(owners.c.owner.not_in(sa.select(leases.c.owner))))
            if connection.scalar(sa.select(owners.c.beat).where(owners.c.owner == ours)) is None:
                connection.execute(owners.insert().values(owner=ours, beat=0))
            known = connection.scalars(sa.select(cameras.c.camera))
            fenced = [{"name": camera} for camera in known if shard_of(camera) in self._shards]
            if fenced:
                raised = cameras.update().where(cameras.c.camera == sa.bindparam("name"))
                connection.execute(raised.values(epoch=cameras.c.epoch + 1), fenced)
        return True

    def _read(self, connection: sa.Connection) -> dict[int, Lease]:
        beating = leases.outerjoin(owners, leases.c.owner == owners.c.owner)
        rows = connection.execute(sa.select(leases, owners.c.beat).select_from(beating).where(self._ranged()))
        return {row.shard: Lease(row.owner, row.epoch, row.beat or 0) for row in rows}

    def _are_free(self, found: Mapping[int, Lease]) -> bool:
        """Whether nobody needs any of them; notes since when each has stood still."""
        now_s = self._clock.now_s()
        for shard, lease in found.items():
            if shard not in self._seen or self._seen[shard][0] != lease:
                self._seen[shard] = lease, now_s
        others = {lease.owner for lease in found.values()} - {"", self._store.owner}
        living = {owner for owner in others if not self._is_gone(owner)}
        due_s = now_s - self._lease_s
        return all(lease.owner not in living or self._seen[shard][1] <= due_s for shard, lease in found.items())

    def _ranged(self) -> sa.ColumnElement[bool]:
        return leases.c.shard.between(self._shards[0], self._shards[-1])


class Tenure(Generic[T]):
    """What runs while the leases are ours: `enter` begins it, `leave` ends it. One thread calls `follow`."""

    def __init__(self, leases: Leases, enter: Callable[[], T], leave: Callable[[T], None]) -> None:
        self._leases, self._enter, self._leave = leases, enter, leave
        self.current: T | None = None

    def follow(self) -> None:
        """See who the owner is, and act on it."""
        held = self._leases.step()
        if held and self.current is None:
            self.current = self._enter()
        elif not held and self.current is not None:
            ended, self.current = self.current, None
            self._leave(ended)


def new_owner() -> str:
    """A name for this process that no other has, by which others on this machine can tell whether it still runs."""
    place, pid = _place(), os.getpid()
    return "/".join((socket.gethostname()[:64], place, str(pid), _started(pid) or "", secrets.token_hex(4)))


def process_is_gone(owner: str) -> bool:
    """Whether the process of that name has ended. False where that cannot be known, as on another machine."""
    parts = owner.split("/")
    if len(parts) != 5 or parts[1] != _place() or not parts[1] or not parts[3] or not parts[2].isdigit():
        return False
    return _started(int(parts[2])) != parts[3]


def _place() -> str:
    """This boot and this namespace of processes; empty where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot[:18]}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a process was started, in ticks; None where there is none, or one that has ended and is not yet reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]
