"""SCENE costs no bits that it is not worth: what a probe measures, what follows, and when it is made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.planes import Planes
from scene_edge.edge.scene import SceneFilter
from scene_edge.edge.scene_guard import (
    PROBE_FRAMES,
    STRENGTHS,
    GuardSettings,
    Pair,
    RateGuard,
    middle,
    next_strength,
)
from tests.edge.test_networks import SECOND_NS, flat, onnx_session, pictures

SETTINGS = GuardSettings(max_rise=0.02, crf=27, preset="superfast", gop=4)


def changed(planes: Planes, by: float) -> Planes:
    """Detail doubled for `by` 1, blurred for -1."""
    luma = planes.y.astype(float)
    smooth = (luma + np.roll(luma, 1, 0) + np.roll(luma, 1, 1) + np.roll(luma, (1, 1), (0, 1))) / 4
    return Planes(np.clip(np.rint(luma + by * (luma - smooth)), 0, 255).astype(np.uint8), planes.u, planes.v)


def test_what_raises_the_rate_is_weakened_and_what_lowers_it_is_not() -> None:
    texture = np.random.default_rng(2).normal(128, 25, (96, 192))
    chroma = np.full((48, 96), 128, np.uint8)
    clip = [Planes(np.roll(texture, step, 1).clip(0, 255).astype(np.uint8), chroma, chroma) for step in (0, 2, 5)]
    guard = RateGuard(SETTINGS)
    assert guard.judged([(planes, changed(planes, 1.0)) for planes in clip], 1.0) < 1.0
    assert guard.judged([(planes, changed(planes, -1.0)) for planes in clip], 1.0) == 1.0
    assert guard.judged([(planes, changed(planes, -1.0)) for planes in clip], 0.5) == 0.75
    assert guard.judged([(planes, planes) for planes in clip], 1.0) == 1.0


@given(st.sampled_from(STRENGTHS[1:]), st.floats(-1, 5), st.floats(0.001, 1))
def test_the_next_strength_goes_the_right_way(strength: float, rise: float, most: float) -> None:
    following = next_strength(strength, rise, most)
    assert following in STRENGTHS
    if rise > most:
        assert following < strength
        assert following * rise / strength <= most / 2 + 1e-9
    else:
        assert strength <= following <= strength + 0.25
        assert following == strength or following * rise / strength <= most / 2 + 1e-9


def test_a_proportional_rise_settles() -> None:
    """Whatever a full filter would cost, probing ends at one strength, within the bound."""
    for full in (-0.1, 0.0, 0.005, 0.015, 0.03, 0.1, 0.5, 3.0):
        strength, seen = 1.0, []
        for _ in range(12):
            at = strength or STRENGTHS[1]
            strength = next_strength(at, full * at, 0.02)
            seen.append(strength)
        assert len(set(seen[-4:])) == 1, f"{full}: {seen}"
        assert seen[-1] * full <= 0.02


class Scripted(RateGuard):
    """Says what it is told, and remembers what it was shown."""

    def __init__(self, *answers: float) -> None:
        super().__init__(SETTINGS)
        self.answers, self.shown = list(answers), []

    def judged(self, pairs: Sequence[Pair], strength: float) -> float:
        self.shown.append((len(pairs), strength, int(pairs[0][0].y[0, 0]) - int(pairs[0][1].y[0, 0])))
        return self.answers.pop(0) if self.answers else strength


def test_a_filter_is_probed_and_weakened_at_the_next_keyframe(zoo: Path) -> None:
    guard = Scripted(0.5, 0.0, 0.75)
    scene = SceneFilter(Bundle.open("scene-tiny", zoo=zoo), 96, 64, onnx_session, guard=guard)
    levels = [100 - int(scene.apply(flat(100), step * SECOND_NS).y[0, 0]) for step in range(26)]
    assert guard.shown == [(6, 1.0, 10), (6, 0.5, 5), (6, 0.25, 3)]
    assert levels == [10] * 8 + [5] * 8 + [0] * 8 + [8] * 2, "what a probe says holds from the next keyframe on"
    assert scene.strength == 0.75
    scene.reset()
    assert scene.strength == 0.0
    assert 100 - int(scene.apply(flat(100), 0).y[0, 0]) == 10
    scene.close()


def test_a_live_stream_gets_its_filter_at_a_keyframe(zoo: Path) -> None:
    guard = Scripted(0.5)
    scene = SceneFilter(Bundle.open("scene-tiny", zoo=zoo), 96, 64, onnx_session, live=True, guard=guard)
    levels = []
    for step in range(14):
        levels.append(100 - int(scene.apply(flat(100), step * SECOND_NS // 10).y[0, 0]))
        if scene._beside is not None and scene._beside._thread is not None:
            scene._beside._thread.join(30)
    assert guard.shown[0] == (6, 1.0, 10)
    assert levels == [0] * 4 + [10] * 8 + [5] * 2
    scene.close()


def test_probes_become_rare_while_nothing_changes() -> None:
    guard, probes = RateGuard(SETTINGS), []
    for second in range(60):
        if guard.due(second * SECOND_NS) and guard.take(flat(1), flat(1), second * SECOND_NS):
            probes.append(second)
            guard.settled(False)
    assert probes == [5, 12, 21, 34, 55]


def test_a_probe_is_one_filters_and_no_clock_puts_it_off() -> None:
    guard = RateGuard(SETTINGS)
    assert not guard.take(flat(1), flat(1), 0)
    guard.restart()
    for step in range(PROBE_FRAMES):
        assert guard.due(step)
        assert len(guard.take(flat(1), flat(1), step)) == (PROBE_FRAMES if step == PROBE_FRAMES - 1 else 0)
    assert not guard.due(SECOND_NS)
    assert guard.due(-3600 * SECOND_NS), "an hour back"


def test_the_middle_of_a_large_picture_is_probed() -> None:
    (large,) = pictures(1, 1280, 720)
    part = middle(large)
    assert (part.width, part.height) == (960, 540)
    assert np.array_equal(part.y, large.y[90:630, 160:1120])
    assert np.array_equal(part.u, large.u[45:315, 80:560])
    assert middle(part) is part


@pytest.mark.parametrize("rise", [0.011, 0.02])
def test_nothing_changes_between_half_of_what_is_allowed_and_all_of_it(rise: float) -> None:
    assert next_strength(0.5, rise, 0.02) == 0.5
