"""Masked prediction: one mask for all frames, its exact share, nothing but the visible seen, and a loss that falls."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from scene_edge.codec.errors import ConfigError, FormatError  # noqa: E402
from scene_edge.models import masked as m  # noqa: E402

TINY = m.MaskedConfig(width=16, heads=2, decoder_width=16, decoder_heads=2, encoder_blocks=1, decoder_blocks=1)


def clip(seed: int, batch: int = 2, time: int = 3, side: int = 32) -> torch.Tensor:
    return torch.rand(batch, time, 24, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("ratio", "places", "hidden"), [(0.9, 256, 230), (0.75, 64, 48), (0.5, 10, 5), (0.99, 4, 3), (0.01, 4, 1)]
)
def test_mask_hides_its_exact_share_and_partitions_the_places(ratio: float, places: int, hidden: int) -> None:
    seen, unseen = m.tube_mask(3, places, ratio, torch.Generator().manual_seed(1))
    assert seen.shape == (3, places - hidden)
    assert unseen.shape == (3, hidden)
    both = torch.cat([seen, unseen], 1).sort(1).values
    assert torch.equal(both, torch.arange(places).expand(3, -1))
    assert not torch.equal(unseen[0].sort().values, unseen[1].sort().values) or hidden == 1


def test_patches_are_the_4x4_cells_in_raster_order() -> None:
    values = clip(2, 1, 2, 12)
    patches = m.to_patches(values)
    assert patches.shape == (1, 2, 9, m.PATCH)
    expected = values[0, 1, :, 4:8, 8:12].reshape(-1)  # row 1, column 2 of 3
    assert torch.equal(patches[0, 1, 5], expected)


def test_choose_takes_the_same_places_of_every_frame() -> None:
    values, places = torch.randn(2, 3, 7, 4), torch.tensor([[6, 0], [2, 2]])
    expected = np.stack([values[b].numpy()[:, places[b].numpy()] for b in range(2)])
    assert np.array_equal(m.choose(values, places).numpy(), expected)


def test_only_visible_patches_of_the_decoded_clip_matter_in_every_frame_alike() -> None:
    torch.manual_seed(3)
    model, decoded, original = m.MaskedVideo(TINY), clip(4).requires_grad_(), clip(5)
    prediction = model(decoded, original, torch.Generator().manual_seed(6))
    prediction.loss.backward()
    assert decoded.grad is not None
    touched = m.to_patches(decoded.grad).abs().sum(3) > 0  # [B, T, P]
    assert prediction.visible.shape == (2, 64 - round(0.9 * 64))
    for sample, places in zip(touched, prediction.visible, strict=True):
        for frame in sample:
            assert set(frame.nonzero()[:, 0].tolist()) == set(places.tolist())


def test_tokens_are_whole_numbers_over_several_steps_at_birth() -> None:
    torch.manual_seed(7)
    tokens = m.MaskedVideo(TINY)(clip(8), clip(8)).tokens.detach()
    assert torch.equal(tokens, tokens.round())
    assert 2.0 < float(tokens.std()) < 8.0


def test_loss_is_the_mean_absolute_error_of_the_hidden_patches() -> None:
    torch.manual_seed(9)
    model, original = m.MaskedVideo(TINY), clip(10)
    torch.nn.init.zeros_(model.head[1].weight)  # foretells 0.5 everywhere
    prediction = model(original, original, torch.Generator().manual_seed(11))
    patches = m.to_patches(original)
    hidden = torch.ones(2, 64, dtype=torch.bool).scatter(1, prediction.visible, False)
    expected = np.mean([(patches[b][:, hidden[b]] - 0.5).abs().mean() for b in range(2)])
    assert float(prediction.loss.detach()) == pytest.approx(float(expected), rel=1e-5)


def test_a_seed_fixes_mask_and_loss() -> None:
    torch.manual_seed(12)
    model, decoded = m.MaskedVideo(TINY), clip(13)
    first, second = (model(decoded, decoded, torch.Generator().manual_seed(seed)) for seed in (5, 5))
    other = model(decoded, decoded, torch.Generator().manual_seed(6))
    assert torch.equal(first.visible, second.visible)
    assert torch.equal(first.loss, second.loss)
    assert not torch.equal(first.visible, other.visible)


def test_loss_falls_on_a_batch_learnt_by_heart() -> None:
    torch.manual_seed(14)
    model = m.MaskedVideo(m.MaskedConfig(32, 2, 32, 2, 2, 1, mask_ratio=0.75, foretold=0.9))
    ramp = torch.linspace(0, 1, 16)[None, None, None, :, None].expand(2, 2, 24, 16, 16).contiguous()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = model(ramp, ramp).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.4 * losses[0]


def test_runs_in_bf16_and_tokens_keep_their_integers() -> None:
    model, decoded = m.MaskedVideo(TINY), clip(15)
    with torch.autocast("cpu", torch.bfloat16):
        prediction = model(decoded, decoded)
    assert prediction.loss.dtype == prediction.tokens.dtype == torch.float32
    assert bool(torch.isfinite(prediction.loss))


@pytest.mark.parametrize(
    "wrong",
    [{"width": 30}, {"heads": 5}, {"mask_ratio": 1.0}, {"foretold": 0.0}, {"encoder_blocks": 0}, {"decoder_heads": 0}],
)
def test_sizes_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        m.MaskedConfig(**wrong)  # type: ignore[arg-type]


def test_clips_of_other_shapes_are_refused() -> None:
    with pytest.raises(FormatError, match="whole patches"):
        m.to_patches(torch.zeros(1, 1, 24, 6, 8))
    with pytest.raises(FormatError, match="differ"):
        m.MaskedVideo(TINY)(clip(1), clip(1, time=2))
