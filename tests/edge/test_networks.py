"""SCENE and SMC on the camera: when the embedding is refreshed, which integers come out, where packets begin."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import BundleError, ConfigError, EngineError, EntropyError
from scene_edge.codec.h264 import H264Decoder
from scene_edge.codec.identity import AccessUnit
from scene_edge.codec.kernels import KernelBank, Kernels
from scene_edge.codec.latents import FrameCode, message
from scene_edge.codec.packet import DELTA, FLAG_GOP_CUT, KEY, MAX_PACKET_BYTES, SemanticPacket
from scene_edge.codec.planes import Planes, pack
from scene_edge.codec.quality import PacketDecoder, load_qualities
from scene_edge.codec.rans import Tables
from scene_edge.edge.clip import encode_clip
from scene_edge.edge.gop import GopCoder
from scene_edge.edge.networks import open_networks
from scene_edge.edge.scene import SceneFilter, thumbnail
from scene_edge.edge.semantics import SemanticEncoder, quantise
from scene_edge.edge.share import PACKET_BYTES, FixedQuality
from scene_edge.edge.sources import TestSource
from scene_edge.inference.session import Session, open_session
from tests.edge.conftest import Configure
from tests.waiting import wait_until

SECOND_NS = 1_000_000_000


def onnx_session(bundle: Bundle, graph: str, height: int, width: int, kernels: Kernels | None = None) -> Session:
    return open_session(bundle, graph, height=height, width=width, prefer=("onnx",), precision="fp32", kernels=kernels)


def pictures(count: int, width: int = 96, height: int = 64) -> list[Planes]:
    source = TestSource(width, height, pace="asap", frames=count)
    source.open()
    found = []
    while (frame := source.read()) is not None:
        found.append(frame.planes)
    return found


def flat(level: int, width: int = 96, height: int = 64) -> Planes:
    half = (height // 2, width // 2)
    return Planes(
        np.full((height, width), level, np.uint8), np.full(half, level, np.uint8), np.full(half, level, np.uint8)
    )


@pytest.mark.parametrize(("width", "height"), [(96, 64), (100, 50), (34, 34)])
def test_the_filter_keeps_size_and_content(zoo: Path, width: int, height: int) -> None:
    scene = SceneFilter(Bundle.open("scene-tiny", zoo=zoo), width, height, onnx_session)
    (picture,) = pictures(1, width, height)
    out = scene.apply(picture, 0)
    assert np.array_equal(out.y.astype(int), np.clip(picture.y.astype(int) - 10, 0, 255))
    assert out.u.shape == picture.u.shape
    assert scene.engine.startswith("onnx fp32")
    scene.close()


def test_kernels_follow_the_scene(zoo: Path) -> None:
    scene = SceneFilter(Bundle.open("scene-tiny", zoo=zoo), 96, 64, onnx_session)
    assert (scene.apply(flat(100), 0).y == 90).all()
    assert (scene.apply(flat(120), 1).y == 110).all()
    assert (scene.refreshes, scene.folds) == (1, 1)
    assert (scene.apply(flat(120), SECOND_NS).y == 110).all()
    assert (scene.refreshes, scene.folds) == (2, 1), "the scene is as it was"
    assert (scene.apply(flat(160), 2 * SECOND_NS).y == 160 - 1.2 * 10).all()
    assert scene.folds == 2
    scene.close()


def test_kernels_follow_the_quantiser_that_the_settings_or_the_encoder_choose(zoo: Path) -> None:
    bundle = Bundle.open("scene-tiny", zoo=zoo)
    scene = SceneFilter(bundle, 96, 64, onnx_session, crf=40.0)
    scene.coded_with(20.0)
    assert (scene.apply(flat(100), 0).y == 100 - 1.5 * 10).all(), "what the settings say stands"
    scene.close()
    scene = SceneFilter(bundle, 96, 64, onnx_session)
    assert (scene.apply(flat(100), 0).y == 90).all(), "not known yet"
    scene.coded_with(None)
    scene.coded_with(37.0)
    assert (scene.apply(flat(100), 1).y == 90).all(), "not before the scene is looked at"
    assert (scene.apply(flat(100), SECOND_NS).y == 100 - 1.5 * 10).all(), "pictures are coded coarser than keyframes"
    scene.coded_with(38.0)
    scene.apply(flat(100), 2 * SECOND_NS)
    assert scene.folds == 2, "hardly another quantiser"
    scene.coded_with(60.0)
    assert (scene.apply(flat(100), 3 * SECOND_NS).y == 100 - 2 * 10).all(), "no further than the bundle's range"
    scene.close()


def test_a_live_filter_is_swapped_between_frames_and_what_fails_is_told(zoo: Path) -> None:
    opened, released = [], threading.Event()

    def opener(bundle: Bundle, graph: str, height: int, width: int, kernels: Kernels | None = None) -> Session:
        opened.append(graph)
        if kernels is not None:
            assert released.wait(30)
            if kernels["shade"].bias[0] > 1.1:
                raise EngineError("no memory")
        return onnx_session(bundle, graph, height, width, kernels)

    scene = SceneFilter(Bundle.open("scene-tiny", zoo=zoo), 96, 64, opener, live=True)
    for step in range(3):
        assert (scene.apply(flat(100), step * 2 * SECOND_NS).y == 100).all(), "until the first filter is ready"
    wait_until(lambda: opened.count("filter") == 2)
    assert scene.folds == 0
    released.set()
    _settled(scene)
    assert (scene.apply(flat(100), 9 * SECOND_NS).y == 90).all()
    assert scene.folds == 1
    assert opened.count("filter") == 2, "one filter at a time is made"
    scene.apply(flat(160), 20 * SECOND_NS)
    _settled(scene)
    with pytest.raises(EngineError, match="no memory"):
        scene.apply(flat(160), 20 * SECOND_NS)
    scene.close()


@pytest.mark.parametrize("engine", ["openvino", "onnx"])
def test_the_shipped_filter_follows_its_scene_in_int8_as_in_float(engine: str) -> None:
    pytest.importorskip({"openvino": "openvino", "onnx": "onnxruntime"}[engine])
    bundle = Bundle.open("scene-s")
    packed = pack(pictures(1)[0])[None]
    rows, columns = packed.shape[1:3]
    bank, random = KernelBank(bundle), np.random.default_rng(3)
    found = {}
    for name, kind, precision in (("float", "onnx", "fp32"), ("int8", engine, "int8")):
        for spread in (0.1, 0.5):
            mixed = bank.assemble(0.5 * random.normal(1.0, spread, bank.coefficients))
            for scene, kernels in (("usual", None), (f"mixed {spread}", mixed)):
                session = open_session(
                    bundle, "filter", height=rows, width=columns, prefer=(kind,), precision=precision, kernels=kernels
                )
                found[name, scene] = session.run({"x": packed})["y"].astype(float)
                session.close()
        random = np.random.default_rng(3)
    for scene in ("usual", "mixed 0.1", "mixed 0.5"):
        assert np.abs(found["int8", scene] - found["float", scene]).mean() < 0.35, scene
    for scene in ("mixed 0.1", "mixed 0.5"):
        assert np.abs(found["float", scene] - found["float", "usual"]).mean() > 0.1, scene


def test_a_filter_that_could_follow_its_scene_on_another_engine_only_says_so(zoo: Path) -> None:
    def opener(bundle: Bundle, graph: str, height: int, width: int, kernels: Kernels | None = None) -> Session:
        session = onnx_session(bundle, graph, height, width, kernels)
        if kernels is not None:
            session.precision = "fp16"
        return session

    scene = SceneFilter(Bundle.open("scene-tiny", zoo=zoo), 96, 64, opener)
    with pytest.raises(EngineError, match="another engine only"):
        scene.apply(flat(100), 0)
    scene.close()


def _settled(scene: SceneFilter) -> None:
    thread = scene._beside._thread if scene._beside else None
    assert thread is not None
    thread.join(30)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kernels", None),
        ("kernels", [["shade"]]),
        ("kernels", [["shade", "other"]]),
        ("config", {}),
        ("residual", None),
        ("residual", ["head", "other"]),
    ],
)
def test_a_bundle_must_say_what_its_kernels_are_made_of(zoo: Path, key: str, value: Any) -> None:
    bundle = Bundle.open("scene-tiny", zoo=zoo)
    bundle.parameters = {**bundle.parameters, key: value}
    with pytest.raises(BundleError, match="kernels"):
        SceneFilter(bundle, 96, 64, onnx_session)


def test_the_embedding_is_refreshed_each_second_and_at_a_cut(zoo: Path) -> None:
    scene = SceneFilter(Bundle.open("scene-tiny", zoo=zoo), 96, 64, onnx_session)
    for step in range(20):
        scene.apply(flat(100), step * SECOND_NS // 10)
    assert scene.refreshes == 2
    scene.apply(flat(200), 2 * SECOND_NS - 1)
    assert scene.refreshes == 3
    # The clock of the source jumps back: the embedding is not kept for ever.
    scene.apply(flat(200), 0)
    assert scene.refreshes == 4
    scene.reset()
    scene.apply(flat(200), 1)
    assert scene.refreshes == 5


def test_a_thumbnail_is_the_whole_picture_without_padding() -> None:
    thumb = thumbnail(flat(77, 960, 540), 72, 128)
    assert thumb.shape == (18, 32, 24)
    assert (thumb == 77).all()
    half = flat(0, 256, 144)
    half.y[:, 128:] = 200
    left, right = np.split(thumbnail(half, 72, 128)[..., :16], 2, axis=1)
    assert left[:, :-1].max() == 0
    assert right[:, 1:].min() == 200


def test_wrong_kinds_sizes_and_parameters_are_refused(zoo: Path) -> None:
    scene, smc = Bundle.open("scene-tiny", zoo=zoo), Bundle.open("smc-tiny", zoo=zoo)
    with pytest.raises(BundleError, match="no SCENE"):
        SceneFilter(smc, 96, 64, onnx_session)
    with pytest.raises(BundleError, match="no SMC"):
        SemanticEncoder(scene, 96, 64, onnx_session)
    with pytest.raises(EngineError, match="another size"):
        SceneFilter(scene, 96, 64, onnx_session).apply(flat(1, 64, 64), 0)
    with pytest.raises(EngineError, match="another size"):
        SemanticEncoder(smc, 96, 64, onnx_session).encode(flat(1), flat(1, 64, 64), finest)
    good = scene.parameters
    for name, value in (("prior_size", [72]), ("prior_size", [73, 128]), ("prior_period_ms", "often")):
        scene.parameters = {**good, name: value}
        with pytest.raises(BundleError, match=name):
            SceneFilter(scene, 96, 64, onnx_session)
    good = smc.parameters
    for name, broken in (
        ("quality_steps", []),
        ("quality_steps", [1.0, -1.0]),
        ("quality_steps", [1.0] * 17),
        ("tables", None),
        ("channels", 3),
        ("stride", 12),
        ("hold", 0),
        ("hold", True),
        ("hold", 31),
        ("fused_from_qp", "low"),
        ("fused_from_qp", 52),
    ):
        smc.parameters = {**good, name: broken}
        with pytest.raises(BundleError, match=name):
            SemanticEncoder(smc, 96, 64, onnx_session)
    smc.parameters = {**good, "quality_steps": [1.0, 2.0, 4.0, 8.0]}
    with pytest.raises(BundleError, match=r"q3\.flags"):
        load_qualities(smc)


def finest(_bits: Sequence[float]) -> int | None:
    return 0


def test_latents_are_rounded_and_clipped() -> None:
    latent: NDArray[np.float32] = np.array([0.4, 0.6, -1.5, 1e9, -1e9], np.float32).reshape(1, 1, 1, 5)
    assert quantise(latent, 1.0).ravel().tolist() == [0, 1, -2, 32767, -32768]
    assert quantise(latent, 0.5).ravel().tolist()[:2] == [1, 1]
    with pytest.raises(EngineError, match="not finite"):
        quantise(latent * np.nan, 1.0)
    with pytest.raises(EngineError, match="shape"):
        quantise(latent[0], 1.0)


def test_state_lives_for_one_gop(zoo: Path) -> None:
    """The tiny network adds the frames since the keyframe to each latent."""
    encoder = SemanticEncoder(Bundle.open("smc-tiny", zoo=zoo), 96, 64, onnx_session)
    found = []
    for step in range(6):
        encoder.encode(flat(50), flat(48), finest if step % 3 == 0 else None)
        assert encoder.last_latents is not None
        assert len(np.unique(encoder.last_latents)) == 1
        found.append(int(encoder.last_latents.flat[0]))
    assert found == [2, 3, 4, 2, 3, 4]
    assert encoder.last_latents is not None
    assert encoder.last_latents.shape == (2, 4, 6)


def test_a_bundle_with_a_largest_side_looks_at_a_smaller_picture(zoo: Path) -> None:
    bundle = Bundle.open("smc-tiny", zoo=zoo)
    bundle.parameters = {**bundle.parameters, "max_side": 96}
    encoder = SemanticEncoder(bundle, 192, 128, onnx_session)
    encoder.encode(flat(50, 192, 128), flat(48, 192, 128), finest)
    assert encoder.last_latents is not None
    assert encoder.last_latents.shape == (2, 4, 6)
    assert set(encoder.last_latents.ravel().tolist()) == {2}
    with pytest.raises(EngineError, match="192x128"):
        encoder.encode(flat(50), flat(48), finest)


def test_a_held_latent_stands_until_the_next_of_its_own_or_a_keyframe(zoo: Path) -> None:
    bundle = Bundle.open("smc-tiny", zoo=zoo)
    bundle.parameters = {**bundle.parameters, "hold": 2}
    encoder = SemanticEncoder(bundle, 96, 64, onnx_session)
    found = []
    for step in range(8):
        encoder.encode(flat(50), flat(48), finest if step % 5 == 0 else None)
        assert encoder.last_latents is not None
        found.append(int(encoder.last_latents.flat[0]))
    assert found == [2, 2, 3, 3, 4, 2, 2, 3]  # the tiny network counts its runs: none at the frames between


def test_where_the_video_is_good_enough_nothing_is_said_and_no_network_runs(
    zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open("smc-tiny", zoo=zoo)
    bundle.parameters = {**bundle.parameters, "fused_from_qp": 30}
    encoder, runs = SemanticEncoder(bundle, 96, 64, onnx_session), []
    run = encoder._session.run
    monkeypatch.setattr(encoder._session, "run", lambda feed: runs.append(1) or run(feed))
    for qp, expected in ((26.9, 0), (27.0, 1), (None, 1), (12.0, 0)):
        runs.clear()
        codes = [encoder.encode(flat(50), flat(48), finest, qp), encoder.encode(flat(50), flat(48), None, 12.0)]
        assert bool(message(codes)) == bool(expected)
        assert len(runs) == 2 * expected, "the key frame decides for its GOP"


def test_equal_pictures_at_a_keyframe_cost_nothing(zoo: Path) -> None:
    encoder = SemanticEncoder(Bundle.open("smc-tiny", zoo=zoo), 96, 64, onnx_session)
    assert message([encoder.encode(flat(50), flat(50), finest)]) == b""


def test_the_first_frame_is_offered_at_each_quality_and_silence_runs_no_network(
    zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = SemanticEncoder(Bundle.open("smc-tiny", zoo=zoo), 96, 64, onnx_session)
    assert encoder.steps == (1.0, 2.0, 8.0)
    offers: list[Sequence[float]] = []

    def pick(bits: Sequence[float]) -> int | None:
        offers.append(bits)
        return (2, 1, None)[len(offers) - 1]

    found = []
    for step in range(6):
        if step == 5:
            monkeypatch.setattr(encoder, "mine", None)
        encoder.encode(flat(60), flat(44), pick if step % 2 == 0 else None)
        assert encoder.last_latents is not None
        found.append((encoder.quality, int(encoder.last_latents.flat[0])))
    assert found == [(2, 2), (2, 2), (1, 8), (1, 8), (2, 0), (2, 0)]
    assert all(len(bits) == 3 and bits[0] > bits[1] > bits[2] > 0 for bits in offers)


def gop_coder(zoo: Path, **settings: Any) -> GopCoder:
    encoder = SemanticEncoder(Bundle.open("smc-tiny", zoo=zoo), 96, 64, onnx_session)
    options: dict[str, Any] = {"session_id": 7, "width": 96, "height": 64, "frame_period_ns": 40_000_000, "gop": 5}
    options["control"] = FixedQuality(0)
    return GopCoder(encoder, **(options | settings))


@pytest.fixture(scope="module")
def stream(zoo: Path) -> tuple[list[AccessUnit], list[Planes]]:
    from scene_edge.edge.settings import load_config

    settings = ["scene.enabled=false", "semantics.enabled=false", "video.gop=5"]
    originals = pictures(15)
    clip = encode_clip(originals, 25, load_config("cpu", overrides=settings, environment={}))
    return clip.access_units, originals


Stream = tuple[list[AccessUnit], list[Planes]]


def test_one_packet_for_each_gop_at_its_last_frame(zoo: Path, stream: Stream) -> None:
    coder = gop_coder(zoo)
    sizes = [len(coder.push(unit, original)) for unit, original in zip(*stream, strict=True)]
    assert sizes == [0, 0, 0, 0, 1] * 3
    assert coder.flush() == []
    assert not coder.lost


def test_the_end_of_the_stream_gives_the_rest(zoo: Path, stream: Stream) -> None:
    coder = gop_coder(zoo)
    packets = [
        packet for unit, original in list(zip(*stream, strict=True))[:7] for packet in coder.push(unit, original)
    ]
    packets += coder.flush()
    assert [(packet.first_seq, packet.count, packet.flags) for packet in packets] == [(0, 5, 0), (5, 2, 0)]


def test_a_latency_limit_splits_the_gop(zoo: Path, stream: Stream) -> None:
    coder = gop_coder(zoo, max_latency_ms=80)
    packets = [packet for unit, original in zip(*stream, strict=True) for packet in coder.push(unit, original)]
    shape = [(packet.kind, packet.first_seq, packet.count) for packet in packets[:4]]
    assert shape == [(KEY, 0, 2), (DELTA, 2, 2), (DELTA, 4, 1), (KEY, 5, 2)]
    check_latents(zoo, packets, expected_from=coder)


@pytest.mark.parametrize("max_latency_ms", [None, 40, 80])
def test_latents_stand_on_both_sides_for_as_long_however_packets_are_cut(
    zoo: Path, stream: Stream, max_latency_ms: int | None
) -> None:
    bundle = Bundle.open("smc-tiny", zoo=zoo)
    bundle.parameters = {**bundle.parameters, "hold": 3}
    encoder = SemanticEncoder(bundle, 96, 64, onnx_session)
    options = {"session_id": 7, "width": 96, "height": 64, "frame_period_ns": 40_000_000, "gop": 5}
    coder = GopCoder(encoder, control=FixedQuality(0), max_latency_ms=max_latency_ms, **options)
    decoder, sent, found = PacketDecoder.of(bundle, 96, 64), [], []
    for unit, original in zip(*stream, strict=True):
        for packet in coder.push(unit, original):
            found += decoder.decode(packet)
            if packet.count == 1:
                assert (packet.body == b"") == (packet.first_seq % 5 not in (0, 3))
        sent.append(encoder.last_latents)
    assert len(found) == len(sent) == 15
    assert all(one is not None and np.array_equal(one, two) for one, two in zip(sent, found, strict=True))
    assert [int(z.flat[0]) for z in found[:5]] == [int(found[0].flat[0])] * 3 + [int(found[3].flat[0])] * 2


def test_a_packet_that_codes_what_no_frame_of_it_has_is_refused(zoo: Path, stream: Stream) -> None:
    bundle = Bundle.open("smc-tiny", zoo=zoo)
    bundle.parameters = {**bundle.parameters, "hold": 3}
    decoder, coder = PacketDecoder.of(bundle, 96, 64), gop_coder(zoo, max_latency_ms=40)
    key, delta = (
        packet for unit, original in list(zip(*stream, strict=True))[:2] for packet in coder.push(unit, original)
    )
    decoder.decode(key)
    with pytest.raises(EntropyError, match="latent of its own"):
        decoder.decode(delta)


def check_latents(zoo: Path, packets: list[SemanticPacket], expected_from: GopCoder) -> None:
    """Packets decode in order, as the server does it, without an error."""
    bundle = Bundle.open("smc-tiny", zoo=zoo)
    decoder = PacketDecoder.of(bundle, 96, 64)
    for packet in packets:
        assert len(decoder.decode(packet)) == packet.count
    assert not expected_from.lost


def test_a_gap_gives_up_the_gop_and_marks_its_packet(zoo: Path, stream: Stream) -> None:
    coder = gop_coder(zoo)
    packets = []
    for unit, original in zip(*stream, strict=True):
        if unit.frame_seq not in (2, 3):
            packets += coder.push(unit, original)
    assert [(packet.first_seq, packet.count, packet.flags) for packet in packets] == [
        (0, 2, FLAG_GOP_CUT), (5, 5, 0), (10, 5, 0)
    ]  # fmt: skip
    assert coder.lost == {"gap": 1}


def test_a_gap_up_to_the_next_keyframe_is_marked_too(zoo: Path, stream: Stream) -> None:
    coder = gop_coder(zoo)
    packets = []
    for unit, original in zip(*stream, strict=True):
        if unit.frame_seq not in (3, 4):
            packets += coder.push(unit, original)
    assert [(packet.first_seq, packet.count, packet.flags) for packet in packets][:2] == [
        (0, 3, FLAG_GOP_CUT), (5, 5, 0)
    ]  # fmt: skip


def test_joining_in_the_middle_waits_for_a_keyframe(zoo: Path, stream: Stream) -> None:
    coder = gop_coder(zoo)
    packets = [
        packet for unit, original in list(zip(*stream, strict=True))[2:] for packet in coder.push(unit, original)
    ]
    assert [packet.first_seq for packet in packets] == [5, 10]
    assert coder.lost == {"gap": 3}


def test_an_access_unit_that_does_not_decode_costs_its_gop(zoo: Path, stream: Stream) -> None:
    coder = gop_coder(zoo)
    packets = []
    for unit, original in zip(*stream, strict=True):
        if unit.frame_seq == 5:
            unit = replace(unit, data=b"\0\0\0\1\x09\xf0")
        packets += coder.push(unit, original)
    assert [packet.first_seq for packet in packets] == [0, 10]
    assert coder.lost == {"local_decode": 1, "gap": 4}


def test_a_packet_never_outgrows_a_message(zoo: Path, stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    coder = gop_coder(zoo)
    coins, zeros = Tables.from_frequencies([[32768, 32768]]), np.zeros(400_000, np.int64)
    large = FrameCode(((zeros + 1, zeros, coins),), 400_000.0, 400_000)
    monkeypatch.setattr(coder._encoder, "encode", lambda *_args: large)
    packets = [packet for unit, original in zip(*stream, strict=True) for packet in coder.push(unit, original)]
    assert all(len(packet.to_bytes()) <= MAX_PACKET_BYTES for packet in packets)
    assert [seq for packet in packets for seq in range(packet.first_seq, packet.last_seq + 1)] == list(range(15))
    assert {packet.kind for packet in packets if packet.first_seq % 5} == {DELTA}


def test_a_frame_that_fits_no_packet_costs_its_gop(zoo: Path, stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    coder = gop_coder(zoo)
    real, calls = coder._encoder.encode, iter(range(100))

    def encode(*args: Any) -> FrameCode:
        code = real(*args)
        return replace(code, bits=1e6) if next(calls) == 6 else code

    monkeypatch.setattr(coder._encoder, "encode", encode)
    packets = [packet for unit, original in zip(*stream, strict=True) for packet in coder.push(unit, original)]
    assert [(packet.first_seq, packet.count, packet.flags) for packet in packets] == [
        (0, 5, 0), (5, 1, FLAG_GOP_CUT), (10, 5, 0)
    ]  # fmt: skip
    assert coder.lost == {"too_large": 1, "gap": 3}


def test_the_control_is_asked_at_keyframes_and_told_what_was_spent(zoo: Path, stream: Stream) -> None:
    class Watching(FixedQuality):
        def __init__(self) -> None:
            super().__init__(1)
            self.asked: list[int] = []
            self.told: list[tuple[int, int]] = []

        def choose(self, keyframe_bytes: int, bits: Sequence[float]) -> int | None:
            self.asked.append(keyframe_bytes)
            return None if len(self.asked) == 2 else super().choose(keyframe_bytes, bits)

        def spent(self, video_bytes: int, semantic_bytes: int) -> None:
            self.told.append((video_bytes, semantic_bytes))

    control = Watching()
    coder = gop_coder(zoo, control=control)
    packets = [packet for unit, original in zip(*stream, strict=True) for packet in coder.push(unit, original)]
    sizes = [len(unit.data) for unit in stream[0]]
    assert control.asked == [sizes[0], sizes[5], sizes[10]]
    spent = [PACKET_BYTES + len(packet.body) for packet in packets]
    assert control.told == [(sum(sizes[0:5]), spent[0]), (sum(sizes[5:10]), spent[1])]
    assert [(packet.quality, bool(packet.body)) for packet in packets] == [(1, True), (2, False), (1, True)]
    assert spent[1] == PACKET_BYTES


def test_a_failed_network_ends_the_gop_and_the_next_begins_clean(
    zoo: Path, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    coder = gop_coder(zoo)
    pairs = list(zip(*stream, strict=True))
    real = coder._encoder.encode

    def broken(*_args: object) -> FrameCode:
        raise EngineError("broken")

    coder.push(*pairs[0])
    monkeypatch.setattr(coder._encoder, "encode", broken)
    with pytest.raises(EngineError):
        coder.push(*pairs[1])
    assert coder.open_from is None
    monkeypatch.setattr(coder._encoder, "encode", real)
    packets = [packet for unit, original in pairs[2:] for packet in coder.push(unit, original)]
    assert [packet.first_seq for packet in packets] == [5, 10]


def test_a_clip_is_coded_from_the_picture_that_the_server_will_see(configure: Configure, zoo: Path) -> None:
    """latent = mean of original minus lossy in the cell, plus the frame's place in its GOP."""
    originals = pictures(12)
    clip = encode_clip(originals, 25, configure("scene.enabled=false"), session_id=99)
    decoder = H264Decoder()
    bundle = Bundle.open("smc-tiny", zoo=zoo)
    coder = PacketDecoder.of(bundle, clip.width, clip.height)
    latents = [z for packet in clip.packets for z in coder.decode(packet)]
    for index, (unit, latent) in enumerate(zip(clip.access_units, latents, strict=True)):
        ((_, lossy, _),) = decoder.decode(unit.data, index)
        difference = pack(originals[index]).astype(np.float32)[..., :2] - pack(lossy)[..., :2]
        cells = difference.reshape(4, 4, 6, 4, 2).mean(axis=(1, 3)).transpose(2, 0, 1)
        expected = np.rint(cells + index % 5)
        assert np.array_equal(latent, expected)
        assert np.array_equal(clip.latents[index], expected)
    assert clip.bytes["total"] == clip.bytes["video"] + clip.bytes["semantic"] + clip.bytes["sei"]
    assert clip.bytes["semantic"] == sum(len(packet.to_bytes()) for packet in clip.packets)
    assert sum(len(unit.data) for unit in clip.access_units) == clip.bytes["video"] + clip.bytes["sei"]
    assert {packet.bundle_digest for packet in clip.packets} == {bundle.short_digest}


