"""One camera's worker without threads or network: what is committed, acknowledged, counted, and survived."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.checksum import crc32c
from scene_edge.codec.errors import BundleError, StoreError
from scene_edge.codec.identity import session_hex
from scene_edge.codec.packet import split_video
from scene_edge.codec.planes import Planes
from scene_edge.server.analytics.detections import Detections
from scene_edge.server.analytics.seams import Action
from scene_edge.server.analytics.tracker import ByteTracker
from scene_edge.server.config import ServerConfig
from scene_edge.server.fusion import FusionDecoder
from scene_edge.server.pictures import Analytics, FusionFactory, PicturePipeline
from scene_edge.server.state import CameraState
from scene_edge.server.store import Batch, Store
from scene_edge.server.worker import MAX_EARLIER, CameraWorker
from tests.server.camera import DARKER, FPS, GOP, HEIGHT, WIDTH, FakeCamera, access_units, inbound, picture

NAMES = ("person", "vehicle")


class BrightSquare:
    """A detector of the test picture's square; `fail` makes it raise."""

    name = "bright square"

    def __init__(self) -> None:
        self.calls: list[Planes] = []
        self.fail = False

    def detect(self, planes: Planes) -> Detections:
        self.calls.append(planes)
        if self.fail:
            raise RuntimeError("no more memory")
        columns = np.flatnonzero((planes.y[16:32].astype(int) > 190).mean(axis=0) > 0.8)
        if not len(columns):
            return Detections.none(NAMES)
        return Detections.of([[columns[0], 16, columns[-1] + 1, 32]], [0.9], [0], NAMES)

    def close(self) -> None:
        pass


class EveryFifth:
    """An action recogniser with a verdict at every fifth picture."""

    name = "every fifth"

    def __init__(self) -> None:
        self.seen: list[int] = []

    def push(self, planes: Planes, frame_seq: int, time_s: float) -> list[Action]:
        self.seen.append(frame_seq)
        return [Action("wave", 0.8, frame_seq - 4, frame_seq, "tiny")] if len(self.seen) % 5 == 0 else []

    def reset(self) -> None:
        self.seen.clear()

    def close(self) -> None:
        pass


@dataclass
class Bench:
    """A worker with everything around it in memory."""

    bundle: Bundle | None
    config: ServerConfig = field(default_factory=lambda: ServerConfig.model_validate({"analytics": {"detect_fps": 5}}))
    store: Store = field(default_factory=lambda: Store("sqlite://"))
    detector: BrightSquare = field(default_factory=BrightSquare)
    published: list[tuple[str, bytes, int]] = field(default_factory=list)
    camera: str = "gate-1"
    max_lag_s: float = math.inf

    def __post_init__(self) -> None:
        self.state = CameraState(self.camera)
        self.opened: list[PicturePipeline] = []
        self.stop = threading.Event()
        self.worker = CameraWorker(
            self.camera,
            self.config,
            self.store,
            self.state,
            self._pictures,
            lambda *m: self.published.append(m),
            self.stop,
        )
        self.now_s = time.monotonic()

    def _pictures(self, state: CameraState) -> PicturePipeline:
        analytics = Analytics(self.detector, ByteTracker(5), [EveryFifth()], 5.0, 0.0, self.max_lag_s)
        self.opened.append(PicturePipeline(state, analytics, self._fusion()))
        return self.opened[-1]

    def _fusion(self) -> FusionFactory:
        def build(digest: bytes, width: int, height: int) -> FusionDecoder:
            if self.bundle is None or digest != self.bundle.short_digest:
                raise BundleError("no such bundle")
            return FusionDecoder(self.bundle, width, height, prefer=("onnx",), precision="fp32", threads=1)

        return build

    def feed(self, messages: Sequence[tuple[str, bytes]], step_s: float = 0.001) -> None:
        for leaf, payload in messages:
            self.now_s += step_s
            self.worker.handle(inbound(leaf, payload, self.now_s))

    def settle(self) -> None:
        """Let every deadline and commit interval pass."""
        for _ in range(3):
            self.now_s += 30
            self.worker.tick(self.now_s)
        assert self.worker.idle

    def view(self) -> dict[str, Any]:
        return self.state.view()

    def acks(self) -> list[dict[str, Any]]:
        return [json.loads(payload) for topic, payload, qos in self.published if topic.endswith("/ack") and qos == 0]

    def rows(self, camera: FakeCamera) -> list[Any]:
        with self.store._engine.begin() as connection:
            sql = "select seq, status, picture, epoch from frames where session = ? order by seq"
            return [tuple(row) for row in connection.exec_driver_sql(sql, (camera.session,))]


