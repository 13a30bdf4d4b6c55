"""Other codecs: quality ladders, streams that decode to every picture, bytes that fall with the rung."""

from __future__ import annotations

import pytest

from benchmarks.codecs import CODECS, code_video
from scene_edge.codec.errors import ConfigError
from tests.benchmarks.test_systems import pictures

pytest.importorskip("imageio_ffmpeg")


@pytest.mark.parametrize("name", CODECS)
def test_each_rung_is_coarser_than_the_one_before(name: str) -> None:
    qualities = [CODECS[name].quality(crf) for crf in range(15, 52, 4)]
    assert qualities == sorted(set(qualities))
    assert "{" not in " ".join(CODECS[name].arguments(35, 30))


def test_a_rung_beyond_the_ladder_is_refused() -> None:
    with pytest.raises(ConfigError, match="no such rung"):
        CODECS["x265"].quality(52)


@pytest.mark.parametrize("name", CODECS)
def test_every_picture_comes_back_at_its_place_and_costs_less_at_a_lower_rung(name: str) -> None:
    originals = pictures(7)
    fine, coarse = (code_video(CODECS[name], originals, 25.0, crf, 4) for crf in (19, 43))
    for coded in (fine, coarse):
        assert [(p.width, p.height) for p in coded.pictures] == [(128, 96)] * 7
        assert [unit.keyframe for unit in coded.units] == [i % 4 == 0 for i in range(7)]
    assert sum(len(unit.data) for unit in coarse.units) < sum(len(unit.data) for unit in fine.units)
    errors = [[abs(seen.y.astype(int) - wanted.y).mean() for wanted in originals] for seen in fine.pictures]
    assert [row.index(min(row)) for row in errors] == list(range(7)), "pictures in their order"