def test_a_clip_is_the_same_twice(configure: Configure) -> None:
    one, two = (encode_clip(pictures(7), 25, configure(), session_id=1) for _ in range(2))
    assert one.access_units == two.access_units
    assert one.packets == two.packets
    assert set(one.ms) == {"scene", "encode", "decode", "semantics"}
    assert one.kbps["total"] == pytest.approx(one.bytes["total"] * 8 / 1000 / (7 / 25))


@pytest.mark.parametrize("share", [0.001, 0.3])
def test_auto_keeps_to_its_share_and_says_the_same_twice(configure: Configure, share: float) -> None:
    config = configure("semantics.quality=auto", f"semantics.max_share={share}", "scene.enabled=false", "video.crf=10")
    one, two = (encode_clip(pictures(60), 25, config, session_id=1) for _ in range(2))
    assert one.packets == two.packets
    spoken = [PACKET_BYTES + len(packet.body) for packet in one.packets if packet.body]
    assert sum(spoken) <= share * one.bytes["video"] + max(spoken, default=0)
    assert any(packet.body for packet in one.packets) == (share == 0.3)
    assert all(not latent.any() for latent in one.latents) == (share == 0.001)


def test_a_quality_that_the_bundle_does_not_have(configure: Configure) -> None:
    config = configure("semantics.quality=3")
    with pytest.raises(ConfigError, match=r"semantics\.quality"):
        open_networks(config, 96, 64, strict=True)
    networks = open_networks(config, 96, 64, strict=False)
    assert networks.semantics is None
    assert networks.degraded[0].startswith("no semantics")
    networks.close()


