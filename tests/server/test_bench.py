"""The server's part of bench: every stage is listed on the tiny bundle's pictures, and what cannot run says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.packet import SemanticPacket
from scene_edge.codec.planes import Planes
from scene_edge.inference.roofline import Peaks
from scene_edge.inference.stages import SERVER_STAGES
from scene_edge.server.bench import Received, ServerBench, fused
from scene_edge.server.config import AnalyticsConfig, ServerConfig
from scene_edge.server.fusion import FusionDecoder
from tests.server.camera import FPS, GOP, HEIGHT, WIDTH, latents, packets, picture

pytest.importorskip("onnxruntime")

PEAKS = Peaks(1, 1e9, {("onnx", "fp32"): 1e9}, {})


@pytest.fixture
def received(bundle: Bundle) -> Received:
    pictures = [picture(index) for index in range(2 * GOP)]
    coded = packets(bundle, 1, latents(2 * GOP))
    return Received(pictures, coded, FPS, bundle)


def test_every_stage_has_a_row(received: Received) -> None:
    pytest.importorskip("trackers")
    config = ServerConfig(analytics=AnalyticsConfig(actions=()))
    bench = ServerBench(received, PEAKS, config=config)
    bench.run(("onnx",))
    assert [row.stage for row in bench.rows] == list(SERVER_STAGES)
    rows = {row.stage: row for row in bench.rows}
    assert (rows["smc_decode"].engine, rows["smc_decode"].precision) == ("onnx", "fp32")
    assert rows["smc_decode"].proven
    for stage in ("smc_decode", "detect", "track"):
        assert rows[stage].reason == ""
        assert rows[stage].ms_p50 is not None
        assert (rows[stage].width, rows[stage].height) == (WIDTH, HEIGHT)
    assert rows["act"].reason == "switched off in the settings"


def test_a_verdict_on_actions_serves_all_frames_until_the_next(received: Received) -> None:
    config = ServerConfig(analytics=AnalyticsConfig(detector="off", actions=("action-fight",)))
    bench = ServerBench(received, PEAKS, config=config)
    bench.run(("onnx",))
    rows = {row.stage: row for row in bench.rows}
    act = rows["act"]
    assert act.model == "action-fight"
    assert act.fps is not None
    assert act.ms_p50 is not None
    assert rows["detect"].reason == "switched off in the settings"
    assert "no engine ran detect" in rows["track"].reason


def test_what_does_not_open_is_listed(received: Received) -> None:
    config = ServerConfig(analytics=AnalyticsConfig(detector="absent", actions=("scene-s",)))
    bench = ServerBench(received, PEAKS, config=config)
    bench.run(("tensorrt",))
    rows = {row.stage: row for row in bench.rows}
    assert rows["smc_decode"].reason == "bundle smc-tiny has no artefact for tensorrt"
    assert "no such bundle" in rows["detect"].reason
    assert "no such graph" in rows["act"].reason
    assert all(row.ms_p50 is None for row in bench.rows)


def test_pictures_are_fused_with_the_latents_of_their_own_packets(
    received: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = FusionDecoder(received.bundle, WIDTH, HEIGHT, prefer=("onnx",), precision="fp32", threads=1)
    seen: list[tuple[NDArray[np.int16] | None, bool]] = []
    fuse = decoder.fuse

    def spy(lossy: Planes, latent: NDArray[np.int16] | None, key: bool, step: float | None = None) -> Planes:
        seen.append((latent, key))
        return fuse(lossy, latent, key, step)

    monkeypatch.setattr(decoder, "fuse", spy)
    pictures, times_ms = fused(decoder, received)
    assert len(pictures) == len(times_ms) == 2 * GOP
    counted = seen[-2 * GOP :]
    assert [key for _, key in counted] == ([True] + [False] * (GOP - 1)) * 2
    for (found, _), sent in zip(counted, latents(2 * GOP), strict=True):
        assert found is not None
        assert np.array_equal(found, sent)
    decoder.close()


def test_without_packets_fusion_works_from_the_lossy_pictures_alone(received: Received) -> None:
    none: Sequence[SemanticPacket] = ()
    decoder = FusionDecoder(received.bundle, WIDTH, HEIGHT, prefer=("onnx",), precision="fp32", threads=1)
    pictures, _ = fused(decoder, replace(received, packets=none))
    assert len(pictures) == 2 * GOP
    decoder.close()