def test_every_frame_is_matched_fused_committed_and_acknowledged(bundle: Bundle) -> None:
    bench, camera = Bench(bundle), FakeCamera(bundle, frames=3 * GOP)
    bench.feed(list(camera.stream()))
    bench.settle()
    assert bench.rows(camera) == [(seq, "matched", "fused", 1) for seq in range(3 * GOP)]
    assert bench.acks()[-1] == {"session": camera.session, "seq": 3 * GOP - 1, "epoch": 1}
    assert [ack["seq"] for ack in bench.acks()] == sorted(ack["seq"] for ack in bench.acks())
    view = bench.view()
    assert view["match_rate"] == 1.0
    assert view["server"]["dropped"] == {}
    assert view["server"]["committed"] == 3 * GOP
    assert view["engine"]["fusion"] == "onnx fp32"
    assert view["engine"]["smc"] == "openvino int8"
    assert view["latency_ms"]["p50"] is not None


@pytest.mark.parametrize("max_bytes", [120_000, 700])
def test_packets_that_ride_with_video_are_joined_like_others(bundle: Bundle, max_bytes: int) -> None:
    bench, camera = Bench(bundle), FakeCamera(bundle, frames=3 * GOP, max_bytes=max_bytes)
    bench.feed(list(camera.laden_stream()))
    bench.settle()
    assert bench.rows(camera) == [(seq, "matched", "fused", 1) for seq in range(3 * GOP)]
    assert bench.view()["server"]["dropped"] == {}


def test_damaged_riders_cost_no_picture(bundle: Bundle) -> None:
    bench, camera = Bench(bundle), FakeCamera(bundle, frames=GOP)
    (message,) = split_video(camera.units, session_id=camera.session_id, width=WIDTH, height=HEIGHT, riders=b"\1\2\0")
    bench.feed([("birth", camera.birth()), ("video", message.to_bytes())])
    bench.settle()
    assert bench.rows(camera) == [(seq, "missing_semantics", "lossy", 1) for seq in range(GOP)]
    assert bench.view()["server"]["dropped"] == {"semantic_corrupt": 1}


def test_what_analytics_see_is_the_fused_picture(bundle: Bundle) -> None:
    bench, camera = Bench(bundle), FakeCamera(bundle, frames=GOP)
    bench.feed(list(camera.stream()))
    bench.settle()
    seen, plain = bench.detector.calls[0], picture(0)
    shift = float(camera.latents[0].mean()) * DARKER
    assert abs(float(plain.y.mean()) - shift - float(seen.y.mean())) < 2.5


def test_good_pictures_pass_unfused_and_are_counted(bundle: Bundle) -> None:
    choosy = copy(bundle)
    choosy.parameters = {**bundle.parameters, "fused_from_qp": 51}
    bench, camera = Bench(choosy), FakeCamera(choosy, frames=GOP)
    bench.feed(list(camera.stream()))
    bench.settle()
    assert bench.view()["server"]["passed"] == GOP
    assert abs(float(picture(0).y.mean()) - float(bench.detector.calls[0].y.mean())) < 2.5


def test_detection_runs_at_its_own_rate_and_tracks_go_out_as_onvif(bundle: Bundle) -> None:
    bench, camera = Bench(None), FakeCamera(None, frames=2 * FPS)
    bench.feed(list(camera.stream()))
    bench.settle()
    assert len(bench.detector.calls) == 10
    frames = [json.loads(payload)["Frame"] for topic, payload, _ in bench.published if topic.endswith("/tracks")]
    assert [frame["Seq"] for frame in frames] == list(range(0, 2 * FPS, 5))
    objects = [frame["Object"][0] for frame in frames[1:]]
    assert len({entry["ObjectId"] for entry in objects}) == 1
    assert objects[0]["Appearance"]["Class"]["Type"][0]["value"] == "person"
    actions = [json.loads(payload) for topic, payload, _ in bench.published if topic.endswith("/actions")]
    assert [action["Data"]["EndSeq"] for action in actions] == list(range(4, 2 * FPS, 5))
    assert bench.view()["actions"][0]["label"] == "wave"
    assert bench.view()["tracks_seen"] == 1


