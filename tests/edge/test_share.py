"""Semantics stay a small share of the video, whatever the scene does; and they use the share that they have."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scene_edge.edge.share import PACKET_BYTES, FixedQuality, ShareControl

STEPS = (1.0, 1.4, 2.0, 2.8, 4.0)
GOP = 30


class Scene:
    """GOPs whose semantics at each quality take `growth` first frames, each finer one 1.6 times the coarser."""

    def __init__(self, keyframe_bytes: int, video_bytes: int, first_bytes: float, growth: float) -> None:
        self.keyframe_bytes, self.video_bytes, self.growth = keyframe_bytes, max(video_bytes, keyframe_bytes), growth
        self.bits = [8 * first_bytes * 1.6 ** (len(STEPS) - 1 - index) for index in range(len(STEPS))]

    def cost(self, quality: int | None) -> int:
        return PACKET_BYTES + (0 if quality is None else round(self.growth * self.bits[quality] / 8))


scenes = st.builds(
    Scene, st.integers(100, 20_000), st.integers(100, 200_000), st.floats(0, 3000), st.floats(0, 2.0 * GOP)
)


def run(control: ShareControl, course: Sequence[Scene]) -> list[int | None]:
    chosen = []
    for scene in course:
        chosen.append(control.choose(scene.keyframe_bytes, scene.bits))
        control.spent(scene.video_bytes, scene.cost(chosen[-1]))
    return chosen


@given(st.lists(scenes, min_size=1, max_size=60), st.floats(0.005, 0.5))
def test_semantics_never_exceed_their_share_by_more_than_a_gop(course: list[Scene], share: float) -> None:
    chosen = run(ShareControl(STEPS, share, GOP), course)
    dearest = max((scene.cost(quality) for scene, quality in zip(course, chosen, strict=True)), default=0)
    promised = share * max(scene.video_bytes for scene in course)
    video = semantic = 0
    for scene, quality in zip(course, chosen, strict=True):
        video += scene.video_bytes
        # A silent GOP still takes a header: nothing can be chosen that takes less.
        semantic += scene.cost(quality) - (PACKET_BYTES if quality is None else 0)
        assert semantic <= share * video + dearest + promised + 1e-6


@given(scenes, st.integers(2, 60))
def test_the_same_course_gives_the_same_choices(scene: Scene, length: int) -> None:
    assert run(ShareControl(STEPS, 0.05, GOP), [scene] * length) == run(
        ShareControl(STEPS, 0.05, GOP), [scene] * length
    )


@given(scenes, st.permutations(range(len(STEPS))))
def test_the_order_of_steps_does_not_matter(scene: Scene, order: list[int]) -> None:
    control = ShareControl([STEPS[index] for index in order], 0.05, GOP)
    plain = ShareControl(STEPS, 0.05, GOP)
    for _ in range(10):
        found = control.choose(scene.keyframe_bytes, [scene.bits[index] for index in order])
        expected = plain.choose(scene.keyframe_bytes, scene.bits)
        assert (None if found is None else order[found]) == expected
        for each in (control, plain):
            each.spent(scene.video_bytes, scene.cost(expected))


@pytest.mark.parametrize("first_bytes", [5, 20, 60, 120])
@pytest.mark.parametrize("growth", [8, 15, 30])
def test_a_steady_scene_uses_most_of_its_share(first_bytes: float, growth: float) -> None:
    scene = Scene(8_000, 40_000, first_bytes, growth)
    chosen = run(ShareControl(STEPS, 0.05, GOP), [scene] * 120)
    used = sum(map(scene.cost, chosen)) / (120 * scene.video_bytes)
    assert used <= 0.05
    finest = scene.cost(0) / scene.video_bytes
    assert used >= min(0.04, 0.95 * finest)


def test_it_begins_cautiously() -> None:
    scene = Scene(8_000, 40_000, 10, 10)
    first, *later = run(ShareControl(STEPS, 0.05, GOP), [scene] * 20)
    assert first is None or first > min(quality for quality in later if quality is not None)


def test_too_dear_a_scene_is_silent_and_speaks_again_when_it_calms_down() -> None:
    control = ShareControl(STEPS, 0.05, GOP)
    assert set(run(control, [Scene(2_000, 10_000, 2_000, 30)] * 10)) == {None}
    assert None not in run(control, [Scene(2_000, 30_000, 5, 10)] * 10)[3:]


def test_what_one_gop_overdraws_the_next_ones_save() -> None:
    control = ShareControl(STEPS, 0.05, GOP)
    calm, sudden = Scene(4_000, 20_000, 5, 10), Scene(4_000, 20_000, 5, 900)
    run(control, [calm] * 10)
    chosen = run(control, [sudden])
    after = run(control, [calm] * 60)
    assert chosen[0] is not None
    assert after[0] is None
    assert after[-1] is not None
    speaking = [quality is not None for quality in after]
    assert sum(one != two for one, two in pairwise(speaking)) < 20


def test_a_fixed_quality_asks_nobody() -> None:
    control = FixedQuality(3)
    control.spent(1, 10**9)
    assert control.choose(1, [1e9] * 5) == 3
