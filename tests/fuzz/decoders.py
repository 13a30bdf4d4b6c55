"""The full decode: latents behind their header, pictures, bundles on disk, a spool's pages, a whole camera worker."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from copy import copy
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from safetensors.numpy import save

from scene_edge.codec import ir
from scene_edge.codec.annexb import to_annexb
from scene_edge.codec.bundle import Bundle, shipped_zoo
from scene_edge.codec.errors import (
    BundleError,
    DecoderError,
    EntropyError,
    FormatError,
    PacketError,
    SeiError,
    StoreError,
)
from scene_edge.codec.h264 import H264Decoder
from scene_edge.codec.latents import I16, LatentEncoder, LatentTables, message
from scene_edge.codec.manifest import load_manifest
from scene_edge.codec.packet import CODEC_SMC_GOP, KEY, SemanticPacket
from scene_edge.codec.quality import (
    PacketDecoder,
    Quality,
    fused_from_qp,
    hold_of,
    latent_shape,
    load_qualities,
    tensors_of,
)
from scene_edge.codec.videomessage import VideoAssembler, VideoMessage
from scene_edge.edge.spool import Record
from scene_edge.edge.spool_file import Row, SpoolFile
from scene_edge.server.config import ServerConfig
from scene_edge.server.pictures import Analytics, PicturePipeline
from scene_edge.server.state import CameraState
from scene_edge.server.store import Store
from scene_edge.server.worker import CameraWorker, Inbound
from tests.fuzz.engine import Target
from tests.fuzz.headers import PACKET_PLACES, VIDEO_PLACES, ChangedBytesError, golden, read_packet, read_video
from tests.fuzz.mutate import Documents, Plain, Sealed, Tagged, Tensors
from tests.golden import recipes
from tests.server.camera import access_units

LATENTS = (PacketError, EntropyError)
LEAVES = ("video", "semantic", "birth", "ledger", "status")


def read_latents(decoder: Callable[[], PacketDecoder]) -> Callable[[bytes], None]:
    """One packet after a good key packet, if the decoder that is made holds one."""

    def run(data: bytes) -> None:
        packet = read_packet(data)
        if len(decoder().decode(packet)) != packet.count:
            raise ChangedBytesError("another number of latents than frames")

    return run


def golden_decoder(after: str | None = None) -> PacketDecoder:
    """For the golden packets, whose quality is 2; `after` is a packet that it has decoded."""
    # A copy of one that has done so once: what a decoder remembers is replaced, never changed.
    decoder = copy(_decoder_after(after))
    decoder._decoder = copy(decoder._decoder)
    return decoder


def read_riding(data: bytes) -> None:
    for packet in read_video(data):
        golden_decoder("packet_key" if packet.kind != KEY else None).decode(packet)


def shipped_decoder() -> PacketDecoder:
    return PacketDecoder(_shipped(), (16, 34, 60), 4)


def shipped_packet() -> bytes:
    """A GOP of 30 frames at 960 x 540 with the tables that ship, sparse as real ones are."""
    random = np.random.default_rng(5)
    encoder, codes = LatentEncoder(_shipped()[0].tables), []
    for _ in range(8):
        z: I16 = (random.integers(-3, 4, (16, 34, 60)) * (random.random((1, 34, 60)) < 0.03)).astype(np.int16)
        codes.append(encoder.encode(z))
    return SemanticPacket(
        KEY, CODEC_SMC_GOP, bytes(8), 1, 0, 0, 960, 540, 33_333_333, 0, 0, 30, message(codes)
    ).to_bytes()


def read_fragments(data: bytes) -> None:
    """A fragment among others of its message, in whatever order."""
    assembler = VideoAssembler()
    for fragment in _fragments():
        whole = assembler.push(VideoMessage.from_bytes(fragment))
        if whole is None:
            whole = assembler.push(VideoMessage.from_bytes(data))
        if whole is not None:
            _ = whole.units


def read_pictures(data: bytes) -> None:
    """After a good picture; a damaged one must not end the decoder, which takes the next keyframe."""
    decoder, units = H264Decoder(), _access_units()
    decoder.decode(units[0], 0)
    try:
        decoder.decode(data, 1)
    finally:
        if not decoder.decode(units[0], 2) + decoder.flush():
            raise ChangedBytesError("no picture of a good keyframe after a damaged one")


def read_avcc(data: bytes) -> None:
    """An MP4's packet behind its avcC record: the first byte says how long that is."""
    length = data[0] if data else 0
    to_annexb(data[1 + length :], data[1 : 1 + length])


def read_parameters(folder: Path) -> Callable[[bytes], None]:
    """A manifest with every use that is made of its parameters; the files are as they are."""

    def run(data: bytes) -> None:
        bundle = Bundle(folder, load_manifest(data), signed=False)
        load_qualities(bundle)
        shape, hold = latent_shape(bundle, 160, 128), hold_of(bundle)
        fused_from_qp(bundle)
        PacketDecoder(load_qualities(bundle), shape, hold)

    return run