def test_a_lost_packet_leaves_its_frames_to_the_lossy_path(bundle: Bundle) -> None:
    bench, camera = Bench(bundle), FakeCamera(bundle, frames=3 * GOP)
    bench.feed(list(camera.stream(lose_packets=(1,))))
    bench.settle()
    statuses = [row[1] for row in bench.rows(camera)]
    assert statuses == ["matched"] * GOP + ["missing_semantics"] * GOP + ["matched"] * GOP
    assert bench.view()["match_rate"] == pytest.approx(2 / 3)
    assert bench.acks()[-1]["seq"] == 3 * GOP - 1


def test_a_packet_behind_its_deadline_is_late(bundle: Bundle) -> None:
    bench, camera = Bench(bundle), FakeCamera(bundle, frames=2 * GOP)
    messages = list(camera.stream(lose_packets=(0,)))
    bench.feed(messages)
    bench.now_s += 4
    bench.worker.tick(bench.now_s)
    bench.feed([("semantic", camera.packets[0].to_bytes())])
    bench.settle()
    match = bench.view()["match"]
    assert (match["late"], match["matched"], match.get("missing_semantics", 0)) == (GOP, GOP, 0)


def test_without_semantics_nothing_is_awaited(bundle: Bundle) -> None:
    bench, camera = Bench(bundle), FakeCamera(None, frames=GOP)
    bench.feed(list(camera.stream()))
    assert bench.worker._live is not None
    assert bench.worker._live.joiner.waiting == 0
    bench.settle()
    assert [row[1:3] for row in bench.rows(camera)] == [("unpaired", "lossy")] * GOP
    assert bench.view()["match_rate"] is None


def test_the_network_that_a_birth_names_is_opened_before_the_first_frame(bundle: Bundle) -> None:
    bench, camera = Bench(bundle), FakeCamera(bundle, frames=GOP)
    named = {"bundle": {"name": bundle.name, "digest": bundle.digest.hex()}}
    for nonsense in ({"bundle": 1}, {"bundle": {"digest": "xyz"}}, {**named, "width": "wide"}, {**named, "height": -2}):
        bench.feed([("birth", camera.birth(**nonsense))])
        assert "fusion" not in bench.view()["engine"]
    bench.feed([("birth", camera.birth(**named))])
    assert bench.view()["engine"]["fusion"] == "onnx fp32"
    bench.feed(list(camera.stream()))
    bench.settle()
    assert [row[2] for row in bench.rows(camera)] == ["fused"] * GOP


def test_a_bundle_that_the_server_lacks_degrades_to_the_lossy_picture(bundle: Bundle) -> None:
    bench, camera = Bench(None), FakeCamera(bundle, frames=2 * GOP)
    bench.feed(list(camera.stream()))
    bench.settle()
    assert [row[1:3] for row in bench.rows(camera)] == [("matched", "lossy")] * (2 * GOP)
    view = bench.view()
    assert view["server"]["dropped"] == {"unknown_bundle": 1}
    assert any("no such bundle" in reason for reason in view["degraded"])


def test_a_gap_in_the_video_costs_the_pictures_up_to_the_next_keyframe(bundle: Bundle) -> None:
    bench, camera = Bench(bundle), FakeCamera(bundle, frames=3 * GOP)
    bench.feed(list(camera.stream(lose_frames=(6,))))
    bench.settle()
    rows = {seq: (status, shown) for seq, status, shown, _ in bench.rows(camera)}
    assert 6 not in rows
    assert [rows[seq][1] for seq in (5, 7, 8, 9, 10, 14)] == ["fused", "none", "none", "none", "fused", "fused"]
    assert bench.view()["match"]["missing_video"] == 1
    assert bench.view()["server"]["dropped"] == {"video_no_keyframe": 3}
    assert bench.acks()[-1]["seq"] == 3 * GOP - 1


