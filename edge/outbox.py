"""Between the camera's stages and the spool: what shares a message, who rides in it, and the books of both.

Consecutive access units share a message (batch.py). Until it is closed they are in the pipeline, for the ledger; then
all of them are in the spool, or dropped. A small semantic packet rides in the next message that is closed (riders.py);
where none follows for a while, it goes alone.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scene_edge.codec.identity import AccessUnit, SessionId
from scene_edge.codec.packet import SemanticPacket
from scene_edge.codec.riders import Carrier, write_riders
from scene_edge.codec.videomessage import split_video
from scene_edge.edge.batch import VideoBatch, Waiting
from scene_edge.edge.clip import with_anchor
from scene_edge.edge.clock import Clock
from scene_edge.edge.config import CameraConfig
from scene_edge.edge.ledger import Ledger
from scene_edge.edge.riders import MAX_BODY_BYTES, Riders
from scene_edge.edge.sources import SourceInfo
from scene_edge.edge.spool import Record, Spool

MAX_VIDEO_BYTES = 120_000
"""A longer message goes in fragments."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An access unit without its picture, and the session that its number belongs to."""

    unit: AccessUnit
    utc_offset_ns: int
    taken_ns: int
    session_id: SessionId


class Outbox:
    """Video belongs to one thread, packets to one thread; they may be two. What cannot be spooled is counted here."""

    def __init__(
        self,
        config: CameraConfig,
        info: SourceInfo,
        spool: Spool,
        ledger: Ledger,
        *,
        session_id: int,
        utc_quality: int,
        clock: Clock,
        stopping: threading.Event,
    ) -> None:
        self._config, self._info, self._spool, self._ledger = config, info, spool, ledger
        self._session_id, self._utc_quality, self._clock, self._stopping = session_id, utc_quality, clock, stopping
        self._lossless = not info.live
        batch_ms = config.mqtt.video_batch_ms
        self._batch = VideoBatch(None if self._lossless and batch_ms else batch_ms, info.frame_period_ns)
        self._riders = Riders()
        self.patience_s = (batch_ms * 1_000_000 + 2 * info.frame_period_ns) / 1e9
        """For so long a packet waits for pictures to ride with, where none come."""

    def begin_session(self, session_id: int) -> bool:
        """The next access unit, a keyframe, is the first of another session; False if that cannot be at this moment.
        In the video's thread."""
        self.close_message()
        self.send_riders()
        if not self._spool.begin_session(session_id):
            return False
        self._session_id = session_id
        return True

    # Video

    def left_s(self) -> float | None:
        """How long the open message may wait for the next access unit; None: as long as it takes."""
        return self._batch.left_s(self._clock.now_ns())

    def add_video(self, outgoing: Outgoing) -> bool:
        """Add an access unit to the open message; False if the spool refused it or what it needs."""
        unit = outgoing.unit
        try:
            marked = with_anchor(
                unit, outgoing.utc_offset_ns, self._session_id, self._config.video.sei, self._utc_quality
            )
            marked = replace(marked, utc_offset_ns=outgoing.utc_offset_ns)
            closed = self._batch.fits(marked) or self.close_message()
        except BaseException:
            self._ledger.drop("failed")
            raise
        if not closed and not unit.keyframe and not self._lossless:
            self.drop_video(1)
            return False
        waiting = Waiting(marked, len(marked.data) - len(unit.data), outgoing.taken_ns)
        self._batch.add(waiting, self._clock.now_ns())
        return self.close_message() if self._batch.full else True

    def drop_video(self, frames: int) -> None:
        """Count frames for which there is no room, or of which an earlier one is missing."""
        self._ledger.drop("shutdown" if self._stopping.is_set() else "spool_full", frames)

    def close_message(self) -> bool:
        """The open message into the spool, if there is any; False if it was refused, and its frames dropped."""
        items = self._batch.take()
        if not items:
            return True
        packets = self._fitting_riders()
        try:
            riders, payloads = self._message(items, packets)
        except BaseException:
            self._ledger.drop("failed", len(items))
            raise
        last_frame = items[-1].unit.frame_seq
        # A packet may reach further than the pictures that it rides with: until all of them are safe it is kept.
        last_seq = max([last_frame, *(packet.last_seq for packet in packets)])
        taken_ns = tuple(item.taken_ns for item in items)
        records = [Record("video", payload, last_seq, (), last_frame) for payload in payloads[:-1]]
        records.append(Record("video", payloads[-1], last_seq, taken_ns, last_frame))
        self._ledger.spool(len(items))
        if not self._put(records):
            self._ledger.unspool(len(items))
            self.drop_video(len(items))
            for packet in packets:
                self._send_alone(packet)
            return False
        for packet in packets:
            self._ledger.code_semantics(packet.count)
        data_bytes, sei_bytes = sum(len(item.unit.data) for item in items), sum(item.sei_bytes for item in items)
        self._ledger.add_bytes(
            media_ns=items[-1].unit.capture_ns,
            video=data_bytes - sei_bytes,
            sei=sei_bytes,
            semantic=len(riders),
            overhead=sum(map(len, payloads)) - data_bytes - len(riders),
        )
        return True

    def abandon_video(self) -> int:
        """Give up the open message; returns how many frames were in it, for the caller to account for."""
        return len(self._batch.take())

    # Semantics

    @property
    def has_riders(self) -> bool:
        """Whether a packet waits for pictures to ride with."""
        return bool(len(self._riders))

    def add_packets(self, packets: Sequence[SemanticPacket]) -> None:
        """Small ones wait for a message to ride in, large ones go at once."""
        for packet in packets:
            if len(packet.body) <= MAX_BODY_BYTES and packet.session_id == self._session_id:
                self._riders.add(packet)
            else:
                self._send_alone(packet)

    def send_riders(self) -> None:
        """Packets that found nothing to ride in go alone."""
        while packets := self._riders.take():
            for packet in packets:
                self._send_alone(packet)

    def abandon_riders(self) -> None:
        """Count packets that will never leave."""
        while packets := self._riders.take():
            self._ledger.lose_semantics("failed", sum(packet.count for packet in packets))

    def _fitting_riders(self) -> list[SemanticPacket]:
        """Those that wait and fit; a packet that came too late for the last message of its session goes alone."""
        packets = self._riders.take()
        for packet in packets:
            if packet.session_id != self._session_id:
                self._send_alone(packet)
        return [packet for packet in packets if packet.session_id == self._session_id]

    def _message(self, items: Sequence[Waiting], packets: Sequence[SemanticPacket]) -> tuple[bytes, list[bytes]]:
        """The bytes of the packets, and the payloads of the message that they ride in."""
        first, size = items[0].unit, (self._info.width, self._info.height)
        riders = write_riders(packets, Carrier(self._session_id, first.frame_seq, first.capture_ns, *size))
        messages = split_video(
            [item.unit for item in items],
            session_id=self._session_id,
            width=size[0],
            height=size[1],
            riders=riders,
            max_bytes=min(MAX_VIDEO_BYTES, self._config.mqtt.max_message_bytes),
        )
        return riders, [message.to_bytes() for message in messages]

    def _put(self, records: list[Record]) -> bool:
        """Live: at once or not at all. A source that can wait: as soon as the server has made room."""
        if self._spool.put(records):
            return True
        if not self._lossless:
            return False
        with self._spool.changed:
            while not self._stopping.is_set():
                if self._spool.put(records, must=self._spool.counts().records == 0):
                    return True
                self._spool.changed.wait()
        return False

    def _send_alone(self, packet: SemanticPacket) -> None:
        data = packet.to_bytes()
        # A packet is small and frames wait for it at the server: it never waits for room itself.
        session = 0 if packet.session_id == self._session_id else packet.session_id
        if self._spool.put([Record("semantic", data, packet.last_seq, session=session)], must=True):
            self._ledger.code_semantics(packet.count)
            self._ledger.add_bytes(semantic=len(data))
        else:
            self._ledger.lose_semantics("too_late", packet.count)

    def wake(self) -> None:
        """Whoever waits for room looks again: the camera may be stopping."""
        with self._spool.changed:
            self._spool.changed.notify_all()
