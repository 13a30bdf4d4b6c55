"""From access units and originals to semantic packets: local decode, SMC encode, one packet per GOP. No threads."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from scene_edge.codec.errors import DecoderError
from scene_edge.codec.h264 import Decoded, H264Decoder
from scene_edge.codec.identity import AccessUnit, SessionId
from scene_edge.codec.latents import FrameCode, message
from scene_edge.codec.packet import DELTA, FLAG_GOP_CUT, KEY, SemanticPacket
from scene_edge.codec.planes import Planes
from scene_edge.codec.rans import MAX_SYMBOLS
from scene_edge.edge.semantics import SemanticEncoder
from scene_edge.edge.share import PACKET_BYTES, QualityControl

MAX_BODY_BYTES = 96_000
"""A packet is closed before its frames would take more; the message with header and topic stays below 128 KB."""


@dataclass(slots=True)
class StageTime:
    """Wall time spent in a stage, over the frames that it took."""

    frames: int = 0
    total_ns: int = 0

    def add(self, started_ns: int) -> None:
        self.frames += 1
        self.total_ns += time.perf_counter_ns() - started_ns

    @property
    def mean_ms(self) -> float:
        return self.total_ns / self.frames / 1e6 if self.frames else 0.0


@dataclass(slots=True)
class _OpenPacket:
    kind: int
    first: AccessUnit
    session_id: SessionId
    frames: list[FrameCode] = field(default_factory=list)
    bits: float = 0.0
    symbols: int = 0

    def fits(self, code: FrameCode) -> bool:
        return self.bits + code.bits <= 8 * MAX_BODY_BYTES and self.symbols + code.symbols <= MAX_SYMBOLS

    def add(self, code: FrameCode) -> None:
        self.frames.append(code)
        self.bits += code.bits
        self.symbols += code.symbols


class GopCoder:
    """Takes every access unit of the stream in order, each with its original, and gives packets as they close.

    After a gap in the numbers, or an error, the rest of that GOP is left without semantics (`lost` counts frames by
    reason) and the next keyframe begins afresh: the server could not follow the state across a gap.
    """

    def __init__(
        self,
        encoder: SemanticEncoder,
        *,
        session_id: SessionId,
        width: int,
        height: int,
        frame_period_ns: int,
        gop: int,
        control: QualityControl,
        max_latency_ms: int | None = None,
    ) -> None:
        self._encoder = encoder
        self.session_id = session_id
        """Of the access unit that is pushed next; it may change at a keyframe."""
        self._width, self._height = width, height
        self._frame_period_ns = frame_period_ns
        self._gop = gop
        self._control = control
        self._max_latency_ns = None if max_latency_ms is None else max_latency_ms * 1_000_000
        self._decoder = H264Decoder()
        self._open: _OpenPacket | None = None
        self._expected: int | None = None
        self._in_gop = 0
        self._video_bytes = self._semantic_bytes = 0
        self._chosen = False
        self.keyframe_qp: float | None = None
        """Mean quantiser of the last keyframe, where the decoder tells it."""
        self.lost: Counter[str] = Counter()
        self.decode_time, self.encode_time = StageTime(), StageTime()

    def push(self, unit: AccessUnit, original: Planes) -> list[SemanticPacket]:
        """Code one frame. Raises EngineError if the network fails; the GOP is given up by then."""
        out: list[SemanticPacket] = []
        if unit.keyframe:
            out += self._close(cut=self._in_gop > 0 and unit.frame_seq != self._expected)
            self._account()
            self._expected, self._in_gop = unit.frame_seq, 0
        self._video_bytes += len(unit.data)
        if self._expected is None or unit.frame_seq != self._expected:
            self.lost["gap"] += 1
            self._expected = None
            return out + self._close(cut=True)
        picture = self._decode(unit)
        if picture is None:
            self._expected = None
            return out + self._close(cut=True)
        if unit.keyframe:
            self.keyframe_qp = picture.qp
        started_ns = time.perf_counter_ns()
        try:
            code = self._encoder.encode(original, picture.planes, self._choose if unit.keyframe else None, picture.qp)
        except Exception:
            # The caller decides what a failed network means; here the GOP ends, so that a later call starts clean.
            self._expected = self._open = None
            raise
        self.encode_time.add(started_ns)
        if not _OpenPacket(KEY, unit, self.session_id).fits(code):
            self.lost["too_large"] += 1
            self._expected = None
            return out + self._close(cut=True)
        self._expected, self._in_gop = unit.frame_seq + 1, self._in_gop + 1
        return out + self._append(unit, code)

    def flush(self) -> list[SemanticPacket]:
        """The packet of a GOP that the end of the stream cut short."""
        return self._close(cut=False)

    @property
    def expected(self) -> int | None:
        """The frame that is due next; None while a keyframe is awaited."""
        return self._expected

    def cut(self) -> list[SemanticPacket]:
        """The rest of this GOP will not be pushed."""
        self._expected = None
        return self._close(cut=True)

    @property
    def open_from(self) -> int | None:
        """The first frame of the packet that is still open; None if every frame pushed is out or lost."""
        return None if self._open is None else self._open.first.frame_seq

    def _decode(self, unit: AccessUnit) -> Decoded | None:
        started_ns = time.perf_counter_ns()
        try:
            pictures = self._decoder.decode(unit.data, unit.frame_seq)
        except DecoderError:
            self.lost["local_decode"] += 1
            return None
        self.decode_time.add(started_ns)
        if len(pictures) != 1 or pictures[0].frame_seq != unit.frame_seq:
            self.lost["local_decode"] += 1
            return None
        return pictures[0]

    def _choose(self, bits: Sequence[float]) -> int | None:
        self._chosen = True
        return self._control.choose(self._video_bytes, bits)

    def _account(self) -> None:
        """A GOP is over: what was it worth?"""
        if self._chosen:
            self._control.spent(self._video_bytes, self._semantic_bytes)
        self._chosen = False
        self._video_bytes = self._semantic_bytes = 0

    def _append(self, unit: AccessUnit, code: FrameCode) -> list[SemanticPacket]:
        out: list[SemanticPacket] = []
        if self._open is not None and not self._open.fits(code):
            out += self._close(cut=False)
        if self._open is None:
            self._open = _OpenPacket(KEY if unit.keyframe else DELTA, unit, self.session_id)
        self._open.add(code)
        span_ns = unit.capture_ns - self._open.first.capture_ns + self._frame_period_ns
        late = self._max_latency_ns is not None and span_ns + self._frame_period_ns > self._max_latency_ns
        if late or self._in_gop >= self._gop:
            out += self._close(cut=False)
        return out

    def _close(self, *, cut: bool) -> list[SemanticPacket]:
        if self._open is None:
            return []
        opened, self._open = self._open, None
        packet = SemanticPacket(
            kind=opened.kind,
            codec_id=self._encoder.codec_id,
            bundle_digest=self._encoder.bundle.short_digest,
            session_id=opened.session_id,
            first_seq=opened.first.frame_seq,
            capture_ns=opened.first.capture_ns,
            width=self._width,
            height=self._height,
            frame_period_ns=self._frame_period_ns,
            flags=FLAG_GOP_CUT if cut else 0,
            quality=self._encoder.quality,
            count=len(opened.frames),
            body=message(opened.frames),
        )
        self._semantic_bytes += PACKET_BYTES + len(packet.body)
        return [packet]