def test_a_lost_message_costs_all_its_frames_and_no_others(bundle: Bundle) -> None:
    bench, camera = Bench(bundle), FakeCamera(bundle, frames=3 * GOP)
    messages = [("status", b"online"), ("birth", camera.birth())]
    for number, start in enumerate(range(0, 3 * GOP, GOP)):
        if number != 1:
            messages += [("video", payload) for payload in camera.message(start, start + GOP)]
        messages.append(("semantic", camera.packets[number].to_bytes()))
    bench.feed(messages)
    bench.settle()
    rows = {seq: shown for seq, _, shown, _ in bench.rows(camera)}
    assert rows == dict.fromkeys((*range(GOP), *range(2 * GOP, 3 * GOP)), "fused")
    assert bench.view()["match"]["missing_video"] == GOP
    assert bench.acks()[-1]["seq"] == 3 * GOP - 1


@pytest.mark.parametrize("max_bytes", [120_000, 200])
def test_repeated_messages_with_many_frames_change_nothing(bundle: Bundle, max_bytes: int) -> None:
    bench, camera = Bench(bundle), FakeCamera(bundle, frames=2 * GOP, max_bytes=max_bytes)
    payloads = [*camera.message(0, GOP), *camera.message(GOP, 2 * GOP)]
    assert (len(payloads) > 2) == (max_bytes == 200)
    packets = [("semantic", packet.to_bytes()) for packet in camera.packets]
    bench.feed([("birth", camera.birth()), *packets, *[("video", payload) for payload in [*payloads, *payloads]]])
    bench.settle()
    assert [row[2] for row in bench.rows(camera)] == ["fused"] * (2 * GOP)
    assert bench.view()["match"]["repeated_video"] == 2 * GOP
    assert bench.acks()[-1]["seq"] == 2 * GOP - 1


def test_h264_that_does_not_decode_is_survived(bundle: Bundle) -> None:
    bench, camera = Bench(bundle), FakeCamera(bundle, frames=3 * GOP)
    good = camera.units[5]
    camera.units[5] = replace(good, data=b"\x00\x00\x00\x01\x65" + b"\xff" * 40)
    bench.feed(list(camera.stream()))
    bench.settle()
    shown = [row[2] for row in bench.rows(camera)]
    assert shown[:5] == ["fused"] * 5
    assert shown[10:] == ["fused"] * 5
    assert "none" in shown[5:10]
    assert bench.view()["server"]["dropped"]["video_damaged"] >= 1
    assert bench.acks()[-1]["seq"] == 3 * GOP - 1


def test_a_session_may_change_its_size(bundle: Bundle) -> None:
    bench, camera = Bench(bundle), FakeCamera(bundle, frames=2 * GOP)
    messages = list(camera.stream(lose_packets=(1,)))
    small = access_units(GOP, 64, 48)
    later = [replace(unit, frame_seq=unit.frame_seq + 2 * GOP, capture_ns=10**9 + unit.capture_ns) for unit in small]
    for unit in later:
        parts = split_video([unit], session_id=camera.session_id, width=64, height=48)
        messages += [("video", part.to_bytes()) for part in parts]
    wrong = replace(later[-1], frame_seq=3 * GOP, keyframe=True, data=small[0].data)
    lying = split_video([wrong], session_id=camera.session_id, width=640, height=480)
    bench.feed([*messages, *[("video", part.to_bytes()) for part in lying]])
    bench.settle()
    assert [row[2] for row in bench.rows(camera)] == ["fused"] * (3 * GOP) + ["none"]
    assert bench.view()["picture"]["width"] == 64
    assert bench.view()["server"]["dropped"] == {"video_wrong_size": 1}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["video", "semantic", "birth", "status", "ledger"]),
            st.sampled_from([b"", b"SCV1", b"SCE1", b"{}", b"\x00\x00\x01\x06\x05\xff"]),
            st.binary(max_size=80),
            st.booleans(),
        ),
        max_size=12,
    )
)
def test_no_bytes_on_any_topic_raise(messages: list[tuple[str, bytes, bytes, bool]]) -> None:
    bench = Bench(None)
    for leaf, magic, rest, mended in messages:
        body = magic + rest
        payload = body + crc32c(body).to_bytes(4, "little") if mended else body
        bench.feed([(leaf, payload)])
    bench.settle()
    json.dumps(bench.view(), allow_nan=False)


