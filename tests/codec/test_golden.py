"""The same input gives the same bytes, on every machine and in every version."""

from __future__ import annotations

import numpy as np
import pytest

from scene_edge.codec import rans
from scene_edge.codec.latents import LatentDecoder, LatentTables
from scene_edge.codec.packet import SemanticPacket, VideoMessage
from scene_edge.codec.sei import Anchor, read_anchor
from tests.golden import recipes


@pytest.mark.parametrize("name", sorted(recipes.golden_files()))
def test_coded_output_never_changes(name: str) -> None:
    assert recipes.golden_files()[name] == (recipes.FOLDER / name).read_bytes(), (
        "coded output changed for the same input: that is a new major version"
    )


def test_golden_files_decode_to_what_they_were_made_of() -> None:
    for name, packet in recipes.packets().items():
        assert SemanticPacket.from_bytes((recipes.FOLDER / f"{name}.bin").read_bytes()) == packet
    for name, message in recipes.videos().items():
        assert VideoMessage.from_bytes((recipes.FOLDER / f"{name}.bin").read_bytes()) == message
    assert Anchor.from_bytes((recipes.FOLDER / "anchor.bin").read_bytes()) == recipes.anchor()
    assert read_anchor((recipes.FOLDER / "anchored.h264").read_bytes()) == recipes.anchor()
    symbols, rows = recipes.rans_input()
    decoded = rans.decode((recipes.FOLDER / "rans.bin").read_bytes(), rows, recipes.rans_tables())
    assert np.array_equal(decoded, symbols)


def test_golden_latents_decode_with_the_golden_tables() -> None:
    words = np.frombuffer((recipes.FOLDER / "latent_tables.bin").read_bytes(), "<u2").astype(np.uint16)
    flags, places, values = np.split(words, [3 * 2, 3 * 2 + 244 * 2])
    tensors = {"flags": flags.reshape(3, 2), "places": places.reshape(244, 2), "values": values.reshape(6, 40, 16)}
    decoder = LatentDecoder(LatentTables.from_tensors(tensors))
    frames = decoder.decode((recipes.FOLDER / "latents.bin").read_bytes(), 4, (6, 8, 10))
    assert np.array_equal(np.stack(frames), recipes.latent_gop())