def read_tables(folder: Path) -> Callable[[bytes], None]:
    """Tables behind a digest that fits: whoever signs a bundle may be wrong as well."""
    document = json.loads((folder / "manifest.json").read_bytes())

    def run(data: bytes) -> None:
        (folder / "tables.safetensors").write_bytes(data)
        listed = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        changed = {**document, "files": {"tables.safetensors": listed}}
        (folder / "manifest.json").write_text(json.dumps(changed))
        load_qualities(Bundle.open(folder))

    return run


def read_spool(folder: Path) -> Callable[[bytes], None]:
    """A spool's file as a start meets it: heads, payloads, then a write."""
    path = folder / "spool.sqlite"

    def run(data: bytes) -> None:
        for ending in ("", "-wal", "-shm"):
            path.with_name(path.name + ending).unlink(missing_ok=True)
        path.write_bytes(data)
        file = SpoolFile(path)
        try:
            file.open()
            heads = file.heads()
            for row, head in heads:
                if head is not None:
                    payload = file.payload(row, head.record)
                    if payload is not None and payload not in _PAYLOADS:
                        raise ChangedBytesError("a payload that nobody stored")
            next_row = file.last_row() + 1
            file.write([Row(next_row, Record("video", b"x", 1, session=1, size=1), 1)], [], [])
        finally:
            file.close()

    return run


def read_inbound() -> Callable[[bytes], None]:
    """A message to a camera's worker at the server, between a good birth and a good picture: nothing comes out."""
    store = Store("sqlite://")
    analytics = Analytics(None, None, [], 5.0)
    config = ServerConfig.model_validate({"limits": {"commit_frames": 1}})

    def run(data: bytes) -> None:
        state = CameraState("gate-1")
        worker = CameraWorker(
            "gate-1",
            config,
            store,
            state,
            lambda shown: PicturePipeline(shown, analytics, None),
            lambda _topic, _payload, _qos: None,
            threading.Event(),
        )
        worker.handle(Inbound("birth", _BIRTH, time.monotonic()))
        worker.handle(Inbound(LEAVES[data[0] % len(LEAVES)] if data else "status", data[1:], time.monotonic()))
        worker.handle(Inbound("video", golden("video_key.bin")[0], time.monotonic()))
        worker.close()
        state.tick()
        json.dumps(state.view())

    return run