def test_headers_with_a_right_checksum_and_wrong_contents_are_survived(bundle: Bundle) -> None:
    camera = FakeCamera(bundle, frames=GOP)
    random = np.random.default_rng(5)
    bench = Bench(bundle)
    for leaf, payload in list(camera.stream()) * 4:
        body = bytearray(payload[:-4])
        if leaf in ("video", "semantic"):
            body[int(random.integers(4, len(body)))] ^= 1 << int(random.integers(8))
            bench.feed([(leaf, bytes(body) + crc32c(bytes(body)).to_bytes(4, "little"))])
    bench.feed(list(FakeCamera(bundle, frames=GOP, session_id=5).stream()))
    bench.settle()
    with bench.store._engine.begin() as connection:
        sql = "select count(*) from frames where session = ? and picture = 'fused'"
        assert connection.exec_driver_sql(sql, (session_hex(5),)).scalar() == GOP


def test_each_kind_of_bad_message_has_its_own_count(bundle: Bundle) -> None:
    bench, camera = Bench(bundle), FakeCamera(bundle, frames=GOP)
    video, semantic = camera.video(0)[0], camera.packets[0].to_bytes()
    flipped = bytes([*semantic[:60], semantic[60] ^ 4, *semantic[61:]])
    bad = [
        ("video", video[:-1]),
        ("video", b""),
        ("semantic", flipped),
        ("semantic", semantic[:40]),
        ("semantic", replace(camera.packets[0], kind=3).to_bytes()),
        ("birth", b"{"),
        ("birth", b"[1]"),
        ("birth", b'{"a":' * 30_000),
        ("ledger", b"\xff\xfe"),
        ("status", b"\xff\xfe"),
    ]
    bench.feed(bad)
    bench.feed(list(camera.stream()))
    bench.settle()
    assert bench.view()["server"]["dropped"] == {
        "video_corrupt": 2,
        "semantic_corrupt": 2,
        "semantic_unsupported": 1,
        "birth_corrupt": 3,
        "ledger_corrupt": 1,
    }
    assert len(bench.rows(camera)) == GOP


def test_a_camera_that_lies_in_its_birth_and_ledger_breaks_no_view() -> None:
    bench = Bench(None)
    bench.feed(
        [
            (
                "birth",
                json.dumps({"fps": "fast", "engine": [1], "encoder": {}, "degraded": "x" * 9, "session": 3}).encode(),
            ),
            (
                "ledger",
                json.dumps({"captured": "many", "dropped": [1], "kbps": {"video": None}, "rss_mb": True}).encode(),
            ),
        ]
    )
    view = bench.view()
    nothing = dict.fromkeys(("captured", "committed", "spooled", "backfill"))
    assert view["ledger"] == {**nothing, "dropped": {}}
    json.dumps(view, allow_nan=False)


def test_fragments_make_one_frame_again(bundle: Bundle) -> None:
    bench, camera = Bench(bundle), FakeCamera(bundle, frames=GOP, max_bytes=300)
    assert len(camera.video(0)) > 1
    bench.feed(list(camera.stream()))
    bench.settle()
    assert [row[2] for row in bench.rows(camera)] == ["fused"] * GOP


def test_repetition_on_the_wire_is_no_repetition_in_the_results(bundle: Bundle) -> None:
    bench, camera = Bench(bundle), FakeCamera(bundle, frames=2 * GOP)
    bench.feed(list(camera.stream()))
    bench.settle()
    before = len(bench.acks())
    bench.feed(list(camera.stream()))
    bench.settle()
    assert len(bench.rows(camera)) == 2 * GOP
    assert bench.view()["match_rate"] == 1.0
    assert bench.acks()[before:][-1]["seq"] == 2 * GOP - 1, "a camera that repeats itself has missed the ack"


def test_a_new_session_finishes_the_one_before(bundle: Bundle) -> None:
    bench = Bench(bundle)
    first, second = FakeCamera(bundle, frames=GOP), FakeCamera(bundle, frames=GOP, session_id=77)
    bench.feed(list(first.stream(lose_packets=(0,))))
    bench.feed(list(second.stream()))
    bench.settle()
    assert [row[1] for row in bench.rows(first)] == ["missing_semantics"] * GOP
    assert [row[1:3] for row in bench.rows(second)] == [("matched", "fused")] * GOP
    assert bench.view()["session"] == session_hex(77)
    assert len(bench.opened) == 1, "the networks that are open serve the next session"


