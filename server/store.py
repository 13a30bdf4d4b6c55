"""Where results come to rest: SQLAlchemy Core over SQLite in WAL mode, or any database URL that it speaks.

Rows are keyed by (camera, session, seq), so a repeated frame is stored once. A camera has one owner at a time: each
`claim` raises its epoch, and a commit under an older epoch is refused whole (an owner that was suspended and woke up
must not write). Where shards have leases (leases.py) only their owner may claim. Sessions are kept as 16 hex digits,
since SQLite's integers are signed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from scene_edge.codec.errors import ConfigError, StoreError
from scene_edge.codec.topics import shard_of
from scene_edge.server.analytics.seams import Action, Track
from scene_edge.server.clock import SYSTEM, Clock

BUSY_TIMEOUT_S = 10

_meta = sa.MetaData()

cameras = sa.Table(
    "cameras",
    _meta,
    sa.Column("camera", sa.String(64), primary_key=True),
    sa.Column("epoch", sa.BigInteger, nullable=False),
)
leases = sa.Table(
    "leases",
    _meta,
    sa.Column("shard", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("owner", sa.String(200), nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
)
owners = sa.Table(
    "owners",
    _meta,
    sa.Column("owner", sa.String(200), primary_key=True),
    sa.Column("beat", sa.BigInteger, nullable=False),
)
sessions = sa.Table(
    "sessions",
    _meta,
    sa.Column("camera", sa.String(64), primary_key=True),
    sa.Column("session", sa.String(16), primary_key=True),
    sa.Column("started_ns", sa.BigInteger, nullable=False),
    sa.Column("last_seq", sa.BigInteger, nullable=False),
    sa.Column("missing_video", sa.BigInteger, nullable=False),
    sa.Column("birth", sa.Text, nullable=False),
)
frames = sa.Table(
    "frames",
    _meta,
    sa.Column("camera", sa.String(64), primary_key=True),
    sa.Column("session", sa.String(16), primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("captured_ns", sa.BigInteger, nullable=False),
    sa.Column("committed_ns", sa.BigInteger, nullable=False),
    sa.Column("status", sa.String(20), nullable=False),
    sa.Column("picture", sa.String(8), nullable=False),
    sa.Column("video_bytes", sa.Integer, nullable=False),
    sa.Column("semantic_bytes", sa.Integer, nullable=False),
    sa.Index("frames_by_commit", "committed_ns"),
)
tracks = sa.Table(
    "tracks",
    _meta,
    sa.Column("camera", sa.String(64), primary_key=True),
    sa.Column("session", sa.String(16), primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True),
    sa.Column("track_id", sa.Integer, primary_key=True),
    sa.Column("label", sa.String(64), nullable=False),
    sa.Column("score", sa.Float, nullable=False),
    sa.Column("x0", sa.Float, nullable=False),
    sa.Column("y0", sa.Float, nullable=False),
    sa.Column("x1", sa.Float, nullable=False),
    sa.Column("y1", sa.Float, nullable=False),
)
actions = sa.Table(
    "actions",
    _meta,
    sa.Column("camera", sa.String(64), primary_key=True),
    sa.Column("session", sa.String(16), primary_key=True),
    sa.Column("end_seq", sa.BigInteger, primary_key=True),
    sa.Column("model", sa.String(64), primary_key=True),
    sa.Column("start_seq", sa.BigInteger, nullable=False),
    sa.Column("label", sa.String(64), nullable=False),
    sa.Column("score", sa.Float, nullable=False),
)


@dataclass(frozen=True, slots=True)
class FrameResult:
    """All that is known of one frame. `picture` is what analytics saw: fused, lossy or none (it would not decode)."""

    seq: int
    captured_ns: int
    status: str
    picture: str
    video_bytes: int
    semantic_bytes: int
    tracks: tuple[Track, ...] = ()
    actions: tuple[Action, ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """What one camera commits at once: frames of one session up to `last_seq`, and how many never came before it."""

    session: str
    last_seq: int
    frames: Sequence[FrameResult]
    missing_video: int = 0
    birth: Mapping[str, Any] = field(default_factory=dict)


class FencedError(StoreError):
    """A newer owner has claimed the camera: nothing of the batch was written."""


class Store:
    """The results of all cameras. Safe to use from several threads; every method raises StoreError where it fails.

    `owner` names this process where several share the database.

    >>> store = Store("sqlite://")
    >>> epoch = store.claim("gate")
    >>> store.commit("gate", epoch, Batch("00" * 8, 0, [FrameResult(0, 1, "matched", "fused", 900, 20)])) > 0
    True
    >>> store.last_seq("gate", "00" * 8)
    0
    """

    def __init__(self, url: str, clock: Clock = SYSTEM, *, owner: str = "") -> None:
        self._clock, self.owner = clock, owner
        try:
            memory = sa.engine.make_url(url).database in (None, "", ":memory:") and url.startswith("sqlite")
            extra: dict[str, Any] = {"poolclass": sa.pool.StaticPool} if memory else {}
            if url.startswith("sqlite"):
                extra["connect_args"] = {"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}
            self._engine = sa.create_engine(url, **extra)
        except (sa.exc.ArgumentError, ImportError) as error:
            raise ConfigError(
                "not a database URL", got=url, allowed="such as sqlite:///scene-edge.db", hint=str(error).split("\n")[0]
            ) from error
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
            sa.event.listen(self._engine, "begin", _begin_immediate)
        with self.transaction("open the database"):
            pass
        try:
            _meta.create_all(self._engine)
            for table in _meta.tables.values():  # a database of before has its tables, and not all of their indexes
                for index in table.indexes:
                    index.create(self._engine, checkfirst=True)
        except sa.exc.SQLAlchemyError as error:
            raise StoreError("cannot create the tables", got=_reason(error)) from error

    def claim(self, camera: str) -> int:
        """Become the owner of a camera: the new epoch, higher than every one before. FencedError where another process
        holds the lease of its shard."""
        with self.transaction("claim a camera") as connection:
            lease = sa.select(leases.c.owner).where(leases.c.shard == shard_of(camera)).with_for_update()
            owner = connection.scalar(lease)
            if owner not in (None, self.owner):
                raise FencedError(f"the shard of {camera} has another owner", got=self.owner, allowed=owner)
            now = connection.scalar(sa.select(cameras.c.epoch).where(cameras.c.camera == camera).with_for_update())
            epoch = (now or 0) + 1
            statement: Any = cameras.insert().values(camera=camera, epoch=epoch)
            if now is not None:
                statement = cameras.update().where(cameras.c.camera == camera).values(epoch=epoch)
            connection.execute(statement)
            return epoch

    def last_seq(self, camera: str, session: str) -> int | None:
        """The last frame committed (or given up) of a session; None for one that is new."""
        with self.transaction("read a session") as connection:
            found: int | None = connection.scalar(
                sa.select(sessions.c.last_seq).where(sessions.c.camera == camera, sessions.c.session == session)
            )
            return found

    def commit(self, camera: str, epoch: int, batch: Batch) -> int:
        """Write a batch durably, all or nothing; the time of the commit in ns. FencedError for an older epoch."""
        with self.transaction("commit results") as connection:
            self._check_owner(connection, camera, epoch)
            committed_ns = self._clock.utc_ns()
            key = {"camera": camera, "session": batch.session}
            self._upsert_session(connection, key, batch, committed_ns)
            for table, rows in _rows(key, epoch, committed_ns, batch):
                if rows:
                    connection.execute(self._insert_once(table), rows)
        return committed_ns

    def count_frames(self, camera: str, session: str | None = None) -> int:
        """Stored frames of a camera."""
        query = sa.select(sa.func.count()).select_from(frames).where(frames.c.camera == camera)
        if session is not None:
            query = query.where(frames.c.session == session)
        with self.transaction("count frames") as connection:
            return int(connection.scalar(query) or 0)

    def latest_actions(self, camera: str, limit: int = 20) -> list[dict[str, Any]]:
        """The newest actions of a camera, newest first."""
        query = sa.select(actions).where(actions.c.camera == camera).order_by(actions.c.end_seq.desc()).limit(limit)
        with self.transaction("read actions") as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def ping(self) -> None:
        """Raises StoreError if the database does not answer."""
        with self.transaction("reach the database") as connection:
            connection.execute(sa.select(1))

    def prune(self, older_than_ns: int) -> int:
        """Delete frames committed before a time, with their tracks; how many frames went.

        By this server's clock: a camera that believes in 1970 would lose each result within the hour.
        """
        with self.transaction("prune old results") as connection:
            for row in connection.execute(_old_ranges(older_than_ns)).all():
                connection.execute(
                    tracks.delete().where(
                        tracks.c.camera == row.camera, tracks.c.session == row.session, tracks.c.seq <= row.last
                    )
                )
            return connection.execute(frames.delete().where(frames.c.committed_ns < older_than_ns)).rowcount

    def close(self) -> None:
        self._engine.dispose()

    def _check_owner(self, connection: sa.Connection, camera: str, epoch: int) -> None:
        now = connection.scalar(sa.select(cameras.c.epoch).where(cameras.c.camera == camera).with_for_update())
        if now != epoch:
            raise FencedError(f"camera {camera} has a newer owner", got=f"epoch {epoch}", allowed=f"epoch {now}")

    def _insert_once(self, table: sa.Table) -> Any:
        dialect = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        return dialect.insert(table).on_conflict_do_nothing()

    def _upsert_session(self, connection: sa.Connection, key: dict[str, str], batch: Batch, now_ns: int) -> None:
        where = (sessions.c.camera == key["camera"], sessions.c.session == key["session"])
        birth = json.dumps(dict(batch.birth), sort_keys=True)
        update = sessions.update().where(*where)
        # A commit that was reported as failed may stand all the same, and is tried again.
        is_new = sessions.c.last_seq < batch.last_seq
        if batch.birth:  # an earlier session has none to tell: what it told then stays
            update = update.values(birth=birth)
        updated = connection.execute(
            update.values(
                last_seq=sa.case((is_new, batch.last_seq), else_=sessions.c.last_seq),
                missing_video=sessions.c.missing_video + sa.case((is_new, batch.missing_video), else_=0),
            )
        )
        if not updated.rowcount:
            row = {"started_ns": now_ns, "last_seq": batch.last_seq, "missing_video": batch.missing_video}
            connection.execute(sessions.insert().values(**key, **row, birth=birth))

    @contextmanager
    def transaction(self, what: str) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except sa.exc.SQLAlchemyError as error:
            raise StoreError(f"cannot {what}", got=_reason(error), hint="Check disk and database URL.") from error


def _rows(
    key: dict[str, str], epoch: int, committed_ns: int, batch: Batch
) -> Iterable[tuple[sa.Table, list[dict[str, Any]]]]:
    yield (
        frames,
        [
            {
                **key,
                "seq": frame.seq,
                "epoch": epoch,
                "captured_ns": frame.captured_ns,
                "committed_ns": committed_ns,
                "status": frame.status,
                "picture": frame.picture,
                "video_bytes": frame.video_bytes,
                "semantic_bytes": frame.semantic_bytes,
            }
            for frame in batch.frames
        ],
    )
    yield (
        tracks,
        [
            {
                **key,
                "seq": frame.seq,
                "track_id": track.track_id,
                "label": track.label,
                "score": track.score,
                **dict(zip(("x0", "y0", "x1", "y1"), track.box, strict=True)),
            }
            for frame in batch.frames
            for track in frame.tracks
        ],
    )
    yield (
        actions,
        [
            {
                **key,
                "end_seq": action.end_seq,
                "model": action.model,
                "start_seq": action.start_seq,
                "label": action.label,
                "score": action.score,
            }
            for frame in batch.frames
            for action in frame.actions
        ],
    )


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # SQLAlchemy's BEGIN below is the only one
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # an ack to the camera frees its copy: the commit must survive power loss
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_S * 1000}")
    cursor.close()


def _begin_immediate(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")  # the epoch is read and the rows are written under one lock


def _old_ranges(older_than_ns: int) -> Any:
    return (
        sa.select(frames.c.camera, frames.c.session, sa.func.max(frames.c.seq).label("last"))
        .where(frames.c.committed_ns < older_than_ns)
        .group_by(frames.c.camera, frames.c.session)
    )


def _reason(error: Exception) -> str:
    cause = getattr(error, "orig", None) or error
    return str(cause).split("\n")[0]
