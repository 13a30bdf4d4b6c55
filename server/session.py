"""One session's way through the server: join, pictures, results, commit, acknowledgement. No thread, no parsing.

A camera has one session that runs, and may send what earlier ones left in its spool beside it: each has an object of
its own here, so that neither waits for the other's packets or disturbs its decoder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scene_edge.codec.errors import PacketError
from scene_edge.codec.identity import session_hex
from scene_edge.codec.packet import SemanticPacket
from scene_edge.codec.riders import carrier_of, read_riders
from scene_edge.codec.topics import Topics
from scene_edge.codec.videomessage import VideoAssembler, VideoMessage
from scene_edge.server.clock import Clock
from scene_edge.server.config import ServerConfig
from scene_edge.server.join import Joiner, VideoUnit
from scene_edge.server.pictures import Outcome, PicturePipeline
from scene_edge.server.results import ack_json, action_json, missing_json, tracks_json
from scene_edge.server.state import CameraState
from scene_edge.server.store import Batch
from scene_edge.server.writing import Writing

REACK_EVERY_S = 0.2
ASK_EVERY_S = 3.0
"""While a gap does not fill: on a slow line the answer takes its time, and asking again begins it anew."""

Publish = Callable[[str, bytes, int], None]
"""(topic, payload, QoS): must not block."""

Write = Callable[[Batch], Writing]
"""Hand a batch over to be written."""


@dataclass(frozen=True, slots=True)
class _Handed:
    """What is on its way into the store, and what to do with it then."""

    writing: Writing
    outcomes: list[Outcome]
    last_seq: int
    began_s: float


class SessionWorker:
    """`resumed` is the last frame that is committed already. `epoch` goes into every acknowledgement."""

    def __init__(
        self,
        session_id: int,
        topics: Topics,
        config: ServerConfig,
        state: CameraState,
        pictures: PicturePipeline,
        publish: Publish,
        write: Write,
        *,
        epoch: int,
        resumed: int | None,
        expect_semantics: bool,
        clock: Clock,
    ) -> None:
        self.session_id, self.name = session_id, session_hex(session_id)
        self.state, self.pictures = state, pictures
        self.birth: Mapping[str, Any] = {}
        self._topics, self._limits, self._publish, self._write = topics, config.limits, publish, write
        self._epoch, self._clock = epoch, clock
        join = config.join
        self.joiner = Joiner(
            join.deadline_ms / 1000,
            next_seq=None if resumed is None else resumed + 1,
            expect_semantics=expect_semantics,
            max_frames=join.max_frames,
            max_bytes=join.max_bytes,
            gap_s=join.gap_ms / 1000,
        )
        self._assembler = VideoAssembler()
        self._results: list[Outcome] = []
        self._handed: _Handed | None = None
        self._results_since_s = 0.0
        self._committed_s = -1e9
        self._missing = 0
        self._told_company = 1
        self._processed_seq = self._acked_seq = resumed
        self._reack_at_s: float | None = None
        self._asked: tuple[int, float] | None = None
        self.heard_s = clock.now_s()

    # What arrives

    def add_video(self, fragment: VideoMessage, arrived_s: float) -> None:
        """A message, or a fragment of one; bad ones are counted under their reason."""
        self.heard_s = arrived_s
        try:
            whole = self._assembler.push(fragment)
        except PacketError:
            self.state.dropped("video_fragments")
            return
        if whole is None:
            return
        try:
            for packet in read_riders(whole.riders, carrier_of(whole)):
                self.add_semantics(packet, arrived_s)
            self.state.rode(len(whole.riders))
        except PacketError:  # the pictures are whole all the same
            self.state.dropped("semantic_corrupt")
        for unit in whole.units:
            known = unit.utc_offset_ns != 0
            picture = VideoUnit(
                self.session_id,
                unit.frame_seq,
                unit.capture_ns,
                unit.capture_ns + unit.utc_offset_ns if known else self._clock.utc_ns(),
                known,
                unit.keyframe,
                fragment.width,
                fragment.height,
                unit.data,
            )
            if not self.joiner.add_video(picture, arrived_s) and self._reack_at_s is None:
                self._reack_at_s = arrived_s + REACK_EVERY_S

    def add_semantics(self, packet: SemanticPacket, arrived_s: float) -> None:
        self.heard_s = arrived_s
        self.joiner.expect_semantics = True
        self.joiner.add_semantics(packet)

    # What leaves

    def next_wakeup_s(self) -> float | None:
        """When `advance` is due if nothing comes, no message and no word of the store; None: not before."""
        if self._handed is not None:
            return self._handed.writing.retry_at_s
        due = [self.joiner.next_deadline_s(), self._reack_at_s]
        if self._asked and self.joiner.missing() is not None:
            due.append(self._asked[1] + ASK_EVERY_S)
        if self._results or self._missing:
            due.append(self._commit_due_s)
        times = [time_s for time_s in due if time_s is not None]
        return min(times) if times else None

    @property
    def idle(self) -> bool:
        """Everything that came is committed."""
        return not (self.joiner.waiting or self._results or self._missing or self._handed)

    def advance(self, now_s: float) -> None:
        """Let deadlines pass, commit what is due."""
        self.settle()
        self._drain(now_s)
        if self._handed is None and (self._results or self._missing) and now_s >= self._commit_due_s:
            self.commit()
        if self._reack_at_s is not None and now_s >= self._reack_at_s:
            self._reack_at_s = None
            self._ack()
        self._ask(now_s)

    @property
    def _commit_due_s(self) -> float:
        """At once after a pause, else `commit_ms` after the commit before: cameras share transactions (group.py), so
        waiting saves little beyond that."""
        return max(self._results_since_s, self._committed_s + self._limits.commit_ms / 1000)

    def finish(self) -> None:
        """No semantics come any more: commit what waits for nothing else, and wait until it is written. What is left
        is behind frames that the camera may still have."""
        self._drain(self._clock.now_s(), hurry=True)
        self.commit()
        self.settle(wait=True)

    def step_back(self, state: CameraState, pictures: PicturePipeline) -> None:
        """Another session runs now: from here on it reports to another state, and has a decoder of its own."""
        self.state, self.pictures = state, pictures

    def commit(self) -> None:
        """Hand over what is finished. One batch is under way at a time: what was handed over before is awaited."""
        if not self.settle(wait=True) or self._processed_seq is None or not (self._results or self._missing):
            return
        results = [outcome.result for outcome in self._results]
        batch = Batch(self.name, self._processed_seq, results, self._missing, self.birth)
        began_s = time.perf_counter()
        self._handed = _Handed(self._write(batch), self._results, self._processed_seq, began_s)
        self._results, self._missing = [], 0
        self.settle()

    def settle(self, *, wait: bool = False) -> bool:
        """Acknowledge, then report, what was handed over and is written now (`wait`: wait for that, also while the
        store fails). False: it is not."""
        handed = self._handed
        if handed is None:
            return True
        committed_ns = handed.writing.wait() if wait else handed.writing.poll()
        if committed_ns is None:
            return False
        self._handed, outcomes = None, handed.outcomes
        self.state.took("commit", (time.perf_counter() - handed.began_s) * 1000)
        self._committed_s = self._clock.now_s()
        latencies = [
            (committed_ns - outcome.result.captured_ns) / 1e6 for outcome in outcomes if outcome.unit.utc_known
        ]
        self.state.committed(latencies, len(outcomes))
        self._acked_seq = handed.last_seq
        self._ack()
        self._report(outcomes)
        return True

    def _drain(self, now_s: float, *, hurry: bool = False) -> None:
        released = self.joiner.release(now_s, hurry=hurry)
        for joined in released:
            if joined.unit is None and not (self._results or self._missing):
                self._results_since_s = now_s
            for outcome in self.pictures.process(joined):
                if not self._results:
                    self._results_since_s = self._clock.now_s()
                self._results.append(outcome)
                self._processed_seq = outcome.result.seq
            if joined.unit is None:
                self._missing += joined.count
                self._processed_seq = joined.frame_seq + joined.count - 1
            limits = self._limits
            waited_s = self._clock.now_s() - self._results_since_s
            if len(self._results) >= limits.commit_frames or (self._results and waited_s >= limits.commit_ms / 1000):
                self.commit()
        self.state.joined(self.joiner.counts, self.joiner.match_rate(), self.joiner.waiting)

    def _ack(self) -> None:
        if self._acked_seq is None:
            return
        cameras, told = self.state.company(), None
        if abs(cameras - self._told_company) * 5 > self._told_company:  # roughly is enough, and costs no bytes
            self._told_company = told = cameras
        self._publish(self._topics.ack, ack_json(self.name, self._acked_seq, self._epoch, told), 0)

    def _ask(self, now_s: float) -> None:
        """Frames are missing that their camera keeps until they are acknowledged, and later ones must not acknowledge
        them: a broker that was restarted or full has lost them, or we came after them."""
        missing = self.joiner.missing()
        if missing is None:
            self._asked = None
            return
        if self._asked is not None:
            filling, due = missing != self._asked[0], now_s >= self._asked[1] + ASK_EVERY_S
            if filling:
                self._asked = missing, now_s
            if filling or not due:
                return
        self._asked = missing, now_s
        self._publish(self._topics.ack, missing_json(self.name, self._acked_seq, missing, self._epoch), 0)

    def _report(self, outcomes: list[Outcome]) -> None:
        camera = self.state.camera
        for outcome in outcomes:
            result, unit = outcome.result, outcome.unit
            if outcome.analysed:
                size = (unit.width, unit.height)
                payload = tracks_json(camera, self.name, result.seq, unit.utc_ns, size, result.tracks)
                self._publish(self._topics.tracks, payload, 0)
            for action in result.actions:
                self._publish(self._topics.actions, action_json(camera, self.name, unit.utc_ns, action), 0)
