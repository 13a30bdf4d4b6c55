"""What an SMC bundle says of the pictures that it looks at."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import BundleError
from scene_edge.codec.quality import latent_shape, seen_size

EVEN = st.integers(1, 2048).map(lambda half: 2 * half)


def bundle_of(**parameters: Any) -> Bundle:
    return cast(Bundle, SimpleNamespace(name="smc", kind="smc", parameters={"channels": 3, "stride": 16, **parameters}))


@given(EVEN, EVEN, st.integers(32, 4096))
def test_a_picture_is_looked_at_in_its_shape_and_no_larger_than_the_bundle_says(
    width: int, height: int, most: int
) -> None:
    seen = seen_size(bundle_of(max_side=most), width, height)
    if max(width, height) <= most:
        assert seen == (width, height)
        return
    assert max(seen) - 1 <= most
    assert all(side % 2 == 0 and side >= 2 for side in seen)
    scale = most / max(width, height)
    assert all(abs(side - whole * scale) <= 1 or side == 2 for side, whole in zip(seen, (width, height), strict=True))


def test_a_bundle_that_names_no_limit_looks_at_whole_pictures() -> None:
    assert seen_size(bundle_of(), 3840, 2160) == (3840, 2160)
    assert latent_shape(bundle_of(), 1920, 1080) == (3, 68, 120)
    assert latent_shape(bundle_of(max_side=960), 1920, 1080) == (3, 34, 60)


@pytest.mark.parametrize("wrong", [0, 31, 8193, "960", 960.0, True])
def test_a_limit_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(BundleError, match="max_side"):
        seen_size(bundle_of(max_side=wrong), 640, 360)
