"""The compared systems on a few small pictures: same frames out, bytes that add up, the same bytes each time."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.systems import (
    SYSTEMS,
    Coding,
    camera_config,
    encode,
    parts_of,
    run_system,
    wire_bytes,
)
from scene_edge.codec.bundle import shipped_bundles
from scene_edge.codec.errors import ConfigError
from scene_edge.codec.packet import SemanticPacket
from scene_edge.codec.planes import Planes
from scene_edge.codec.riders import Carrier, write_rider
from scene_edge.edge.config import SCENE_BUNDLES
from scene_edge.edge.wire import publish_overhead

MQTT_BYTES = 2 + len("scene/1/12/camera-1/video") + 2 + 2
"""Fixed header of a short message, length and text of the topic, packet id."""

HEADER_BYTES = 32 + 8 + 4
"""Of a video message with UTC offset, and its CRC: the layout stands in docs/protocol.md."""

ACKNOWLEDGED_BYTES = 4 + 40


def pictures(count: int = 6, width: int = 128, height: int = 96) -> list[Planes]:
    rows, columns = np.mgrid[0:height, 0:width]
    chroma = np.full((height // 2, width // 2), 120, np.uint8)
    moving = [(np.sin((columns + 4 * frame) / 11) * 70 + rows / 2 + 80).astype(np.uint8) for frame in range(count)]
    return [Planes(y, chroma, chroma) for y in moving]


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_gives_back_every_picture_and_counts_every_byte(system: str) -> None:
    parts = parts_of(system)
    if parts.codec is not None:
        pytest.importorskip("imageio_ffmpeg")
    wanted = {name for name, used in ((SCENE_BUNDLES[parts.weights], parts.scene), ("smc-s", parts.fusion)) if used}
    if not wanted <= set(shipped_bundles()):
        pytest.skip(f"this needs the bundles {', '.join(sorted(wanted))} in models/zoo")
    originals = pictures()
    first = run_system(system, originals, 25.0, Coding(crf=35, gop=4))
    again = run_system(system, originals, 25.0, Coding(crf=35, gop=4))
    assert [(p.width, p.height) for p in first.pictures] == [(128, 96)] * 6
    assert first.bytes["total"] == sum(first.bytes[kind] for kind in ("video", "semantic", "sei", "overhead"))
    assert (first.bytes["semantic"] > 0) == parts.semantics
    assert (0 < first.bytes["semantic_overhead"] < first.bytes["overhead"]) == parts.semantics
    plain = run_system("x264", originals, 25.0, Coding(crf=35, gop=4))
    assert first.bytes["sei"] == plain.bytes["sei"], "the same anchors for all"
    assert first.bytes == again.bytes
    assert all(np.array_equal(one.y, other.y) for one, other in zip(first.pictures, again.pictures, strict=True))


def test_f_net_without_semantics_costs_what_x264_costs_and_shows_something_else() -> None:
    if "smc-s" not in shipped_bundles():
        pytest.skip("this needs the bundle smc-s in models/zoo")
    plain, fused = (run_system(system, pictures(), 25.0, Coding(crf=43, gop=4)) for system in ("x264", "fnet"))
    assert plain.bytes == fused.bytes
    assert any(not np.array_equal(one.y, other.y) for one, other in zip(plain.pictures, fused.pictures, strict=True))


def test_transport_by_hand() -> None:
    clip = encode("x264", pictures(), 25.0, Coding(crf=51))
    total = 0
    # Five of 40 ms make 200 ms; the sixth is alone.
    for units in (clip.access_units[:5], clip.access_units[5:]):
        data = sum(len(unit.data) for unit in units)
        lengths = sum(1 if len(unit.data) < 64 else 2 for unit in units)
        # The second frame's step is 40,000,000 ns, 4 bytes; then 0 more each. The UTC offset stands still.
        table = lengths + (4 + 3 + 4 if len(units) == 5 else 0)
        message = HEADER_BYTES + table + data
        total += message
        mqtt = MQTT_BYTES + (message + MQTT_BYTES - 2 >= 128)
        segments = -(-(message + mqtt) // 1448)
        total += mqtt + 40 * segments + ACKNOWLEDGED_BYTES
    assert wire_bytes(clip) == (total, 0, 0)


def test_small_packets_ride_behind_their_frames_and_large_ones_go_alone() -> None:
    clip = encode("x264", pictures(12), 25.0, Coding(crf=51, gop=4))
    plain = wire_bytes(clip)
    first, last = (
        SemanticPacket(1, 2, bytes(8), clip.session_id, seq, seq * 40_000_000, 128, 96, 40_000_000, 0, 0, 4, body)
        for seq, body in ((0, bytes(50)), (8, bytes(5000)))
    )
    # In the message from frame 4 on: its length in one byte, 4 frames back, and no surprise in its time.
    assert len(write_rider(first, Carrier(clip.session_id, 4, 160_000_000, 128, 96))) == 20 + 50
    clip.packets += [first, last]
    laden = wire_bytes(clip)
    assert laden.semantic == 70 + 5052
    assert laden.semantic_overhead == 1 + publish_overhead("scene/1/12/camera-1/semantic", 5052, 1, tls=False)
    assert laden.whole == plain.whole + laden.semantic + laden.semantic_overhead


def test_settings_do_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCENE_EDGE_VIDEO__CRF", "12")
    config = camera_config("both", Coding(crf=33, smc="smc-m", semantic_quality=2))
    assert config.video.crf == 33
    assert (config.semantics.bundle, config.semantics.quality) == ("smc-m", 2)
    assert config.scene.enabled
    assert config.semantics.enabled
    assert config.semantics.threads == 1


def test_an_unknown_system_is_named() -> None:
    with pytest.raises(ConfigError, match="no such system"):
        camera_config("scen", Coding(crf=33))
