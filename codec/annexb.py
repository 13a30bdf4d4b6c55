"""H.264 byte streams: NAL units in Annex B and in AVCC (length-prefixed) form, emulation prevention. No decoding."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from scene_edge.codec.errors import SeiError

NAL_SLICE = 1
NAL_IDR = 5
NAL_SEI = 6
NAL_SPS = 7
NAL_PPS = 8
NAL_AUD = 9

START_CODE = b"\x00\x00\x01"

MAX_ACCESS_UNIT_BYTES = 16 * 1024 * 1024
"""Largest coded picture accepted anywhere; an intra 8K picture at a very high rate stays below."""

_ESCAPED = re.compile(rb"\x00\x00\x03")
_TO_ESCAPE = re.compile(rb"\x00\x00(?=[\x00-\x03])")


class Nal(NamedTuple):
    """One NAL unit: its bytes without start code; `start` is where its start code begins (leading zero included)."""

    type: int
    data: bytes
    start: int
    end: int


def escape(rbsp: bytes) -> bytes:
    """Raw payload -> NAL payload, with an emulation prevention byte after every 00 00 that needs one.

    >>> escape(bytes([0, 0, 1])).hex()
    '00000301'
    """
    return _TO_ESCAPE.sub(b"\x00\x00\x03", rbsp)


def unescape(payload: bytes) -> bytes:
    """NAL payload -> raw payload; the inverse of `escape`."""
    return _ESCAPED.sub(b"\x00\x00", payload)


def iter_nals(annexb: bytes) -> Iterator[Nal]:
    """Every NAL unit of an Annex B stream, empty ones skipped; bytes before the first start code are ignored."""
    at = annexb.find(START_CODE)
    while at >= 0:
        begin = at + 3
        following = annexb.find(START_CODE, begin)
        end = len(annexb) if following < 0 else following
        start = at - 1 if at > 0 and annexb[at - 1] == 0 else at
        # Zeros between two units belong to the next start code or are padding: no NAL unit ends in one.
        data = annexb[begin:end].rstrip(b"\x00")
        if data:
            yield Nal(data[0] & 0x1F, data, start, begin + len(data))
        at = following


def has_idr(annexb: bytes) -> bool:
    """Whether the access unit holds an instantaneous decoder refresh, so that decoding can begin with it."""
    return any(nal.type == NAL_IDR for nal in iter_nals(annexb))


def to_annexb(data: bytes, extradata: bytes | None = None) -> bytes:
    """One packet of an MP4 or Matroska file (AVCC) -> Annex B; a packet that is Annex B already is returned as it is.

    `extradata` is the stream's avcC record (or its Annex B headers). Its SPS and PPS are put before a picture with an
    IDR that brings none itself. Raises SeiError where lengths do not add up.
    """
    if len(data) > MAX_ACCESS_UNIT_BYTES:
        raise SeiError("access unit is too large", got=f"{len(data)} bytes", allowed=MAX_ACCESS_UNIT_BYTES)
    is_avcc = extradata is not None and len(extradata) >= 7 and extradata[0] == 1
    if not is_avcc:
        if data.startswith((START_CODE, b"\x00" + START_CODE)):
            return _with_headers(data, extradata or b"")
        raise SeiError("access unit has neither a start code nor an avcC record", hint="Pass the stream's extradata.")
    length_bytes, headers = _read_avcc(extradata or b"")
    out = bytearray()
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + length_bytes], "big")
        at += length_bytes
        if at > len(data) or size > len(data) - at:
            if data.startswith((START_CODE, b"\x00" + START_CODE)):
                return _with_headers(data, headers)
            raise SeiError("NAL unit runs past its access unit", got=f"{size} bytes at {at} of {len(data)}")
        if size:
            out += b"\x00" + START_CODE
            out += data[at : at + size]
        at += size
    return _with_headers(bytes(out), headers)


def _with_headers(annexb: bytes, headers: bytes) -> bytes:
    if not headers:
        return annexb
    types = [nal.type for nal in iter_nals(annexb)]
    return headers + annexb if NAL_IDR in types and NAL_SPS not in types else annexb


def _read_avcc(record: bytes) -> tuple[int, bytes]:
    """avcC -> (bytes of a length prefix, its SPS and PPS in Annex B form)."""
    length_bytes = (record[4] & 3) + 1
    headers = bytearray()
    at = 5
    for mask in (0x1F, 0xFF):
        if at >= len(record):
            raise SeiError("avcC record is cut short", got=f"{len(record)} bytes")
        count = record[at] & mask
        at += 1
        for _ in range(count):
            size = int.from_bytes(record[at : at + 2], "big")
            at += 2
            if at + size > len(record):
                raise SeiError("avcC record is cut short", got=f"{len(record)} bytes", allowed=f"at least {at + size}")
            headers += b"\x00" + START_CODE + record[at : at + size]
            at += size
    return length_bytes, bytes(headers)
