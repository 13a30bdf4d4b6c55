"""What the golden files hold, computed from nothing but integers; run as a module to write them anew.

A file that changes means that coded output changed for the same input: a new major version, never a quiet fix.
`python -m tests.golden.recipes` writes the files.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scene_edge.codec import rans
from scene_edge.codec.identity import AccessUnit
from scene_edge.codec.latents import LatentEncoder, LatentTables, message
from scene_edge.codec.packet import BIRTH, CODEC_NONE, CODEC_SMC_GOP, DELTA, KEY, SemanticPacket
from scene_edge.codec.riders import Carrier, write_riders
from scene_edge.codec.sei import ANCHOR_UUID, SEMANTIC_UUID, UTC_LOCKED, Anchor, insert_sei
from scene_edge.codec.videomessage import VideoMessage, split_video

FOLDER = Path(__file__).parent

SESSION = 0x0123456789ABCDEF
CAPTURE_NS = 1_234_567_890_123
UTC_OFFSET_NS = 1_790_000_000_000_000_000
ACCESS_UNIT = bytes.fromhex(
    "00000001 6742c00a da7a"  # SPS
    "00000001 68ce3c80"  # PPS
    "000001 6588 8400 0003 0102"  # IDR slice
)


def noise(count: int, seed: int) -> NDArray[np.int64]:
    """Integers 0..32767 from a linear congruential generator: the same for every numpy."""
    values, state = [], seed
    for _ in range(count):
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        values.append(state >> 16)
    return np.asarray(values, np.int64)


def latent_gop() -> NDArray[np.int16]:
    """[T=4, C=6, 8, 10]: sparse channels, one always silent, a frame of zeros, values beyond every symbol."""
    frames = noise(4 * 6 * 80, seed=7).reshape(4, 6, 8, 10)
    spread = np.asarray([0, 1, 2, 3, 5, 9]).reshape(1, 6, 1, 1)
    values = np.where(frames % 3 == 0, frames // 3 % (2 * spread + 1) - spread, 0).astype(np.int16)
    values[1, 2:] = values[0, 2:]
    values[2] = 0
    values[3, 5, 0, :4] = (32767, -32768, 40, -300)
    return values


def latent_tables() -> LatentTables:
    return LatentTables.fit([latent_gop()[:3]], max_abs=7)


def rans_tables() -> rans.Tables:
    return rans.Tables.from_frequencies(rans.quantise(noise(5 * 12, seed=3).reshape(5, 12) ** 2))


def rans_input() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return noise(400, seed=1) % 12, noise(400, seed=2) % 5


def latent_messages(sizes: tuple[int, ...] = (4,)) -> tuple[bytes, ...]:
    """The GOP as messages of so many frames each."""
    encoder, messages = LatentEncoder(latent_tables()), []
    frames = iter([encoder.encode(z) for z in latent_gop()])
    for size in sizes:
        messages.append(message([next(frames) for _ in range(size)]))
    return tuple(messages)


def packets() -> dict[str, SemanticPacket]:
    digest = bytes(range(8))
    key, delta = latent_messages((3, 1))
    shared = {"bundle_digest": digest, "session_id": SESSION, "width": 160, "height": 128, "flags": 0}
    return {
        "packet_key": SemanticPacket(
            kind=KEY,
            codec_id=CODEC_SMC_GOP,
            first_seq=300,
            capture_ns=CAPTURE_NS,
            frame_period_ns=33_333_333,
            quality=2,
            count=3,
            body=key,
            **shared,
        ),
        "packet_delta": SemanticPacket(
            kind=DELTA,
            codec_id=CODEC_SMC_GOP,
            first_seq=303,
            capture_ns=CAPTURE_NS + 3 * 33_333_333,
            frame_period_ns=33_333_333,
            quality=2,
            count=1,
            body=delta,
            **shared,
        ),
        "packet_birth": SemanticPacket(
            kind=BIRTH,
            codec_id=CODEC_NONE,
            first_seq=0,
            capture_ns=0,
            frame_period_ns=0,
            quality=0,
            count=1,
            body=b'{"profile":"cpu"}',
            **shared,
        ),
    }


def videos() -> dict[str, VideoMessage]:
    unit = AccessUnit(ACCESS_UNIT, 300, CAPTURE_NS, keyframe=True)
    delta = AccessUnit(ACCESS_UNIT[-12:], 301, CAPTURE_NS + 33_333_333, keyframe=False)
    later = AccessUnit(ACCESS_UNIT[-12:] * 11, 302, CAPTURE_NS + 66_666_600, keyframe=False)
    known = [
        replace(item, utc_offset_ns=UTC_OFFSET_NS + 500 * index) for index, item in enumerate((unit, delta, later))
    ]
    sent = {"session_id": SESSION, "width": 160, "height": 128}
    return {
        "video_key": split_video(known[:1], **sent)[0],
        "video_batch": split_video(known, **sent)[0],
        "video_fragment": split_video([delta, later], max_bytes=100, **sent)[1],
        "video_laden": split_video(known[1:], riders=riders(), **sent)[0],
    }


def riders() -> bytes:
    """A key and a delta packet with the video that follows the key packet's first frame."""
    latents = packets()
    carrier = Carrier(SESSION, 301, CAPTURE_NS + 33_333_333, 160, 128)
    return write_riders((latents["packet_key"], latents["packet_delta"]), carrier)


def anchor() -> Anchor:
    return Anchor(SESSION, 300, CAPTURE_NS, UTC_OFFSET_NS, UTC_LOCKED)


def golden_files() -> dict[str, bytes]:
    """File name -> what it must hold."""
    files = {f"{name}.bin": packet.to_bytes() for name, packet in packets().items()}
    files |= {f"{name}.bin": message.to_bytes() for name, message in videos().items()}
    files["anchor.bin"] = anchor().to_bytes()
    files["anchored.h264"] = insert_sei(
        insert_sei(ACCESS_UNIT, anchor().to_bytes(), ANCHOR_UUID),
        b"\x00\x00\x00\x00\x01\x00\x00\x02\x00\x00\x03" + bytes(300),
        SEMANTIC_UUID,
    )
    files["rans.bin"] = rans.encode(*rans_input(), rans_tables())
    tensors = latent_tables().to_tensors()
    files["latent_tables.bin"] = b"".join(
        tensors[name].astype("<u2").tobytes() for name in ("flags", "places", "values")
    )
    (files["latents.bin"],) = latent_messages()
    return files


if __name__ == "__main__":
    for name, data in golden_files().items():
        (FOLDER / name).write_bytes(data)
        print(f"{name}: {len(data)} bytes")
