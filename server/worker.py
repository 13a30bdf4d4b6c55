"""One camera's worker: parses what arrives, joins it, makes pictures and results, commits them, then acknowledges.

It owns no thread and never waits for the other stream: whoever runs it calls `handle` for each message, and `tick` by
`next_wakeup_s` when none comes. Nothing is acknowledged before it is committed; while the database fails, commits are
tried again and the camera's queue fills up behind them.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from scene_edge.codec.errors import PacketError, SeiError, StoreError
from scene_edge.codec.identity import session_hex
from scene_edge.codec.packet import DELTA, KEY, SemanticPacket
from scene_edge.codec.planes import MAX_SIDE
from scene_edge.codec.riders import carrier_of, read_riders
from scene_edge.codec.sei import ANCHOR_UUID, strip_sei
from scene_edge.codec.topics import Topics
from scene_edge.codec.videomessage import VideoAssembler, VideoMessage
from scene_edge.server.config import ServerConfig
from scene_edge.server.join import Joiner, VideoUnit
from scene_edge.server.pictures import Outcome, PicturePipeline
from scene_edge.server.results import ack_json, action_json, tracks_json
from scene_edge.server.state import CameraState
from scene_edge.server.store import Batch, FencedError, FrameResult, Store

MAX_JSON_BYTES = 65_536
HEX_DIGEST = re.compile(r"[0-9a-f]{16}([0-9a-f]{48})?")
MAX_PAST_SESSIONS = 64
REACK_EVERY_S = 0.2
RETRY_FIRST_S, RETRY_LAST_S = 0.2, 5.0

Publish = Callable[[str, bytes, int], None]
"""(topic, payload, QoS): must not block."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Inbound:
    """One message of a camera as it came from the broker; `arrived_s` is monotonic."""

    leaf: str
    payload: bytes
    arrived_s: float


