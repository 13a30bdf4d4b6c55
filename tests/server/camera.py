"""A camera in memory for the server's tests: real H.264 from libx264, and packets for a tiny SMC bundle made here."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from scene_edge.codec.bundle import Bundle, write_bundle
from scene_edge.codec.identity import AccessUnit, session_hex
from scene_edge.codec.latents import LatentEncoder, LatentTables, message
from scene_edge.codec.packet import CODEC_SMC_GOP, DELTA, KEY, SemanticPacket, split_video
from scene_edge.codec.planes import Planes
from scene_edge.codec.quality import load_qualities, tensors_of
from scene_edge.codec.riders import Carrier, write_riders
from scene_edge.codec.sei import ANCHOR_UUID, Anchor, insert_sei
from scene_edge.server.worker import Inbound

WIDTH, HEIGHT, CHANNELS, GOP, FPS = 96, 64, 3, 5, 25
PERIOD_NS = 1_000_000_000 // FPS
DARKER = 24
"""A latent of 1 in channel 0 makes the tiny decoder's picture darker by so much, on average over the channels."""


def picture(index: int, width: int = WIDTH, height: int = HEIGHT) -> Planes:
    """A grey gradient with a bright square that moves."""
    y = np.tile(np.linspace(60, 160, width, dtype=np.uint8), (height, 1))
    x = (4 + index) % (width - 16)
    y[16:32, x : x + 16] = 230
    return Planes(
        y, np.full((height // 2, width // 2), 110, np.uint8), np.full((height // 2, width // 2), 140, np.uint8)
    )


def access_units(count: int, width: int = WIDTH, height: int = HEIGHT, gop: int = GOP) -> list[AccessUnit]:
    """`count` frames of H.264 without B-frames, each keyframe with its headers."""
    context = av.CodecContext.create("libx264", "w")
    context.width, context.height, context.pix_fmt = width, height, "yuv420p"
    context.time_base, context.framerate, context.gop_size = Fraction(1, FPS), Fraction(FPS), gop
    context.options = {
        "preset": "ultrafast",
        "tune": "zerolatency",
        "x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0:repeat-headers=1:annexb=1",
    }
    units: list[AccessUnit] = []
    for index in range(count):
        planes = picture(index, width, height)
        array = np.concatenate((planes.y, np.concatenate((planes.u.ravel(), planes.v.ravel())).reshape(-1, width)))
        frame = av.VideoFrame.from_ndarray(array, format="yuv420p")
        frame.pts = index
        for packet in context.encode(frame):
            units.append(AccessUnit(bytes(packet), index, index * PERIOD_NS, bool(packet.is_keyframe)))
    assert len(units) == count
    return units


def latents(count: int, width: int = WIDTH, height: int = HEIGHT) -> list[NDArray[np.int16]]:
    random = np.random.default_rng(7)
    shape = (CHANNELS, -(-height // 32) * 2, -(-width // 32) * 2)
    return [random.integers(-3, 4, shape).astype(np.int16) for _ in range(count)]


def smc_bundle(folder: Path) -> Bundle:
    """A bundle whose decoder adds the mean of the latents (times DARKER) to the picture, and counts in its states."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    inputs = [
        ("lossy", TensorProto.UINT8, [1, "h", "w", 24]),
        ("latent", TensorProto.FLOAT, [1, CHANNELS, "h4", "w4"]),
        ("state_lossy", TensorProto.FLOAT, [1, 2, "h4", "w4"]),
        ("state_fuse", TensorProto.FLOAT, [1, 2, "h2", "w2"]),
    ]
    outputs = [
        ("fused", TensorProto.UINT8, [1, "h", "w", 24]),
        ("next_lossy", TensorProto.FLOAT, [1, 2, "h4", "w4"]),
        ("next_fuse", TensorProto.FLOAT, [1, 2, "h2", "w2"]),
    ]
    constants = [
        helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]),
        helper.make_tensor("scale", TensorProto.FLOAT, [1], [-float(DARKER)]),
        helper.make_tensor("low", TensorProto.FLOAT, [], [0.0]),
        helper.make_tensor("high", TensorProto.FLOAT, [], [255.0]),
    ]
    nodes = [
        helper.make_node("Cast", ["lossy"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["latent"], ["mean"], keepdims=1),
        helper.make_node("Mul", ["mean", "scale"], ["shift"]),
        helper.make_node("Add", ["x", "shift"], ["moved"]),
        helper.make_node("Clip", ["moved", "low", "high"], ["clipped"]),
        helper.make_node("Cast", ["clipped"], ["fused"], to=TensorProto.UINT8),
        helper.make_node("Add", ["state_lossy", "one"], ["next_lossy"]),
        helper.make_node("Add", ["state_fuse", "one"], ["next_fuse"]),
    ]
    graph = helper.make_graph(
        nodes,
        "decoder",
        [helper.make_tensor_value_info(*spec) for spec in inputs],
        [helper.make_tensor_value_info(*spec) for spec in outputs],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(folder / "decoder.fp32.onnx"))
    random = np.random.default_rng(3)
    feeds = {
        "lossy": random.integers(60, 180, (1, 16, 24, 24), dtype=np.uint8),
        "latent": random.normal(size=(1, CHANNELS, 4, 6)).astype(np.float32),
        "state_lossy": np.zeros((1, 2, 4, 6), np.float32),
        "state_fuse": np.zeros((1, 2, 8, 12), np.float32),
    }
    ran = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)
    golden = {f"in.{name}": value for name, value in feeds.items()}
    golden |= {f"out.{name}": value for (name, _, _), value in zip(outputs, ran, strict=True)}
    save_file(golden, folder / "decoder.golden.safetensors")
    values = np.stack(latents(20))
    tables = [LatentTables.fit([values], max_abs=4), LatentTables.fit([values // 2], max_abs=2)]
    save_file(tensors_of(tables), folder / "tables.safetensors")

    def specs(items: list[tuple[str, int, list[int | str]]]) -> list[dict[str, object]]:
        kinds = {TensorProto.UINT8: "uint8", TensorProto.FLOAT: "float32"}
        return [
            {"name": n, "dtype": kinds[kind], "shape": [None if isinstance(side, str) else side for side in shape]}
            for n, kind, shape in items
        ]

    manifest = {
        "format": 1,
        "name": "smc-tiny",
        "kind": "smc",
        "version": "0.0.1",
        "counter": 1,
        "graphs": {
            "decoder": {
                "inputs": specs(inputs),
                "outputs": specs(outputs),
                "artifacts": [{"engine": "onnx", "precision": "fp32", "file": "decoder.fp32.onnx", "shape": None}],
                "golden": {"file": "decoder.golden.safetensors", "tolerance": 0.05},
            }
        },
        "parameters": {
            "channels": CHANNELS,
            "stride": 16,
            "tables": "tables.safetensors",
            "quality_steps": [1.0, 2.0],
        },
        "quantisation": {},
        "training": {},
    }
    return write_bundle(folder, manifest)


def packets(
    bundle: Bundle,
    session_id: int,
    values: list[NDArray[np.int16]],
    *,
    gop: int = GOP,
    chunk: int = GOP,
    quality: int = 0,
) -> list[SemanticPacket]:
    """Packets of `chunk` frames; a packet that begins a GOP is a key packet."""
    tables = load_qualities(bundle)[quality].tables
    out = []
    for start in range(0, len(values), chunk):
        key = start % gop == 0
        if key:
            encoder = LatentEncoder(tables)
        codes = [encoder.encode(value) for value in values[start : start + chunk]]
        out.append(
            SemanticPacket(
                KEY if key else DELTA,
                CODEC_SMC_GOP,
                bundle.short_digest,
                session_id,
                start,
                start * PERIOD_NS,
                WIDTH,
                HEIGHT,
                PERIOD_NS,
                0,
                quality,
                len(codes),
                message(codes),
            )
        )
    return out


@dataclass
class FakeCamera:
    """One session's messages as bytes. `utc_offset_ns` says that the whole clip was captured before now."""

    bundle: Bundle | None
    frames: int = 2 * GOP
    session_id: int = 0xABCDEF
    camera: str = "gate-1"
    max_bytes: int = 120_000
    units: list[AccessUnit] = field(init=False)
    packets: list[SemanticPacket] = field(init=False)
    latents: list[NDArray[np.int16]] = field(init=False)
    utc_offset_ns: int = field(default_factory=lambda: time.time_ns() - 10 * 10**9)

    def __post_init__(self) -> None:
        self.units = []
        for unit in access_units(self.frames):
            data = unit.data
            if unit.keyframe:
                anchor = Anchor(self.session_id, unit.frame_seq, unit.capture_ns, self.utc_offset_ns)
                data = insert_sei(data, anchor.to_bytes(), ANCHOR_UUID)
            self.units.append(replace(unit, data=data, utc_offset_ns=self.utc_offset_ns))
        self.latents = latents(self.frames)
        self.packets = packets(self.bundle, self.session_id, self.latents) if self.bundle else []

    @property
    def session(self) -> str:
        return session_hex(self.session_id)

    def birth(self, **changes: object) -> bytes:
        facts: dict[str, object] = {
            "session": self.session,
            "profile": "cpu",
            "width": WIDTH,
            "height": HEIGHT,
            "fps": FPS,
            "gop": GOP,
            "encoder": "libx264",
            "engine": {"scene": "openvino int8", "smc": "openvino int8"},
            "degraded": [],
            "version": "0.1.0",
            "semantics": self.bundle is not None,
        }
        return json.dumps({**facts, **changes}).encode()

    def video(self, index: int) -> list[bytes]:
        """The messages of one access unit."""
        return self.message(index, index + 1)

    def message(self, start: int, end: int, riding: Sequence[SemanticPacket] = ()) -> list[bytes]:
        """One video message with the access units from `start` to before `end`, or its fragments."""
        first = self.units[start]
        carrier = Carrier(self.session_id, first.frame_seq, first.capture_ns, WIDTH, HEIGHT)
        messages = split_video(
            self.units[start:end],
            session_id=self.session_id,
            width=WIDTH,
            height=HEIGHT,
            riders=write_riders(riding, carrier),
            max_bytes=self.max_bytes,
        )
        return [message.to_bytes() for message in messages]

    def laden_stream(self) -> Iterator[tuple[str, bytes]]:
        """The same with a message for each GOP, in which the packet of the one before rides; the last goes alone."""
        yield "birth", self.birth()
        for number in range(len(self.packets)):
            for payload in self.message(number * GOP, (number + 1) * GOP, self.packets[max(0, number - 1) : number]):
                yield "video", payload
        yield "semantic", self.packets[-1].to_bytes()

    def stream(
        self, *, lose_packets: tuple[int, ...] = (), lose_frames: tuple[int, ...] = ()
    ) -> Iterator[tuple[str, bytes]]:
        """(leaf, payload) in the order in which a camera sends: birth, each frame, each packet when its GOP is over."""
        yield "status", b"online"
        yield "birth", self.birth()
        for index in range(self.frames):
            if index not in lose_frames:
                for payload in self.video(index):
                    yield "video", payload
            for number, packet in enumerate(self.packets):
                if packet.last_seq == index and number not in lose_packets:
                    yield "semantic", packet.to_bytes()


def inbound(leaf: str, payload: bytes, arrived_s: float | None = None) -> Inbound:
    return Inbound(leaf, payload, time.monotonic() if arrived_s is None else arrived_s)