def test_open_networks_serve_many_clips(configure: Configure) -> None:
    config = configure()
    networks = open_networks(config, 96, 64, strict=True)
    first = encode_clip(pictures(7), 25, config, networks=networks, session_id=1)
    again = encode_clip(pictures(7), 25, config, networks=networks, session_id=1)
    assert first.packets == again.packets
    networks.close()


def test_no_frames_are_no_clip(configure: Configure) -> None:
    clip = encode_clip([], 25, configure())
    assert (clip.access_units, clip.packets, clip.bytes["total"], clip.kbps) == ([], [], 0, {})


@pytest.mark.parametrize("part", ["scene", "semantics"])
def test_what_does_not_open_is_an_error_or_announced(configure: Configure, part: str) -> None:
    config = configure(f"{part}.bundle=absent-bundle")
    with pytest.raises(BundleError, match="absent-bundle"):
        open_networks(config, 96, 64, strict=True)
    networks = open_networks(config, 96, 64, strict=False)
    assert len(networks.degraded) == 1
    assert networks.degraded[0].startswith(f"no {part}: no such bundle")
    assert (networks.scene is None) == (part == "scene")
    networks.close()


def test_an_engine_that_is_not_there_is_announced(configure: Configure) -> None:
    networks = open_networks(configure("scene.engines=[tensorrt,onnx]"), 96, 64, strict=True)
    assert networks.scene is not None
    assert any(reason.startswith("scene: tensorrt") for reason in networks.degraded)
    networks.close()


