"""Clip recogniser: which pictures a verdict rests on, when verdicts come, exposure, smoothing, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scene_edge.codec.errors import BundleError, FormatError
from scene_edge.codec.planes import Planes
from scene_edge.server.analytics import action as module
from scene_edge.server.analytics.action import ActionModel, ClipRecogniser, evenly, expose


def flat(level: int, width: int = 64, height: int = 48) -> Planes:
    half = np.full((height // 2, width // 2), 128, np.uint8)
    return Planes(np.full((height, width), level, np.uint8), half, half)


class FakeBundle:
    name, kind = "toy", "action"

    def __init__(self, **changes: object) -> None:
        self.parameters = {
            "labels": ["calm", "fight"],
            "frames": 4,
            "size": [32, 64],
            "window_s": 1.0,
            "hop_s": 0.5,
            **changes,
        }


class FakeSession:
    """Answers with the logits given in turn, and keeps what it saw."""

    engine, precision, device, fallbacks = "fake", "fp32", "none", ()

    def __init__(self, answers: list[list[float]]) -> None:
        self.answers, self.seen, self.closed = answers, [], False

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.seen.append(inputs["clip"])
        answer = self.answers[min(len(self.seen), len(self.answers)) - 1]
        return {"logits": np.array(answer, np.float32).reshape(1, -1, 1, 1)}

    def close(self) -> None:
        self.closed = True


def recogniser(
    monkeypatch: pytest.MonkeyPatch, answers: list[list[float]], **changes: object
) -> tuple[ClipRecogniser, FakeSession]:
    session = FakeSession(answers)
    monkeypatch.setattr(module, "open_session", lambda *_, **__: session)
    smooth = changes.pop("smooth", 1)
    return ClipRecogniser(FakeBundle(**changes), smooth=smooth), session  # type: ignore[arg-type]


def test_first_verdict_after_a_full_window_then_one_every_hop(monkeypatch: pytest.MonkeyPatch) -> None:
    clips, session = recogniser(monkeypatch, [[0, 1]])
    verdicts = {seq: got for seq in range(50) if (got := clips.push(flat(150), seq, seq / 20))}
    assert sorted(verdicts) == [20, 30, 40]
    first = verdicts[20][0]
    assert (first.label, first.start_seq, first.end_seq, first.model) == ("fight", 0, 20, "toy")
    assert first.score == pytest.approx(1 / (1 + np.exp(-1)))
    assert session.seen[0].shape == (4, 8, 16, 24)
    assert verdicts[30][0].start_seq == 10


def test_the_network_sees_pictures_spread_evenly_over_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    clips, session = recogniser(monkeypatch, [[0, 1]])
    for seq in range(21):
        clips.push(flat(100 + 5 * seq), seq, seq / 20)
    levels = session.seen[0][:, 0, 0, 0].astype(int)
    assert np.diff(levels).tolist() == pytest.approx([33] * 3, abs=8)
    assert levels[0] == 100
    assert levels[-1] == 200


def test_a_fast_camera_costs_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    clips, _ = recogniser(monkeypatch, [[0, 1]])
    for seq in range(2000):
        clips.push(flat(150, 32, 32), seq, seq / 500)
        assert len(clips._pictures) <= 4 * clips.model.frames + 4


def test_verdicts_are_averaged_over_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    clips, _ = recogniser(monkeypatch, [[4, 0], [0, 1], [0, 6]], smooth=2)
    labels = [one.label for seq in range(41) for one in clips.push(flat(150), seq, seq / 20)]
    assert labels == ["calm", "calm", "fight"]


def test_time_that_goes_back_and_reset_start_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    clips, _ = recogniser(monkeypatch, [[0, 1]])
    for seq in range(15):
        clips.push(flat(150), seq, seq / 20)
    assert [seq for seq in range(25) if clips.push(flat(150), seq, seq / 20)] == [20]
    clips.reset()
    assert [seq for seq in range(25) if clips.push(flat(150), seq, 9 + seq / 20)] == [20]


def test_a_gap_in_time_leaves_one_usable_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    clips, session = recogniser(monkeypatch, [[0, 1]])
    clips.push(flat(150), 0, 0.0)
    verdict = clips.push(flat(150), 1, 60.0)[0]
    assert (verdict.start_seq, verdict.end_seq) == (1, 1)
    assert session.seen[0].shape[0] == 4


def test_a_whole_clip_is_classified_without_touching_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    clips, session = recogniser(monkeypatch, [[2, 0]])
    scores = clips.classify([flat(110), flat(150), flat(190)])
    assert sum(scores.values()) == pytest.approx(1)
    assert max(scores, key=scores.__getitem__) == "calm"
    assert session.seen[0][:, 0, 0, 0].tolist()[::3] == [110, 190]
    with pytest.raises(FormatError, match="at least one"):
        clips.classify([])
    assert not clips._pictures
    clips.close()
    assert session.closed


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 5), min_size=1, max_size=40, unique=True), st.integers(2, 9))
def test_evenly_takes_the_nearest_picture_to_each_instant(times: list[float], count: int) -> None:
    times = sorted(times)
    chosen = evenly(times, times[0], times[-1], count)
    for instant, index in zip(np.linspace(times[0], times[-1], count), chosen, strict=True):
        assert abs(times[index] - instant) == pytest.approx(min(abs(t - instant) for t in times))


def test_dark_clips_are_lifted_by_one_gain_and_bright_ones_left() -> None:
    frames = np.full((2, 4, 4, 24), 128, np.uint8)
    frames[0, ..., :16], frames[1, ..., :16] = 20, 36
    lifted = expose(frames)
    assert lifted[0, 0, 0, 0] == 16 + 4 * 6
    assert lifted[1, 0, 0, 0] == 16 + 20 * 6
    assert (lifted[..., 16:] == 128).all()
    assert (frames[0, ..., :16] == 20).all()
    bright = np.full((2, 4, 4, 24), 150, np.uint8)
    assert (expose(bright) == bright).all()


@pytest.mark.parametrize(
    "changes",
    [{"labels": ["one"]}, {"frames": 1}, {"size": [30, 64]}, {"hop_s": 0}, {"window_s": "long"}, {"size": None}],
)
def test_unusable_parameters_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(BundleError, match="parameters"):
        ActionModel.of(FakeBundle(**changes))  # type: ignore[arg-type]


def test_a_network_with_other_labels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    clips, _ = recogniser(monkeypatch, [[1, 2, 3]])
    with pytest.raises(FormatError, match="another number of scores"):
        clips.classify([flat(100)])


def test_another_kind_of_bundle_is_refused() -> None:
    bundle = FakeBundle()
    bundle.kind = "detector"
    with pytest.raises(BundleError, match="no action model"):
        ActionModel.of(bundle)  # type: ignore[arg-type]
