"""`python -m tests.fuzz.bombs`: messages made to cost what they can, each within 64 MB and 50 ms of processor time.

Mutants seldom claim the most of everything at once; these do, behind checksums that fit. Prints the dearest of each
kind as JSON. Exit status 1 if one is over a bound, or raises what its parser may not.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import struct
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import structlog

from scene_edge.codec.annexb import iter_nals
from scene_edge.codec.checksum import crc32c
from scene_edge.codec.h264 import H264Decoder
from scene_edge.server.config import MAX_PIXELS
from tests.codec.streams import access_units
from tests.fuzz.decoders import decoder_targets
from tests.fuzz.engine import CORPUS, Target, cap_memory
from tests.fuzz.headers import golden, header_targets

BOUND_MS = 50.0
MESSAGE_BYTES = 131_072
HEADER_BYTES = 56
TRIES = 3
AT_ONCE = 40
"""Bombs of one child: what a server keeps of them by right is not to add up to the bound."""

VIDEO, SEMANTIC, BIRTH, LEDGER = range(4)
"""Tags of the target `worker`, which takes a message of any topic."""


def sealed(data: bytes) -> bytes:
    return data[:-4] + struct.pack("<I", crc32c(data[:-4]))


def greatest_claims(name: str) -> Iterator[bytes]:
    """Every field of a golden message's header, wherever it may lie, at the most that it can say."""
    (data,) = golden(f"{name}.bin")
    for width in (1, 2, 4, 8):
        for place in range(4, min(HEADER_BYTES, len(data) - 4) - width + 1):
            for most in (b"\xff" * width, b"\xff" * (width - 1) + b"\x7f", b"\x7f" + b"\xff" * (width - 1)):
                yield sealed(data[:place] + most + data[place + width :])


def sps(width: int, height: int) -> bytes:
    """Baseline, level 6.2, of that size."""
    bits = f"{66:08b}{0xC0:08b}{62:08b}" + "".join(map(_ue, (0, 0, 2, 1))) + "0"
    bits += _ue(width // 16 - 1) + _ue(height // 16 - 1) + "1000" + "1"
    bits += "0" * (-len(bits) % 8)
    return b"\0\0\0\1\x67" + bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))


def claiming(width: int, height: int) -> bytes:
    """A keyframe of x264's, whose headers are of a picture that large."""
    (unit,) = access_units(1, 96, 64, options={"profile": "baseline", "x264-params": "ref=1:8x8dct=0"})
    return sps(width, height) + b"".join(b"\0\0\0\1" + nal.data for nal in iter_nals(unit) if nal.type in (5, 8))


def _ue(value: int) -> str:
    code = f"{value + 1:b}"
    return "0" * (len(code) - 1) + code


def bombs() -> Iterator[tuple[str, str, bytes]]:
    """(kind, target, message)."""
    for name in ("packet_key", "packet_delta", "packet_birth"):
        yield from (("greatest claims", "packet", data) for data in greatest_claims(name))
    for name in ("video_key", "video_batch", "video_fragment", "video_laden"):
        yield from (("greatest claims", "video", data) for data in greatest_claims(name))
        yield from (("greatest claims", "worker", bytes([VIDEO]) + data) for data in greatest_claims(name))
    yield from (("greatest claims", "latents", data) for data in greatest_claims("packet_key"))
    for filler in (b"\xff", b"\0\0\1\x06", b"\0\0\1\x06\x05\0\x80", b"\0\0\3", b"\0\0\1"):
        stream = b"\0\0\0\1\x06\x05" + filler * (MESSAGE_BYTES // len(filler))
        yield "SEI without end", "sei", stream
        yield "SEI without end", "picture", stream
    for side in (4096, 8192, 16_384, 65_536):
        yield "pictures too large", "picture", claiming(side, side)
    texts = ("[" * 65_536, '{"a":' * 13_000, "9" * 65_536, '"' + "\\ud800" * 10_000 + '"', f"[{'0,' * 32_000}0]")
    for text in (*texts, *(f'{{"session":{text}}}' for text in texts)):
        yield "JSON", "ack", text.encode()
        yield from (("JSON", "worker", bytes([tag]) + text.encode()) for tag in (BIRTH, LEDGER))
    for length in (0, 1 << 31, (1 << 63) - 1, (1 << 64) - 1):
        yield "tensors", "tables", struct.pack("<Q", length) + b"{}"
    for file in sorted(CORPUS.glob("*.bin")):
        yield "corpus", file.name.partition("--")[0], file.read_bytes()


def cost_ms(target: Target, data: bytes) -> float:
    """Processor time, the least of a few tries: what else the machine does is not the parser's."""
    best_ms = float("inf")
    for _ in range(TRIES):
        begun_s = time.process_time()
        with contextlib.suppress(*target.allowed):
            target.run(data)
        best_ms = min(best_ms, (time.process_time() - begun_s) * 1000)
        if best_ms < BOUND_MS / 10:
            break
    return best_ms


def as_a_server_decodes(data: bytes) -> None:
    H264Decoder(max_pixels=MAX_PIXELS).decode(data, 0)


def in_child(target: Target, messages: Sequence[bytes]) -> list[float] | str:
    """What each cost, in a process of their own with 64 MB to spare; or how that ended."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        cap_memory()
        try:
            said = json.dumps([cost_ms(target, data) for data in messages])
        except BaseException as error:
            said = json.dumps(f"{type(error).__name__}: {error}"[:200])
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    costs: list[float] | str = json.loads(said) if said else f"ended with {status}"
    return costs


def main() -> int:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.getLogger("libav").setLevel(logging.CRITICAL + 1)
    dearest: dict[str, float] = {}
    failed: dict[str, str] = {}
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        targets = {target.name: target for target in (*header_targets(), *decoder_targets(Path(folder)))}
        for target in targets.values():
            for seed in target.seeds:
                target.run(seed)
        targets["picture"] = replace(targets["picture"], run=as_a_server_decodes)
        for (kind, name), group in groupby(bombs(), lambda bomb: bomb[:2]):
            messages = [data for *_, data in group]
            for first in range(0, len(messages), AT_ONCE):
                what, chunk = f"{kind}, {name}", messages[first : first + AT_ONCE]
                costs = in_child(targets[name], chunk)
                count += len(chunk)
                if isinstance(costs, str):
                    failed[what] = costs
                else:
                    dearest[what] = round(max(dearest.get(what, 0.0), *costs), 1)
    over = [what for what, took_ms in dearest.items() if took_ms > BOUND_MS]
    print(json.dumps({"bombs": count, "dearest_ms": dearest, "over": over, "failed": failed}, indent=1))
    return 1 if over or failed else 0


if __name__ == "__main__":
    sys.exit(main())
