"""The text of an OpenVINO IR in a bundle: gzip, since it is twenty times as long as it need be."""

from __future__ import annotations

import gzip
import zlib

from scene_edge.codec.errors import BundleError

SUFFIX = ".xml.gz"
MAX_IR_BYTES = 16 << 20
"""Fifteen times the longest that ships; while it is inflated, it takes three times as much memory."""
_GZIP = 16 + zlib.MAX_WBITS


def weights_of(file: str) -> str:
    """The .bin that belongs to the name of an IR.

    >>> weights_of("filter.int8.xml.gz")
    'filter.int8.bin'
    """
    return f"{file.removesuffix(SUFFIX)}.bin"


def deflate(text: bytes) -> bytes:
    """The same bytes for the same text, at any time."""
    return gzip.compress(text, mtime=0)


def inflate(data: bytes, name: str) -> bytes:
    """The text, in bounded memory. Raises BundleError for anything but one whole gzip of an IR."""
    stream = zlib.decompressobj(_GZIP)
    try:
        text = stream.decompress(data, MAX_IR_BYTES)
    except zlib.error as error:
        raise BundleError(f"{name} is no gzip", got=str(error)) from error
    if not stream.eof or stream.unused_data:
        raise BundleError(
            f"{name} is cut short, too large or has something behind it", allowed=f"at most {MAX_IR_BYTES} bytes"
        )
    if not text[:64].lstrip().startswith((b"<?xml", b"<net")):
        raise BundleError(f"{name} is no OpenVINO IR")
    return text
