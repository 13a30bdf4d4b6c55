"""CRC-32C (Castagnoli) over bytes: the checksum at the end of every message of ours."""

from __future__ import annotations

import google_crc32c


def crc32c(data: bytes) -> int:
    """CRC-32C of `data`, as RFC 3720 computes it.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    return int(google_crc32c.value(data))
