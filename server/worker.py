"""One camera's worker: parses what arrives, and hands it to the session that it belongs to, which commits and
acknowledges.

It owns no thread and never waits for the other stream: whoever runs it calls `handle` for each message, and `tick` by
`next_wakeup_s` when none comes. Nothing is acknowledged before it is committed. While a commit is under way `settle`
says so: a message that is given to `handle` all the same waits for it. While the database fails, commits are tried
again, and the camera's queue fills up behind them.

The session that the camera's birth names is the one that runs: the page shows it. Any other is an earlier one, of
which the camera's spool held records when the camera was restarted: it is worked on beside the first, by a joiner,
decoder and tracker of its own, from the frame behind the last that is committed. At most MAX_EARLIER of them are open;
a camera sends one after the other.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from scene_edge.codec.errors import PacketError, SeiError, StoreError
from scene_edge.codec.identity import MAX_FRAME_SEQ, session_hex
from scene_edge.codec.packet import DELTA, KEY, SemanticPacket
from scene_edge.codec.planes import MAX_SIDE
from scene_edge.codec.sei import ANCHOR_UUID, strip_sei
from scene_edge.codec.topics import Topics
from scene_edge.codec.videomessage import VideoMessage
from scene_edge.server.clock import SYSTEM, Clock
from scene_edge.server.config import ServerConfig
from scene_edge.server.group import Ticket
from scene_edge.server.pictures import PicturePipeline
from scene_edge.server.session import Publish, SessionWorker
from scene_edge.server.state import CameraState, EarlierState
from scene_edge.server.store import Batch, FencedError, Store
from scene_edge.server.writing import Writing

MAX_JSON_BYTES = 65_536
HEX_DIGEST = re.compile(r"[0-9a-f]{16}([0-9a-f]{48})?")
SESSION = re.compile(r"[0-9a-f]{16}")
MAX_EARLIER = 2
EARLIER_IDLE_S = 10.0
"""An earlier session of which nothing has come for so long is closed, with its networks."""

UNBORN_GAP_S = 60.0
"""For so long at least a gap is awaited of a camera whose birth has not come yet."""

PicturesFactory = Callable[[CameraState], PicturePipeline]
"""Pictures that report to a state: one for the session that runs, one for each earlier one that is open."""

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
        pictures: PicturesFactory,
        publish: Publish,
        stop: threading.Event,
        clock: Clock = SYSTEM,
    ) -> None:
        self.camera, self.state = camera, state
        self._config, self._store, self._make_pictures = config, store, pictures
        self._publish, self._stop, self._clock = publish, stop, clock
        self._topics = Topics(camera)
        self._epoch = store.claim(camera)
        self._pictures = pictures(state)
        self._live: SessionWorker | None = None
        self._earlier: OrderedDict[int, SessionWorker] = OrderedDict()
        self._birth: dict[str, Any] = {}
        self._fenced = False
        self.wake: Callable[[], None] = lambda: None
        """Called, by any thread, when `settle` is worth a try."""

    # What arrives

    def handle(self, message: Inbound) -> None:
        """Take one message; bad ones are counted under their reason and otherwise ignored."""
        self._settle(wait=True)
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
            self._note_held(ledger)
        # The stamp of this message, not the present: a backlog behind it may hold the packet that is waited for.
        self._advance(message.arrived_s)

    def tick(self, now_s: float) -> None:
        """Nothing is queued: let deadlines pass and commit what is due."""
        if not self._fenced:
            self._advance(now_s)

    def settle(self) -> bool:
        """Acknowledge what is committed by now. False: a commit is under way, and `handle` would wait for it."""
        return self._settle()

    def next_wakeup_s(self) -> float | None:
        """When `tick` is due if nothing comes, no message and no `wake`; None: not before."""
        if self._fenced:
            return None
        due = [session.next_wakeup_s() for session in self._sessions]
        due += [session.heard_s + EARLIER_IDLE_S for session in self._earlier.values() if session.idle]
        times = [time_s for time_s in due if time_s is not None]
        return min(times) if times else None

    @property
    def idle(self) -> bool:
        """Everything that came is committed."""
        return self._fenced or all(session.idle for session in self._sessions)

    def close(self) -> None:
        """Commit what is finished. Frames that still wait are not acknowledged: the camera sends them again."""
        for session in self._sessions:
            if not self._fenced:
                session.commit()
        self._settle(wait=True)
        for session in self._sessions:
            session.pictures.close()
        if self._live is None:
            self._pictures.close()

    @property
    def _sessions(self) -> list[SessionWorker]:
        return [*([self._live] if self._live else []), *self._earlier.values()]

    def _on_video(self, message: Inbound) -> None:
        try:
            fragment = VideoMessage.from_bytes(message.payload)
        except PacketError:
            self.state.dropped("video_corrupt")
            return
        if self._too_large(fragment.width, fragment.height):
            return
        session = self._enter(fragment.session_id, (fragment.width, fragment.height))
        if session is not None:
            session.add_video(fragment, message.arrived_s)

    def _on_semantic(self, message: Inbound) -> None:
        try:
            packet = SemanticPacket.from_bytes(message.payload)
        except PacketError:
            self.state.dropped("semantic_corrupt")
            return
        if packet.kind not in (KEY, DELTA):
            self.state.dropped("semantic_unsupported")
            return
        if self._too_large(packet.width, packet.height):
            return
        session = self._enter(packet.session_id, (packet.width, packet.height))
        if session is not None:
            session.add_semantics(packet, message.arrived_s)

    def _too_large(self, width: int, height: int) -> bool:
        """Decoders and networks take memory by the picture: how much a camera may claim is ours to say."""
        limit = self._config.limits.max_pixels
        if width * height <= limit:
            return False
        self.state.dropped("too_many_pixels")
        self.state.degrade("size", f"pictures of {width}x{height} are refused: limits.max_pixels is {limit}")
        return True

    def _on_birth(self, payload: bytes) -> None:
        birth = self._json(payload, "birth_corrupt")
        if birth is None:
            return
        self._birth = birth
        self.state.told_birth(birth)
        for session in self._sessions:
            self._await_word(session)
        if self._live is not None:
            if birth.get("session") == self._live.name:
                self._live.birth = birth
                self._live.joiner.expect_semantics = birth.get("semantics") is True
            elif self._names_session(birth):
                self._retire()
        if birth.get("semantics") is True:
            self._prepare(birth.get("bundle"), birth.get("width"), birth.get("height"))

    def _await_word(self, session: SessionWorker) -> None:
        """A camera that tells what it holds may hold all of it, until it has. After a restart of ours its birth, which
        says so, may come behind its frames."""
        if self._birth.get("tells_held") is True:
            session.joiner.camera_holds(0)
        gap_s = self._config.join.gap_ms / 1000
        session.joiner.gap_s = gap_s if self._birth else max(gap_s, UNBORN_GAP_S)

    def _note_held(self, ledger: Mapping[str, Any]) -> None:
        """What the camera may still send, session by session. Only the session that runs can speak for the others."""
        held = ledger.get("held")
        if not isinstance(held, dict) or ledger.get("session") != self._birth.get("session"):
            return
        for session in self._sessions:
            first_seq = held.get(session.name, MAX_FRAME_SEQ + 1)
            if isinstance(first_seq, int) and not isinstance(first_seq, bool) and first_seq >= 0:
                session.joiner.camera_holds(first_seq)

    @staticmethod
    def _names_session(birth: Mapping[str, Any]) -> bool:
        name = birth.get("session")
        return isinstance(name, str) and SESSION.fullmatch(name) is not None

    def _prepare(self, bundle: object, width: object, height: object) -> None:
        """A birth names its bundle: what of it is usable is a hint, and anything else is ignored."""
        digest = bundle.get("digest") if isinstance(bundle, dict) else None
        if not (isinstance(digest, str) and HEX_DIGEST.fullmatch(digest)):
            return
        if not (isinstance(width, int) and isinstance(height, int) and min(width, height) >= 2):
            return
        if max(width, height) <= MAX_SIDE and width * height <= self._config.limits.max_pixels:
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

    def _enter(self, session_id: int, size: tuple[int, int]) -> SessionWorker | None:
        """The session of this number, opened where it is not; None while the database does not answer."""
        if self._live is not None and session_id == self._live.session_id:
            return self._live
        if session_id in self._earlier:
            self._earlier.move_to_end(session_id)
            return self._earlier[session_id]
        name = session_hex(session_id)
        try:
            resumed = self._store.last_seq(self.camera, name)
        except StoreError as error:  # not acknowledged, so the camera sends it again
            log.error("session not opened", camera=self.camera, error=str(error))
            self.state.dropped("store_unavailable")
            self.state.degrade("store", str(error))
            return None
        runs = self._birth.get("session") == name or not self._names_session(self._birth)
        if runs:
            self._retire()
            self._pictures.reset()
            self.state.began_session(name, size)
        else:
            self._make_room()
        state = self.state if runs else EarlierState(self.state)
        session = SessionWorker(
            session_id,
            self._topics,
            self._config,
            state,
            self._pictures if runs else self._make_pictures(state),
            self._publish,
            self._write,
            epoch=self._epoch,
            resumed=resumed,
            # Of an earlier session nobody says it: most likely the camera did then what it does now.
            expect_semantics=self._birth.get("semantics") is True,
            clock=self._clock,
        )
        self._await_word(session)
        if runs:
            self._live = session
            session.birth = self._birth if self._birth.get("session") == name else {}
        else:
            self._earlier[session_id] = session
        log.info("session", camera=self.camera, session=name, earlier=not runs, resumed_after=resumed)
        return session

    def _retire(self) -> None:
        """Another session runs now. What came of the one before is finished, but for what is behind frames that its
        camera may still have, and send as backfill."""
        live, self._live = self._live, None
        if live is None:
            return
        live.finish()
        if live.joiner.waiting:
            self._make_room()
            state = EarlierState(self.state)
            live.step_back(state, self._make_pictures(state))
            self._earlier[live.session_id] = live

    def _make_room(self) -> None:
        """For an earlier session."""
        if len(self._earlier) >= MAX_EARLIER:
            self._leave(next(iter(self._earlier)))

    def _leave(self, session_id: int) -> None:
        """Close an earlier session. What is not committed is not acknowledged, and comes again."""
        session = self._earlier.pop(session_id)
        session.commit()
        session.settle(wait=True)
        session.pictures.close()

    # What leaves

    def _advance(self, now_s: float) -> None:
        for session in self._sessions:
            session.advance(now_s)
        for session in list(self._earlier.values()):
            if session.idle and now_s >= session.heard_s + EARLIER_IDLE_S:
                self._leave(session.session_id)

    def _settle(self, *, wait: bool = False) -> bool:
        settled = [session.settle(wait=wait) for session in self._sessions]  # each is asked
        return self._fenced or all(settled)

    def _write(self, batch: Batch) -> Writing:
        def begin() -> Ticket:
            return self._store.begin(self.camera, self._epoch, batch, self.wake)

        def heard(error: StoreError | None) -> bool:
            if error is None:
                self.state.degrade("store", None)
                return False
            if not isinstance(error, FencedError):
                log.error("commit failed, trying again", camera=self.camera, error=str(error))
                self.state.degrade("store", str(error))
                return True
            log.error("another owner has taken over", camera=self.camera, error=str(error))
            self._fenced = True
            self.state.dropped("fenced", len(batch.frames))
            self.state.degrade("owner", str(error))
            return False

        return Writing(begin, heard, self._stop, self._clock)
