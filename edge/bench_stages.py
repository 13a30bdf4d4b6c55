"""One function for each stage of the camera: runs it over prepared pictures, gives what came out and each call's ms.

They drive the classes that the running camera drives, without threads and queues between them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scene_edge.codec.errors import SourceError, TransportError
from scene_edge.codec.h264 import H264Decoder
from scene_edge.codec.identity import AccessUnit, Frame
from scene_edge.codec.latents import FrameCode, LatentEncoder, message
from scene_edge.codec.media import frame_of, planes_of
from scene_edge.codec.packet import SemanticPacket
from scene_edge.codec.planes import Planes
from scene_edge.codec.topics import Topics
from scene_edge.codec.videomessage import split_video
from scene_edge.edge.batch import VideoBatch, Waiting
from scene_edge.edge.config import CameraConfig
from scene_edge.edge.encoders import Sequencer, VideoEncoder
from scene_edge.edge.gop import GopCoder
from scene_edge.edge.outbox import MAX_VIDEO_BYTES
from scene_edge.edge.prefilter import PreFilter
from scene_edge.edge.semantics import SemanticEncoder, offers, quantise
from scene_edge.edge.share import QualityControl
from scene_edge.edge.sources import open_source
from scene_edge.edge.transport import Listener, Message, Transport
from scene_edge.inference.stages import WARM_UP, Stopwatch

Size = tuple[int, int]
"""(width, height) in luma samples."""

SESSION_ID = 1
PUBLISH_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Captured:
    frames: list[Frame]
    fps: float
    times_ms: list[float]


@dataclass(frozen=True, slots=True)
class Mined:
    """The float latent [1, C, h, w] of frame `index`; `key`: a GOP begins with it."""

    index: int
    key: bool
    latent: NDArray[np.generic]


def capture(config: CameraConfig, size: Size, count: int) -> Captured:
    """Up to `count` pictures of the configured source, scaled to `size` where they are larger or smaller.

    Raises SourceError if there is none.
    """
    watch = Stopwatch()
    frames: list[Frame] = []
    source = open_source(config.source, max_width=size[0], frames=count)

    def read() -> Frame | None:
        frame = source.read()
        if frame is None or (frame.planes.width, frame.planes.height) == size:
            return frame
        return Frame(planes_of(frame_of(frame.planes), *size), frame.capture_ns)

    try:
        fps = source.open().fps
        while len(frames) < count and (frame := watch.time(read)) is not None:
            frames.append(frame)
    finally:
        source.close()
    if not frames:
        raise SourceError("the source gives no picture", got=config.source.url)
    return Captured(frames, fps, watch.times_ms[: len(frames)])


def filtered(scene: PreFilter, frames: Sequence[Frame]) -> tuple[list[Planes], list[float]]:
    """SCENE over all frames, with the looks at the scene when they are due.

    The kernels of this scene are folded in the warm-up: a live camera does that beside the stream.
    """
    for _ in range(WARM_UP):
        scene.apply(frames[0].planes, frames[0].capture_ns)
    watch = Stopwatch()
    return [watch.time(scene.apply, frame.planes, frame.capture_ns) for frame in frames], watch.times_ms


def encoded(
    encoder: VideoEncoder, pictures: Sequence[Planes], frames: Sequence[Frame]
) -> tuple[list[AccessUnit], list[float]]:
    """H.264; what a hardware encoder still holds after the last picture comes out untimed."""
    sequencer: Sequencer[Frame] = Sequencer(encoder)
    watch, done = Stopwatch(), []
    for planes, frame in zip(pictures, frames, strict=True):
        done += watch.time(sequencer.encode, planes, frame)
    done += sequencer.flush()
    return [item.unit for item in done], watch.times_ms


def decoded(units: Sequence[AccessUnit]) -> tuple[list[Planes], list[float]]:
    """The camera's own decode of its stream, which gives what the server will see."""
    decoder, watch, pictures = H264Decoder(), Stopwatch(), []
    for unit in units:
        pictures += watch.time(decoder.decode, unit.data, unit.frame_seq)
    return [picture.planes for picture in pictures], watch.times_ms


def mining(units: Sequence[AccessUnit], hold: int) -> Iterator[tuple[int, bool]]:
    """(index, whether it is a keyframe's) of each frame that has a latent of its own.

    >>> units = [AccessUnit(b"", n, n, n % 5 == 0) for n in range(8)]
    >>> list(mining(units, 3))
    [(0, True), (3, False), (5, True)]
    """
    since_key = 0
    for index, unit in enumerate(units):
        since_key = 0 if unit.keyframe else since_key + 1
        if since_key % hold == 0:
            yield index, unit.keyframe