def acked(bench: Bench, camera: FakeCamera) -> int:
    return max((ack["seq"] for ack in bench.acks() if ack["session"] == camera.session), default=-1)


def test_what_an_earlier_session_left_is_committed_beside_the_one_that_runs(bundle: Bundle) -> None:
    bench = Bench(bundle)
    first = FakeCamera(bundle, frames=3 * GOP)
    second = FakeCamera(bundle, frames=3 * GOP, session_id=77)
    sent = list(first.stream())
    at = 2 + GOP + 1  # status, birth, the first GOP and its packet: then the camera dies
    bench.feed(sent[:at])
    live = list(second.stream())
    bench.feed(live[:3])
    for pair in zip(sent[at - 3 :], live[3:], strict=False):
        bench.feed(pair)  # some of it was committed before
    bench.feed(live[3 + len(sent[at - 3 :]) :])
    bench.settle()
    for camera in (first, second):
        assert bench.rows(camera) == [(seq, "matched", "fused", 1) for seq in range(3 * GOP)]
        assert acked(bench, camera) == 3 * GOP - 1
    view = bench.view()
    assert view["session"] == second.session
    assert view["picture"]["seq"] == 2 * GOP
    assert view["match"]["matched"] == 3 * GOP
    assert view["server"] == {"committed": 6 * GOP, "waiting": 0, "passed": 0, "dropped": {}}
    assert len(bench.opened) == 2


def test_a_session_that_the_server_never_met_may_come_behind_a_newer_one(bundle: Bundle) -> None:
    bench = Bench(bundle)
    first, second = FakeCamera(bundle, frames=2 * GOP), FakeCamera(bundle, frames=GOP, session_id=77)
    bench.feed(list(second.stream()))
    bench.feed([message for message in first.stream() if message[0] in ("video", "semantic")])
    bench.settle()
    assert [row[1:3] for row in bench.rows(first)] == [("matched", "fused")] * (2 * GOP)
    assert acked(bench, first) == 2 * GOP - 1


def test_repeated_records_of_an_earlier_session_are_acknowledged_again(bundle: Bundle) -> None:
    """Its camera missed the last ack, or its server was restarted since."""
    old = Bench(bundle)
    first, second = FakeCamera(bundle, frames=GOP), FakeCamera(bundle, frames=GOP, session_id=77)
    old.feed(list(first.stream()))
    old.settle()
    bench = Bench(bundle, store=old.store)
    bench.feed([("birth", second.birth())])
    bench.feed([message for message in first.stream() if message[0] == "video"])
    bench.feed(list(second.stream()))
    bench.settle()
    assert acked(bench, first) == GOP - 1
    assert {row[3] for row in bench.rows(first)} == {1}
    assert len(bench.rows(second)) == GOP
    with bench.store._engine.begin() as connection:
        sql = "select birth from sessions where session = ?"
        births = [
            json.loads(connection.exec_driver_sql(sql, (name,)).scalar_one())
            for name in (first.session, second.session)
        ]
    assert [birth["session"] for birth in births] == [first.session, second.session]


def test_few_earlier_sessions_are_open_at_a_time_and_none_for_long(bundle: Bundle) -> None:
    bench = Bench(bundle)
    cameras = [FakeCamera(bundle, frames=GOP, session_id=number) for number in range(1, 6)]
    bench.feed(list(cameras[-1].stream()))
    for camera in cameras[:-1]:
        bench.feed([message for message in camera.stream() if message[0] in ("video", "semantic")])
        assert len(bench.worker._earlier) <= MAX_EARLIER
    bench.settle()
    assert not bench.worker._earlier
    assert [acked(bench, camera) for camera in cameras] == [GOP - 1] * 5
    assert bench.worker.next_wakeup_s() is None


def test_after_a_restart_the_session_goes_on_where_it_was_committed(bundle: Bundle) -> None:
    camera = FakeCamera(bundle, frames=3 * GOP)
    first = Bench(bundle)
    messages = list(camera.stream())
    first.feed(messages[: 2 + GOP + 1])
    first.settle()
    second = Bench(bundle, store=first.store)
    second.feed(messages)
    second.settle()
    rows = second.rows(camera)
    assert [row[0] for row in rows] == list(range(3 * GOP))
    assert {row[3] for row in rows if row[0] >= GOP} == {2}
    assert {row[2] for row in rows} == {"fused"}