class CameraWorker:
    """See the module. `stop` ends a commit that keeps failing."""

    def __init__(
        self,
        camera: str,
        config: ServerConfig,
        store: Store,
        state: CameraState,
        pictures: PicturePipeline,
        publish: Publish,
        stop: threading.Event,
    ) -> None:
        self.camera, self.state = camera, state
        self._config, self._store, self._pictures = config, store, pictures
        self._publish, self._stop = publish, stop
        self._topics = Topics(camera)
        self._epoch = store.claim(camera)
        self._assembler = VideoAssembler()
        self._session: int | None = None
        self._past: deque[int] = deque(maxlen=MAX_PAST_SESSIONS)
        self._joiner = Joiner(config.join.deadline_ms / 1000)
        self._birth: dict[str, Any] = {}
        self._results: list[Outcome] = []
        self._results_since_s = 0.0
        self._missing = 0
        self._processed_seq: int | None = None
        self._acked_seq: int | None = None
        self._reack_at_s: float | None = None
        self._fenced = False

    # What arrives

    def handle(self, message: Inbound) -> None:
        """Take one message; bad ones are counted under their reason and otherwise ignored."""
        if self._fenced:
            return
        self._count_wire(message)
        if message.leaf == "video":
            self._on_video(message)
        elif message.leaf == "semantic":
            self._on_semantic(message)
        elif message.leaf == "status":
            self.state.told_status(message.payload[:256].decode("utf-8", "replace"))
        elif message.leaf == "birth":
            self._on_birth(message.payload)
        elif message.leaf == "ledger" and (ledger := self._json(message.payload, "ledger_corrupt")) is not None:
            self.state.told_ledger(ledger)
        # The stamp of this message, not the present: a backlog behind it may hold the packet that is waited for.
        self._advance(message.arrived_s)

    def tick(self, now_s: float) -> None:
        """Nothing is queued: let deadlines pass and commit what is due."""
        if not self._fenced:
            self._advance(now_s)

    def next_wakeup_s(self) -> float | None:
        """When `tick` is due if no message comes; None: not before the next message."""
        due = [self._joiner.next_deadline_s(), self._reack_at_s]
        if self._results or self._missing:
            due.append(self._results_since_s + self._config.limits.commit_ms / 1000)
        times = [time_s for time_s in due if time_s is not None]
        return min(times) if times else None

    @property
    def idle(self) -> bool:
        """Everything that came is committed."""
        return not (self._joiner.waiting or self._results or self._missing)

    def close(self) -> None:
        """Commit what is finished. Frames that still wait are not acknowledged: the camera sends them again."""
        if not self._fenced:
            self._commit()
        self._pictures.close()

    def _on_video(self, message: Inbound) -> None:
        try:
            fragment = VideoMessage.from_bytes(message.payload)
        except PacketError:
            self.state.dropped("video_corrupt")
            return
        if not self._enter(fragment.session_id, (fragment.width, fragment.height)):
            return
        try:
            whole = self._assembler.push(fragment)
        except PacketError:
            self.state.dropped("video_fragments")
            return
        if whole is None:
            return
        try:
            for packet in read_riders(whole.riders, carrier_of(whole)):
                self._join_semantics(packet)
            self.state.rode(len(whole.riders))
        except PacketError:  # the pictures are whole all the same
            self.state.dropped("semantic_corrupt")
        for unit in whole.units:
            known = unit.utc_offset_ns != 0
            picture = VideoUnit(
                fragment.session_id,
                unit.frame_seq,
                unit.capture_ns,
                unit.capture_ns + unit.utc_offset_ns if known else time.time_ns(),
                known,
                unit.keyframe,
                fragment.width,
                fragment.height,
                unit.data,
            )
            if not self._joiner.add_video(picture, message.arrived_s) and self._reack_at_s is None:
                self._reack_at_s = message.arrived_s + REACK_EVERY_S

    def _on_semantic(self, message: Inbound) -> None:
        try:
            packet = SemanticPacket.from_bytes(message.payload)
        except PacketError:
            self.state.dropped("semantic_corrupt")
            return
        if packet.kind not in (KEY, DELTA):
            self.state.dropped("semantic_unsupported")
            return
        if self._enter(packet.session_id, (packet.width, packet.height)):
            self._join_semantics(packet)

    def _join_semantics(self, packet: SemanticPacket) -> None:
        self._joiner.expect_semantics = True
        self._joiner.add_semantics(packet)

    def _on_birth(self, payload: bytes) -> None:
        birth = self._json(payload, "birth_corrupt")
        if birth is None:
            return
        self._birth = birth
        self.state.told_birth(birth)
        if self._session is not None and birth.get("session") == session_hex(self._session):
            self._joiner.expect_semantics = birth.get("semantics") is True
        if birth.get("semantics") is True:
            self._prepare(birth.get("bundle"), birth.get("width"), birth.get("height"))

    def _prepare(self, bundle: object, width: object, height: object) -> None:
        """A birth names its bundle: what of it is usable is a hint, and anything else is ignored."""
        digest = bundle.get("digest") if isinstance(bundle, dict) else None
        if not (isinstance(digest, str) and HEX_DIGEST.fullmatch(digest)):
            return
        if isinstance(width, int) and isinstance(height, int) and 2 <= min(width, height) <= MAX_SIDE:
            self._pictures.prepare(bytes.fromhex(digest)[:8], width, height)

    def _json(self, payload: bytes, reason: str) -> dict[str, Any] | None:
        try:
            value = json.loads(payload) if len(payload) <= MAX_JSON_BYTES else None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            self.state.dropped(reason)
            return None
        return value

    def _count_wire(self, message: Inbound) -> None:
        payload = message.payload
        if message.leaf not in ("video", "semantic"):
            return
        sei_bytes = 0
        if message.leaf == "video":
            try:
                sei_bytes = len(payload) - len(strip_sei(payload, ANCHOR_UUID))
            except SeiError:
                sei_bytes = 0  # not to be told apart; its bytes count as video
        self.state.received(
            message.leaf, len(payload), sei_bytes=sei_bytes, topic_bytes=len(self._topics.root) + len(message.leaf) + 1
        )

    # Sessions

    def _enter(self, session_id: int, size: tuple[int, int]) -> bool:
        """Make this the current session where it is new; False for one that is over."""
        if session_id == self._session:
            return True
        if session_id in self._past:
            self.state.dropped("stale_session")
            return False
        name = session_hex(session_id)
        try:
            resumed = self._store.last_seq(self.camera, name)
        except StoreError as error:  # not acknowledged, so the camera sends it again
            log.error("session not opened", camera=self.camera, error=str(error))
            self.state.dropped("store_unavailable")
            self.state.degrade("store", str(error))
            return False
        if self._session is not None:
            self._drain(math.inf)  # its packets will not come any more
            self._commit()
            self._past.append(self._session)
        join = self._config.join
        self._session = session_id
        self._joiner = Joiner(
            join.deadline_ms / 1000,
            next_seq=None if resumed is None else resumed + 1,
            expect_semantics=self._birth.get("session") == name and self._birth.get("semantics") is True,
            max_frames=join.max_frames,
            max_bytes=join.max_bytes,
        )
        self._assembler = VideoAssembler()
        self._processed_seq = self._acked_seq = resumed
        self._pictures.reset()
        self.state.began_session(name, size)
        log.info("session", camera=self.camera, session=name, resumed_after=resumed)
        return True

    # What leaves

    def _advance(self, now_s: float) -> None:
        self._drain(now_s)
        limits = self._config.limits
        if (self._results or self._missing) and now_s >= self._results_since_s + limits.commit_ms / 1000:
            self._commit()
        if self._reack_at_s is not None and now_s >= self._reack_at_s:
            self._reack_at_s = None
            self._ack()

    def _drain(self, now_s: float) -> None:
        released = self._joiner.release(now_s)
        for joined in released:
            if joined.unit is None and not (self._results or self._missing):
                self._results_since_s = now_s
            for outcome in self._pictures.process(joined):
                if not self._results:
                    self._results_since_s = time.monotonic()
                self._results.append(outcome)
                self._processed_seq = outcome.result.seq
            if joined.unit is None:
                self._missing += joined.count
                self._processed_seq = joined.frame_seq + joined.count - 1
            limits = self._config.limits
            waited_s = time.monotonic() - self._results_since_s
            if len(self._results) >= limits.commit_frames or (self._results and waited_s >= limits.commit_ms / 1000):
                self._commit()
        self.state.joined(self._joiner.counts, self._joiner.match_rate(), self._joiner.waiting)

    def _commit(self) -> None:
        """Write, then acknowledge, then report. Blocks while the database fails; gives up only to a newer owner."""
        if self._session is None or self._processed_seq is None or not (self._results or self._missing):
            return
        name = session_hex(self._session)
        results: list[FrameResult] = [outcome.result for outcome in self._results]
        batch = Batch(name, self._processed_seq, results, self._missing, self._birth)
        started_s = time.perf_counter()
        committed_ns = self._commit_until_done(batch)
        if committed_ns is None:
            return
        self.state.took("commit", (time.perf_counter() - started_s) * 1000)
        outcomes, self._results, self._missing = self._results, [], 0
        latencies = [
            (committed_ns - outcome.result.captured_ns) / 1e6 for outcome in outcomes if outcome.unit.utc_known
        ]
        self.state.committed(latencies, len(outcomes))
        self._acked_seq = self._processed_seq
        self._ack()
        self._report(name, outcomes)

    def _commit_until_done(self, batch: Batch) -> int | None:
        delay_s = RETRY_FIRST_S
        while True:
            try:
                committed_ns = self._store.commit(self.camera, self._epoch, batch)
                self.state.degrade("store", None)
                return committed_ns
            except FencedError as error:
                log.error("another owner has taken over", camera=self.camera, error=str(error))
                self._fenced = True
                self.state.dropped("fenced", len(batch.frames))
                self.state.degrade("owner", str(error))
                return None
            except StoreError as error:
                log.error("commit failed, trying again", camera=self.camera, error=str(error))
                self.state.degrade("store", str(error))
                if self._stop.wait(delay_s):
                    return None
                delay_s = min(delay_s * 2, RETRY_LAST_S)

    def _ack(self) -> None:
        if self._session is not None and self._acked_seq is not None:
            self._publish(self._topics.ack, ack_json(session_hex(self._session), self._acked_seq, self._epoch), 1)

    def _report(self, session: str, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            result, unit = outcome.result, outcome.unit
            if outcome.analysed:
                size = (unit.width, unit.height)
                payload = tracks_json(self.camera, session, result.seq, unit.utc_ns, size, result.tracks)
                self._publish(self._topics.tracks, payload, 0)
            for action in result.actions:
                self._publish(self._topics.actions, action_json(self.camera, session, unit.utc_ns, action), 0)
