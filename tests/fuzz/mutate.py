"""Changes to good messages: bytes, numbers in known places, varints, JSON values. Seeded, so a run can be repeated.

Most noise dies at a checksum, so whoever wants to get behind it fixes it anew: `Sealed` does for three mutants in four.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from random import Random
from typing import Any

from scene_edge.codec.checksum import crc32c

Place = tuple[int, int]
"""Where a little endian number stands, and its bytes."""

NUMBERS = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 255, 511, 512, 513, 8191, 8192, 8194, 0x7FFF, 0x8000, 0xFFFF, 1 << 20, 1 << 31,
           (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
VARINTS = (b"\x00", b"\x80\x00", b"\x7f", b"\xff\x01", b"\xff\xff\x03", b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff\x0f",
           b"\x80\x80\x80\x80\x10", b"\xff" * 9 + b"\x01", b"\xff" * 10)  # fmt: skip
DEEP = "deep"
"""Stands for lists within lists: as an object it would end our own recursion first."""
VALUES: tuple[Any, ...] = (None, True, False, 0, 1, -1, 2, 8.0, 0.5, 1e308, 2**31, 2**63, 10**400, "", "a", "../x",
                           "\0", "\ud800", "x" * 300, "manifest.json", "a.pkl", DEEP, [], {}, [[]], [None], {"": 0},
                           [1] * 40)  # fmt: skip

SEALED_AGAIN = 0.75
"""Share of the mutants of a checksummed message whose checksum fits."""

GROWN = 0.002
LONGEST_GROWTH = 131_072


def change(random: Random, data: bytearray, places: Sequence[Place], start: int = 0) -> None:
    """One change, in place, of what lies behind `start`."""
    draw = random.random
    kind, size = draw(), len(data) - start
    if places and kind < 0.45:
        at, width = places[int(draw() * len(places))]
        if at + width <= len(data):
            old = int.from_bytes(data[at : at + width], "little")
            chosen = NUMBERS[int(draw() * len(NUMBERS))] if draw() < 0.7 else old + (1 if draw() < 0.5 else -1)
            data[at : at + width] = (chosen & ((1 << 8 * width) - 1)).to_bytes(width, "little")
        return
    if size <= 0 or kind < 0.47:
        data += random.randbytes(1 + int(draw() * 9))
        return
    at = start + int(draw() * size)
    if kind < 0.62:
        data[at] ^= 1 << int(draw() * 8)
    elif kind < 0.72:
        data[at] = int(draw() * 256)
    elif kind < 0.79:
        del data[at:]
    elif kind < 0.86:
        del data[at : at + 1 + int(draw() * 8)]
    elif kind < 0.92:
        data[at:at] = random.randbytes(1 + int(draw() * 8))
    elif kind < 0.97:
        coded = VARINTS[int(draw() * len(VARINTS))]
        data[at : at + len(coded)] = coded
    else:
        source = start + int(draw() * size)
        data[at : at + 16] = data[source : source + 16]


def changed(random: Random, seed: bytes, places: Sequence[Place], start: int = 0) -> bytearray:
    """A copy with one change or a few, seldom far longer."""
    data = bytearray(seed)
    change(random, data, places, start)
    while random.random() < 0.4:
        change(random, data, places, start)
    if random.random() < GROWN:
        data += random.randbytes(1) * int(random.random() * LONGEST_GROWTH)
    return data


@dataclass(frozen=True, slots=True)
class Plain:
    """Mutants of messages without a checksum."""

    seeds: Sequence[bytes]
    places: Sequence[Place] = ()
    start: int = 0

    def __call__(self, random: Random) -> bytes:
        seed = self.seeds[int(random.random() * len(self.seeds))]
        return bytes(changed(random, seed, self.places, self.start))


@dataclass(frozen=True, slots=True)
class Sealed:
    """Mutants of messages that end in a CRC-32C, which mostly fits again."""

    seeds: Sequence[bytes]
    places: Sequence[Place] = ()
    start: int = 0

    def __call__(self, random: Random) -> bytes:
        seed = self.seeds[int(random.random() * len(self.seeds))]
        data = bytes(changed(random, seed[:-4], self.places, self.start))
        return data + (struct.pack("<I", crc32c(data)) if random.random() < SEALED_AGAIN else seed[-4:])


@dataclass(frozen=True, slots=True)
class Tagged:
    """Mutants of messages of several kinds, told apart by a first byte: `makers[tag]` makes what follows it."""

    makers: Sequence[Callable[[Random], bytes]]

    def __call__(self, random: Random) -> bytes:
        tag = int(random.random() * len(self.makers))
        return bytes([tag]) + self.makers[tag](random)


@dataclass(frozen=True, slots=True)
class Documents:
    """JSON with a value changed, added, removed or renamed somewhere, one time in five as text.

    `under`: mostly below this key of the document.
    """

    seeds: Sequence[Any]
    under: str | None = None

    def __call__(self, random: Random) -> bytes:
        document = json.loads(json.dumps(self.seeds[int(random.random() * len(self.seeds))]))
        for _ in range(1 + int(random.random() * 3)):
            if self.under in document and random.random() < 0.8:
                document[self.under] = grafted(random, document[self.under])
            else:
                document = grafted(random, document)
            if not isinstance(document, dict):
                break
        text = json.dumps(document).encode().replace(b'"deep"', b"[" * 940 + b"]" * 940)
        return bytes(changed(random, text, ())) if random.random() < 0.2 else text


def grafted(random: Random, node: Any) -> Any:
    """`node` with one change at some depth."""
    draw = random.random
    if not isinstance(node, dict | list) or not node or draw() < 0.1:
        return deepcopy(VALUES[int(draw() * len(VALUES))]) if draw() < 0.8 else node
    keys: list[Any] = list(node) if isinstance(node, dict) else list(range(len(node)))
    key, kind = keys[int(draw() * len(keys))], draw()
    if kind < 0.8:
        node[key] = grafted(random, node[key])
    elif kind < 0.9:
        del node[key]
    elif isinstance(node, dict):
        node[str(VALUES[int(draw() * len(VALUES))])[:40]] = deepcopy(node[key])
    else:
        node.extend(node[:20])
    return node


@dataclass(frozen=True, slots=True)
class Tensors:
    """A safetensors file whose header says something else of its tensors, or whose bytes are changed."""

    seed: bytes

    def __call__(self, random: Random) -> bytes:
        length = int.from_bytes(self.seed[:8], "little")
        header, body = json.loads(self.seed[8 : 8 + length]), self.seed[8 + length :]
        if random.random() < 0.4:
            return bytes(changed(random, self.seed, ((0, 8),)))
        names = list(header)
        entry = header[names[int(random.random() * len(names))]]
        kind = random.random()
        if kind < 0.4:
            sides = entry["shape"]
            sides[int(random.random() * len(sides))] = NUMBERS[int(random.random() * len(NUMBERS))]
        elif kind < 0.6:
            entry["dtype"] = random.choice(("U8", "I16", "F16", "BF16", "F32", "F64", "BOOL", "U64", "F8_E4M3", "?"))
        elif kind < 0.8:
            entry["shape"], entry["data_offsets"] = random.choice(EMPTY), [0, 0]
        else:
            header = grafted(random, header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + body


EMPTY = ([0], [3, 0], [0, 2], [0, 40, 0], [4, 40, 0], [0, 0, 0], [], [2**40, 0])