def test_an_older_owner_writes_nothing_and_says_so(bundle: Bundle) -> None:
    camera = FakeCamera(bundle, frames=2 * GOP)
    old = Bench(bundle)
    new = Bench(bundle, store=old.store)
    old.feed(list(camera.stream()))
    old.worker.tick(old.now_s + 30)
    assert old.rows(camera) == []
    assert old.acks() == []
    assert old.view()["server"]["dropped"]["fenced"] > 0
    assert any("newer owner" in reason for reason in old.view()["degraded"])
    new.feed(list(camera.stream()))
    new.settle()
    assert len(new.rows(camera)) == 2 * GOP


def test_a_camera_may_not_claim_more_pixels_than_the_server_allows(bundle: Bundle) -> None:
    camera = FakeCamera(bundle, frames=GOP)
    limits = {"limits": {"max_pixels": WIDTH * HEIGHT - 1}}
    bench = Bench(bundle, config=ServerConfig.model_validate(limits))
    bench.feed(list(camera.stream()))
    bench.settle()
    assert bench.rows(camera) == []
    assert bench.view()["server"]["dropped"] == {"too_many_pixels": GOP + 1}
    assert any("limits.max_pixels" in reason for reason in bench.view()["degraded"])
    assert bench.view()["engine"].get("fusion") is None, "no network is opened for it either"


class FailingStore(Store):
    """Refuses the first commits."""

    failures = 2

    def commit(self, camera: str, epoch: int, batch: Batch) -> int:
        if self.failures:
            self.failures -= 1
            raise StoreError("disk full")
        return super().commit(camera, epoch, batch)


def test_nothing_is_acknowledged_while_the_database_fails(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scene_edge.server.writing.RETRY_FIRST_S", 0.0)
    bench, camera = Bench(bundle, store=FailingStore("sqlite://")), FakeCamera(bundle, frames=2 * GOP)
    bench.feed(list(camera.stream()))
    bench.settle()
    assert len(bench.rows(camera)) == 2 * GOP
    assert bench.view()["degraded"] == []
    store = FailingStore("sqlite://")
    store.failures = 1000
    stopped = Bench(bundle, store=store)
    stopped.stop.set()
    stopped.feed(list(camera.stream()))
    assert stopped.acks() == []
    assert any("disk full" in reason for reason in stopped.view()["degraded"])


def test_a_detector_that_fails_costs_its_boxes_and_not_the_frames(bundle: Bundle) -> None:
    bench, camera = Bench(bundle), FakeCamera(bundle, frames=2 * GOP)
    bench.detector.fail = True
    bench.feed(list(camera.stream()))
    bench.settle()
    assert len(bench.rows(camera)) == 2 * GOP
    assert bench.view()["server"]["dropped"]["detection_failed"] == 2
    assert any("no more memory" in reason for reason in bench.view()["degraded"])


def test_far_behind_it_looks_less_often_until_it_has_caught_up() -> None:
    bench, camera = Bench(None, max_lag_s=5.0), FakeCamera(None, frames=4 * FPS)
    messages = list(camera.stream())
    bench.now_s -= 60
    bench.feed(messages[: 2 + 2 * FPS])
    assert len(bench.detector.calls) == 2, "one a second"
    assert any("5 s behind" in reason for reason in bench.view()["degraded"])
    bench.now_s += 60
    bench.feed(messages[2 + 2 * FPS :])
    bench.settle()
    assert len(bench.detector.calls) >= 2 + 9
    assert bench.view()["degraded"] == []
    assert len(bench.rows(camera)) == 4 * FPS


def test_a_camera_without_a_utc_clock_has_no_latency(bundle: Bundle) -> None:
    bench, camera = Bench(bundle), FakeCamera(bundle, frames=GOP, utc_offset_ns=0)
    bench.feed(list(camera.stream()))
    bench.settle()
    assert bench.view()["latency_ms"] == {"p50": None, "p95": None, "p99": None}
    assert len(bench.rows(camera)) == GOP


def test_size_in_the_view() -> None:
    bench, camera = Bench(None), FakeCamera(None, frames=1)
    bench.feed(list(camera.stream()))
    bench.settle()
    view = bench.view()
    assert (view["width"], view["height"], view["picture"]["seq"]) == (WIDTH, HEIGHT, 0)
