"""LEB128: whole numbers in as many bytes as they need, seven bits each, in their shortest form only."""

from __future__ import annotations

from scene_edge.codec.errors import PacketError


def write_varint(value: int) -> bytes:
    """A number from 0 on.

    >>> write_varint(300).hex()
    'ac02'
    """
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes, at: int, max_bytes: int) -> tuple[int, int]:
    """The number at `at`, and where it ends. Raises PacketError: cut short, too long, not in its shortest form."""
    value = 0
    for place in range(max_bytes):
        if at >= len(data):
            raise PacketError("packet is cut short inside its lengths", got=f"{len(data)} bytes")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << (7 * place)
        if byte <= 0x7F:
            if byte == 0 and place:
                raise PacketError("length is not in its shortest form", got=value)
            return value, at
    raise PacketError("length has too many bytes", allowed=f"at most {max_bytes}")


def zigzag(value: int) -> int:
    """Signed to unsigned, small to small: 0, -1, 1, -2 are 0, 1, 2, 3."""
    return 2 * value if value >= 0 else -2 * value - 1


def unzigzag(value: int) -> int:
    """The inverse of `zigzag`.

    >>> [unzigzag(zigzag(value)) for value in (0, -1, 1, -70000)]
    [0, -1, 1, -70000]
    """
    return value // 2 if value % 2 == 0 else -(value + 1) // 2