def mutated_pages(seed: bytes) -> Callable[[Random], bytes]:
    """A database with some bytes of some pages changed, mostly near a page's head, where SQLite keeps its structure."""

    def mutate(random: Random) -> bytes:
        data = bytearray(seed)
        for _ in range(1 + int(random.random() * 4)):
            page = int(random.random() * (len(data) // 4096)) * 4096
            at = page + int(random.random() * (128 if random.random() < 0.6 else 4000))
            noise = random.randbytes(1 + int(random.random() * (4 if random.random() < 0.7 else 64)))
            data[at : at + len(noise)] = noise
        return bytes(data[: int(random.random() * len(data))] if random.random() < 0.05 else data[: len(seed)])

    return mutate


def decoder_targets(folder: Path) -> list[Target]:
    """`folder` is for files of the targets' own, best in memory."""
    key, delta = golden("packet_key.bin"), golden("packet_delta.bin")
    shipped, laden = (shipped_packet(),), golden("video_laden.bin")
    pictures, fragments = _access_units(), _fragments()
    avcc = (_avcc_seed(),)
    parameters = {"channels": 6, "stride": 16, "tables": "tables.safetensors", "quality_steps": [1.0, 2.0], "hold": 2}
    tables = save(tensors_of([_golden_tables(), _golden_tables()]))
    good, changing = folder / "good", folder / "changing"
    manifests = [_write_bundle(place, parameters, tables) for place in (good, changing)]
    seed = _spool_bytes(folder / "seed")
    xml = (ir.deflate(b'<?xml version="1.0"?><net/>'),)
    inbound = Tagged(
        (
            Sealed(golden("video_key.bin", "video_batch.bin", "video_laden.bin"), VIDEO_PLACES),
            Sealed(key + delta, PACKET_PLACES),
            Documents([json.loads(_BIRTH)]),
            Documents([_LEDGER]),
            Plain((b"degraded:x",)),
        )
    )
    inbound_seeds = tuple(bytes([tag]) + data for tag, data in enumerate((laden[0], key[0], _BIRTH, b"{}", b"online")))
    within = Documents(manifests[:1], "parameters")
    later = read_latents(lambda: golden_decoder("packet_key"))
    return [
        Target("latents", Sealed(key, PACKET_PLACES, 48), read_latents(golden_decoder), key, LATENTS, True, 30),
        Target("delta", Sealed(delta, (), 40), later, delta, LATENTS, True, 20),
        Target("shipped", Sealed(shipped, (), 48), read_latents(shipped_decoder), shipped, LATENTS, True, 4),
        Target("riders", Sealed(laden, VIDEO_PLACES, 40), read_riding, laden, LATENTS, True, 15),
        Target("fragments", Sealed(fragments, VIDEO_PLACES), read_fragments, fragments, (PacketError,), True, 4),
        Target("picture", Plain(pictures), read_pictures, pictures, (DecoderError,), True, 4),
        Target("avcc", Plain(avcc), read_avcc, avcc, (SeiError,), True, 8),
        Target("parameters", within, read_parameters(good), _json(manifests[:1]), (FormatError,), True, 4),
        Target("tables", Tensors(tables), read_tables(changing), (tables,), (BundleError,), True, 4),
        Target("ir", Plain(xml), lambda data: ir.inflate(data, "x.xml.gz"), xml, (BundleError,), True, 4),
        Target("spool", mutated_pages(seed), read_spool(folder), (seed,), (StoreError,), True, 2),
        Target("worker", inbound, read_inbound(), inbound_seeds, (), True, 2),
    ]  # fmt: skip


_BIRTH = json.dumps(
    {
        "session": f"{recipes.SESSION:016x}", "camera": "gate-1", "version": "0.1.0", "profile": "cpu", "width": 160,
        "height": 128, "fps": 30.0, "gop": 30, "encoder": "libx264", "engine": {"smc": "onnx"}, "semantics": True,
        "bundle": {"name": "smc-s", "digest": "00" * 32}, "degraded": ["x"], "notes": [],
    }
).encode()  # fmt: skip
_LEDGER: dict[str, Any] = {
    "session": f"{recipes.SESSION:016x}", "captured": 9, "committed": 5, "spooled": 3, "in_pipeline": 1,
    "dropped": {"queue_full": 1}, "semantics_lost": {}, "bytes": {"video": 9, "total": 9}, "kbps": {"video": 1.5},
    "latency_ms": {"p50": 1.0}, "backfill": {"recovered": 0, "dropped": {}}, "rss_mb": 99.5,
    "stage_ms": {"encode": 2.0}, "queues": {"encode": {"size": 1}}, "faults": {"source": 1},
}  # fmt: skip
_PAYLOADS = frozenset(f"payload {number}".encode() * 60 for number in range(8))


def _json(documents: Sequence[Any]) -> tuple[bytes, ...]:
    return tuple(json.dumps(document).encode() for document in documents)


@lru_cache
def _golden_tables() -> LatentTables:
    return recipes.latent_tables()


@lru_cache
def _decoder_after(name: str | None) -> PacketDecoder:
    qualities = [Quality(float(index + 1), _golden_tables()) for index in range(3)]
    decoder = PacketDecoder(qualities, (6, 8, 10))
    if name is not None:
        decoder.decode(_golden_packets()[name])
    return decoder


@lru_cache
def _golden_packets() -> dict[str, SemanticPacket]:
    return recipes.packets()


@lru_cache
def _shipped() -> tuple[Quality, ...]:
    return load_qualities(Bundle.open("smc-s", zoo=shipped_zoo()))


@lru_cache
def _access_units() -> tuple[bytes, ...]:
    return tuple(unit.data for unit in access_units(3, 96, 64))


@lru_cache
def _fragments() -> tuple[bytes, ...]:
    from scene_edge.codec.identity import AccessUnit
    from scene_edge.codec.videomessage import split_video

    unit = AccessUnit(bytes(range(1, 251)), 300, recipes.CAPTURE_NS, keyframe=True)
    parts = split_video([unit], session_id=1, width=160, height=128, max_bytes=150)
    return tuple(part.to_bytes() for part in parts)


def _avcc_seed() -> bytes:
    sps, pps, slice_ = bytes.fromhex("6742c00ada7a"), bytes.fromhex("68ce3c80"), bytes.fromhex("6588840000030102")
    record = b"\x01\x42\xc0\x0a\xff\xe1" + len(sps).to_bytes(2, "big") + sps
    record += b"\x01" + len(pps).to_bytes(2, "big") + pps
    return bytes([len(record)]) + record + len(slice_).to_bytes(4, "big") + slice_


def _write_bundle(folder: Path, parameters: dict[str, Any], tables: bytes) -> dict[str, Any]:
    folder.mkdir(parents=True)
    (folder / "tables.safetensors").write_bytes(tables)
    listed = {"sha256": hashlib.sha256(tables).hexdigest(), "bytes": len(tables)}
    document = {
        "format": 1, "name": "fuzz", "kind": "smc", "version": "1", "counter": 1, "graphs": {},
        "parameters": parameters, "files": {"tables.safetensors": listed},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(document))
    return document


def _spool_bytes(folder: Path) -> bytes:
    """A closed file of eight records."""
    file = SpoolFile(folder / "spool.sqlite")
    file.open()
    rows = [
        Row(number + 1, Record("video", payload, number, (number,), session=7, size=len(payload)), 1)
        for number, payload in enumerate(sorted(_PAYLOADS))
    ]
    file.write(rows, [], [])
    file.close()
    return (folder / "spool.sqlite").read_bytes()
