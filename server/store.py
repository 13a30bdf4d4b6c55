"""Where results come to rest: SQLAlchemy Core over SQLite in WAL mode, or any database URL that it speaks.

Rows are keyed by (camera, session, seq), so a repeated frame is stored once. A camera has one owner at a time: each
`claim` raises its epoch, and a commit under an older epoch is refused whole (an owner that was suspended and woke up
must not write). Where shards have leases (leases.py) only their owner may claim. Sessions are kept as 16 hex digits,
since SQLite's integers are signed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from scene_edge.codec.errors import ConfigError, StoreError
from scene_edge.codec.topics import shard_of
from scene_edge.server.analytics.seams import Action, Track
from scene_edge.server.clock import SYSTEM, Clock
from scene_edge.server.group import GroupCommit, Ticket

BUSY_TIMEOUT_S = 10
NO_BIRTH = "{}"

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


@dataclass(frozen=True, slots=True)
class _Request:
    """A batch, and who wants it written."""

    camera: str
    epoch: int
    batch: Batch


class FencedError(StoreError):
    """A newer owner has claimed the camera: nothing of the batch was written."""


class Store:
    """The results of all cameras. Safe to use from several threads; every method raises StoreError where it fails.

    `owner` names this process where several share the database. With `grouped` a thread of its own writes for all who
    `begin` a commit, and they share transactions; without, each is written at once, where it is begun.

    >>> store = Store("sqlite://")
    >>> epoch = store.claim("gate")
    >>> store.commit("gate", epoch, Batch("00" * 8, 0, [FrameResult(0, 1, "matched", "fused", 900, 20)])) > 0
    True
    >>> store.last_seq("gate", "00" * 8)
    0
    """

    def __init__(self, url: str, clock: Clock = SYSTEM, *, owner: str = "", grouped: bool = False) -> None:
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
        self._dialect: Any = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        self._upsert_sessions = _upsert(self._dialect)
        self._group = GroupCommit(self._commit_all) if grouped else None

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
        (answer,) = self._commit_all([_Request(camera, epoch, batch)])
        if isinstance(answer, StoreError):
            raise answer
        return answer

    def begin(self, camera: str, epoch: int, batch: Batch, told: Callable[[], None] | None = None) -> Ticket:
        """The same, without waiting for it where commits are grouped: one that is fenced does not touch the others.
        `told` is called, by any thread, when the ticket has its answer."""
        if self._group is not None:
            return self._group.submit(_Request(camera, epoch, batch), told)
        ticket = Ticket(told)
        try:
            ticket.give(self.commit(camera, epoch, batch))
        except StoreError as error:
            ticket.give(error)
        return ticket

    def _commit_all(self, requests: Sequence[_Request]) -> list[int | StoreError]:
        with self.transaction("commit results") as connection:
            named = {request.camera for request in requests}
            found = connection.execute(_EPOCHS, {"named": sorted(named)})
            owners = {row.camera: row.epoch for row in found}
            committed_ns = self._clock.utc_ns()
            refused = [_refusal(request, owners.get(request.camera)) for request in requests]
            kept = [request for request, why in zip(requests, refused, strict=True) if why is None]
            if kept:
                connection.execute(self._upsert_sessions, [_session_row(request, committed_ns) for request in kept])
            for table, rows_of in _ROWS.items():
                if rows := [row for request in kept for row in rows_of(request, committed_ns)]:
                    connection.execute(self._insert_once(table), rows)
        return [why or committed_ns for why in refused]

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
        """What was begun is written first."""
        if self._group is not None:
            self._group.close()
        self._engine.dispose()

    def _insert_once(self, table: sa.Table) -> Any:
        return self._dialect.insert(table).on_conflict_do_nothing()

    @contextmanager
    def transaction(self, what: str) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except sa.exc.SQLAlchemyError as error:
            raise StoreError(f"cannot {what}", got=_reason(error), hint="Check disk and database URL.") from error


def _refusal(request: _Request, owner: int | None) -> FencedError | None:
    """Why a request is not written, if so."""
    if request.epoch == owner:
        return None
    what = f"camera {request.camera} has a newer owner"
    return FencedError(what, got=f"epoch {request.epoch}", allowed=f"epoch {owner}")


def _upsert(dialect: Any) -> Any:
    """A session's row: made, or moved forward. An earlier session has no birth to tell: what it told then stays."""
    statement = dialect.insert(sessions)
    new = statement.excluded
    # A commit that was reported as failed may stand all the same, and is tried again.
    is_new = sessions.c.last_seq < new.last_seq
    return statement.on_conflict_do_update(
        index_elements=["camera", "session"],
        set_={
            "last_seq": sa.case((is_new, new.last_seq), else_=sessions.c.last_seq),
            "missing_video": sessions.c.missing_video + sa.case((is_new, new.missing_video), else_=0),
            "birth": sa.case((new.birth == NO_BIRTH, sessions.c.birth), else_=new.birth),
        },
    )


def _session_row(request: _Request, committed_ns: int) -> dict[str, Any]:
    batch = request.batch
    return {
        "camera": request.camera,
        "session": batch.session,
        "started_ns": committed_ns,
        "last_seq": batch.last_seq,
        "missing_video": batch.missing_video,
        "birth": json.dumps(dict(batch.birth), sort_keys=True) if batch.birth else NO_BIRTH,
    }


def _frame_rows(request: _Request, committed_ns: int) -> Iterator[dict[str, Any]]:
    for frame in request.batch.frames:
        yield {
            "camera": request.camera,
            "session": request.batch.session,
            "seq": frame.seq,
            "epoch": request.epoch,
            "captured_ns": frame.captured_ns,
            "committed_ns": committed_ns,
            "status": frame.status,
            "picture": frame.picture,
            "video_bytes": frame.video_bytes,
            "semantic_bytes": frame.semantic_bytes,
        }


def _track_rows(request: _Request, _committed_ns: int) -> Iterator[dict[str, Any]]:
    for frame in request.batch.frames:
        for track in frame.tracks:
            yield {
                "camera": request.camera,
                "session": request.batch.session,
                "seq": frame.seq,
                "track_id": track.track_id,
                "label": track.label,
                "score": track.score,
                **dict(zip(("x0", "y0", "x1", "y1"), track.box, strict=True)),
            }


def _action_rows(request: _Request, _committed_ns: int) -> Iterator[dict[str, Any]]:
    for frame in request.batch.frames:
        for action in frame.actions:
            yield {
                "camera": request.camera,
                "session": request.batch.session,
                "end_seq": action.end_seq,
                "model": action.model,
                "start_seq": action.start_seq,
                "label": action.label,
                "score": action.score,
            }


_ROWS: dict[sa.Table, Callable[[_Request, int], Iterator[dict[str, Any]]]] = {
    frames: _frame_rows,
    tracks: _track_rows,
    actions: _action_rows,
}
_EPOCHS = (
    sa.select(cameras.c.camera, cameras.c.epoch)
    .where(cameras.c.camera.in_(sa.bindparam("named", expanding=True)))
    .order_by(cameras.c.camera)
    .with_for_update()
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