def test_an_engine_that_is_not_there_is_announced_of_what_is_opened_again(configure: Configure) -> None:
    settings = configure("scene.engines=[tensorrt,onnx]", "semantics.engines=[tensorrt,onnx]")
    networks = open_networks(settings, 96, 64, strict=True, live=True)
    assert networks.reopen_scene is not None
    assert networks.reopen_semantics is not None
    told: list[str] = []
    for opened in (networks.reopen_scene(told.append), networks.reopen_semantics(told.append)):
        opened.close()
    assert told == list(networks.degraded)
    assert [reason.partition(":")[0] for reason in told] == ["scene", "smc"]
    networks.close()


def test_another_precision_than_asked_for_is_announced(configure: Configure) -> None:
    networks = open_networks(configure("semantics.precision=int8"), 96, 64, strict=True)
    assert any("fp32" in reason for reason in networks.degraded)
    networks.close()


def test_a_fake_session_fits_the_seam(zoo: Path) -> None:
    class Doubler:
        engine, precision, device = "fake", "fp32", ""
        inputs: Mapping[str, Any] = {}
        outputs: Mapping[str, Any] = {}
        fallbacks: tuple[str, ...] = ()

        def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            if "thumb" in inputs:
                return {"coefficients": np.ones((1, 24, 1, 1), np.float32)}
            return {"y": inputs["x"] // 2}

        def close(self) -> None:
            pass

    scene = SceneFilter(Bundle.open("scene-tiny", zoo=zoo), 96, 64, lambda *_: Doubler())
    assert (scene.apply(flat(100), 0).y == 50).all()
    assert scene.engine == "fake fp32"