def mined(
    encoder: SemanticEncoder,
    originals: Sequence[Planes],
    pictures: Sequence[Planes],
    units: Sequence[AccessUnit],
    hold: int,
) -> tuple[list[Mined], list[float]]:
    """SMC's network and the rounding of its latent, at the frames that have one."""
    step = encoder.steps[encoder.quality]

    def mine(original: Planes, lossy: Planes, key: bool) -> NDArray[np.generic]:
        latent = encoder.mine(original, lossy, key)
        quantise(latent, step)
        return latent

    for _ in range(WARM_UP):
        mine(originals[0], pictures[0], True)
    watch, found = Stopwatch(), []
    for index, key in mining(units[: len(pictures)], hold):
        found.append(Mined(index, key, watch.time(mine, originals[index], pictures[index], key)))
    return found, watch.times_ms


def entropy(
    encoder: SemanticEncoder, found: Sequence[Mined], units: Sequence[AccessUnit], control: QualityControl
) -> list[float]:
    """The entropy coder at the frames that have a latent: the keyframe's call chooses the quality too, and the last
    one of a GOP writes its message.

    A GOP that would stay silent is coded at the coarsest quality: what is measured is what speaking takes.
    """
    coarsest = max(range(len(encoder.steps)), key=lambda index: encoder.steps[index])
    watch = Stopwatch()
    gop: list[FrameCode] = []
    coder, step = LatentEncoder(encoder.qualities[coarsest].tables), encoder.steps[coarsest]

    def code(item: Mined, last: bool) -> None:
        nonlocal coder, step
        if item.key:
            gop.clear()
            chosen = control.choose(len(units[item.index].data), offers(item.latent, encoder.qualities))
            quality = encoder.qualities[coarsest if chosen is None else chosen]
            coder, step = LatentEncoder(quality.tables), quality.step
        gop.append(coder.encode(quantise(item.latent, step)))
        if last:
            message(gop)

    for item, following in zip(found, [*found[1:], None], strict=True):
        watch.time(code, item, following is None or following.key)
    return watch.times_ms


def packets(coder: GopCoder, units: Sequence[AccessUnit], originals: Sequence[Planes]) -> list[SemanticPacket]:
    """The semantic packets of the stream, untimed: what the server's stages work on."""
    found = [packet for unit, planes in zip(units, originals, strict=False) for packet in coder.push(unit, planes)]
    return [*found, *coder.flush()]


def messages(config: CameraConfig, units: Sequence[AccessUnit], size: Size, fps: float) -> list[list[bytes]]:
    """The payloads of video messages as a live camera batches them; a long one is in several fragments."""
    batch, found = VideoBatch(config.mqtt.video_batch_ms, round(1e9 / fps)), []

    def close() -> None:
        items = [item.unit for item in batch.take()]
        limit = min(MAX_VIDEO_BYTES, config.mqtt.max_message_bytes)
        if items:
            parts = split_video(items, session_id=SESSION_ID, width=size[0], height=size[1], max_bytes=limit)
            found.append([part.to_bytes() for part in parts])

    for unit in units:
        if not batch.fits(unit):
            close()
        batch.add(Waiting(unit), unit.capture_ns)
        if batch.full:
            close()
    close()
    return found


def published(transport: Transport, config: CameraConfig, payloads: Sequence[Sequence[bytes]]) -> list[float]:
    """Each message from handing it over until the broker has taken all of it, with nothing else under way.

    Raises TransportError where the broker refuses us, or takes nothing for PUBLISH_TIMEOUT_S.
    """
    topics, moved, watch = Topics(config.camera), threading.Event(), Stopwatch()
    transport.connect(
        Message(topics.status, b"offline", retain=False),
        [],
        Listener(lambda _topic, _payload: None, moved.set, lambda _reason: moved.set()),
    )

    def send(parts: Sequence[bytes]) -> None:
        for part in parts:
            transport.publish(Message(topics.video, part, config.mqtt.qos))
        while transport.in_flight():
            moved.clear()
            if transport.in_flight() and not moved.wait(PUBLISH_TIMEOUT_S):
                raise TransportError("the broker takes nothing", got=f"no answer in {PUBLISH_TIMEOUT_S:g} s")

    try:
        for parts in [*payloads[:WARM_UP], *payloads]:
            watch.time(send, parts)
    finally:
        transport.close()
    return watch.times_ms[len(payloads[:WARM_UP]) :]
