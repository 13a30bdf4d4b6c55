"""H.264 decoding, one access unit at a time: the camera does it for its own stream, the server for each camera's."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import av
import av.error
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from scene_edge.codec.annexb import MAX_ACCESS_UNIT_BYTES, has_idr
from scene_edge.codec.errors import DecoderError, FormatError
from scene_edge.codec.media import planes_of
from scene_edge.codec.planes import MAX_SIDE, Planes

__all__ = ["H264Decoder", "has_idr"]

_MAX_PENDING = 64


class H264Decoder:
    """Access units in, (frame_seq, Planes) out; low delay, so a stream without B-frames gives each picture at once.

    Bit-exact by standard. After an error the decoder starts afresh: give it a keyframe.
    """

    def __init__(self, *, threads: int = 1) -> None:
        self._threads = threads
        self._context = self._open()
        self._pending: OrderedDict[int, None] = OrderedDict()

    def decode(self, annexb: bytes, frame_seq: int) -> list[tuple[int, Planes]]:
        """The pictures that this access unit completes: none or one in a stream without B-frames.

        Raises DecoderError if FFmpeg refuses the bytes. Damage that it conceals gives a picture all the same.
        """
        if not 0 < len(annexb) <= MAX_ACCESS_UNIT_BYTES:
            raise DecoderError("access unit is empty or too large", got=f"{len(annexb)} bytes")
        packet: av.Packet[Any] = av.Packet(annexb)
        packet.pts = packet.dts = frame_seq
        self._pending[frame_seq] = None
        while len(self._pending) > _MAX_PENDING:
            self._pending.popitem(last=False)
        return self._run(packet, f"cannot decode frame {frame_seq}")

    def flush(self) -> list[tuple[int, Planes]]:
        """What the decoder still holds. It may be used again, with a keyframe."""
        pictures = self._run(None, "cannot finish decoding")
        self.reset()
        return pictures

    def reset(self) -> None:
        """Forget everything, as after a gap: the next access unit must be a keyframe."""
        self._context = self._open()
        self._pending.clear()

    def _run(self, packet: av.Packet[Any] | None, what: str) -> list[tuple[int, Planes]]:
        try:
            return [self._picture(frame) for frame in self._context.decode(packet)]
        except (av.error.FFmpegError, FormatError, ValueError, MemoryError) as error:
            self.reset()
            raise DecoderError(what, got=str(error), hint="Decoding begins again at the next keyframe.") from error

    def _picture(self, frame: VideoFrame) -> tuple[int, Planes]:
        if frame.width > MAX_SIDE or frame.height > MAX_SIDE:
            raise DecoderError("picture is too large", got=f"{frame.width}x{frame.height}", allowed=MAX_SIDE)
        frame_seq = frame.pts if frame.pts is not None else next(iter(self._pending), 0)
        self._pending.pop(frame_seq, None)
        return frame_seq, planes_of(frame)

    def _open(self) -> VideoCodecContext:
        context = av.CodecContext.create("h264", "r")
        if not isinstance(context, VideoCodecContext):
            raise DecoderError("this FFmpeg has no H.264 decoder")
        context.thread_count = self._threads
        # Frame threads would hold pictures back; slices are decoded side by side within one picture.
        context.thread_type = "SLICE"
        context.flags |= av.codec.context.Flags.low_delay
        return context
