"""Every prefix and every flipped bit of every golden message, with the checksum as it was and with one that fits."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator

import pytest

from scene_edge.codec import rans
from scene_edge.codec.checksum import crc32c
from scene_edge.codec.errors import EntropyError, FormatError, PacketError
from scene_edge.codec.latents import LatentDecoder
from scene_edge.codec.packet import KEY
from tests.fuzz.decoders import golden_decoder
from tests.fuzz.headers import golden, read_anchor_alone, read_anchors, read_packet, read_video
from tests.golden import recipes

CHECKED = ("packet_key", "packet_delta", "packet_birth", "video_key", "video_batch", "video_fragment", "video_laden")


def prefixes(data: bytes) -> Iterator[bytes]:
    return (data[:end] for end in range(len(data)))


def flips(data: bytes) -> Iterator[bytes]:
    for place in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        yield bytes(flipped)


def reader_of(name: str) -> Callable[[bytes], object]:
    return read_packet if name.startswith("packet") else read_video


@pytest.mark.parametrize("name", CHECKED)
def test_all_damage_is_seen(name: str) -> None:
    (data,) = golden(f"{name}.bin")
    for damaged in (*prefixes(data), *flips(data)):
        with pytest.raises(PacketError):
            reader_of(name)(damaged)


@pytest.mark.parametrize("name", CHECKED)
def test_damage_behind_a_checksum_that_fits_is_refused_or_decodes(name: str) -> None:
    (data,) = golden(f"{name}.bin")
    decoded: set[tuple[object, ...]] = set()
    refused = 0
    for damaged in (*prefixes(data[:-4]), *flips(data[:-4])):
        sealed = damaged + struct.pack("<I", crc32c(damaged))
        try:
            packets = read_video(sealed) if name.startswith("video") else [read_packet(sealed)]
            for packet in packets:
                # Most damage is to what does not reach the decoder, which then gives what it gave before.
                what = packet.kind, packet.codec_id, packet.quality, packet.count, packet.first_seq, packet.body
                if what not in decoded:
                    decoded.add(what)
                    golden_decoder(None if packet.kind == KEY else "packet_key").decode(packet)
        except (PacketError, EntropyError):
            refused += 1
    assert refused >= len(data) - 4, "no prefix is a message"


def test_damage_to_an_anchor() -> None:
    alone, stream = golden("anchor.bin", "anchored.h264")
    for reader, data in ((read_anchor_alone, alone), (read_anchors, stream)):
        for damaged in (*prefixes(data), *flips(data)):
            with contextlib.suppress(FormatError):
                reader(damaged)


def test_damage_to_entropy_coded_messages() -> None:
    latents, plain = golden("latents.bin", "rans.bin")
    tables, rans_tables, (_, rows) = recipes.latent_tables(), recipes.rans_tables(), recipes.rans_input()
    for damaged in prefixes(latents):
        with contextlib.suppress(EntropyError):
            assert len(LatentDecoder(tables).decode(damaged, 4, (6, 8, 10))) == 4
    for damaged in (*prefixes(plain), *flips(plain)):
        with contextlib.suppress(EntropyError):
            assert rans.decode(damaged, rows, rans_tables).size == rows.size
