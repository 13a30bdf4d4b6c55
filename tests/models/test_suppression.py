"""NSS: a proper distribution over integers, equal to the formula, and gradients that stop at the semantics."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from scene_edge.codec.errors import ConfigError, FormatError  # noqa: E402
from scene_edge.models.masked import tube_mask  # noqa: E402
from scene_edge.models.suppression import DensityNet, Suppression, mixture_log_likelihood  # noqa: E402


def mixture(seed: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    logits, means, log_variances = (torch.randn(*shape, 5, generator=random, dtype=torch.float64) for _ in range(3))
    return logits, 5 * means, 2 * log_variances


def test_likelihood_sums_to_one_over_the_integers() -> None:
    logits, means, log_variances = mixture(1, 20, 1)
    integers = torch.arange(-400, 401, dtype=torch.float64).expand(20, -1)
    total = mixture_log_likelihood(integers, logits, means, log_variances).exp().sum(1)
    assert torch.allclose(total, torch.ones_like(total), atol=1e-9)


def test_likelihood_is_the_difference_of_cumulative_functions() -> None:
    logits, means, log_variances = mixture(2, 30)
    values = np.random.default_rng(3).integers(-8, 9, 30).astype(float)

    def cumulative(x: float, row: int) -> float:
        weights = np.exp(logits[row].numpy()) / np.exp(logits[row].numpy()).sum()
        deviations = np.sqrt(np.exp(log_variances[row].numpy()))
        parts = [
            0.5 * (1 + math.erf((x - mean) / (sigma * math.sqrt(2))))
            for mean, sigma in zip(means[row].tolist(), deviations, strict=True)
        ]
        return float(np.dot(weights, parts))

    expected = [cumulative(x + 0.5, row) - cumulative(x - 0.5, row) for row, x in enumerate(values)]
    got = mixture_log_likelihood(torch.from_numpy(values), logits, means, log_variances).exp()
    assert np.allclose(got.numpy(), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("value", [-300.0, 0.0, 0.5, 40.0])
@pytest.mark.parametrize("log_variance", [-8.0, 0.0, 8.0])
def test_far_and_narrow_and_wide_values_have_finite_gradients_that_pull_them_in(
    value: float, log_variance: float
) -> None:
    x = torch.tensor([value], requires_grad=True)
    parameters = [torch.zeros(1, 1).requires_grad_(), torch.zeros(1, 1).requires_grad_()]
    spread = torch.full((1, 1), log_variance).requires_grad_()
    likelihood = mixture_log_likelihood(x, parameters[0], parameters[1], spread)
    likelihood.sum().backward()
    assert bool(torch.isfinite(likelihood).all())
    for leaf in (x, *parameters, spread):
        assert leaf.grad is not None
        assert bool(torch.isfinite(leaf.grad).all())
    assert x.grad is not None
    if abs(value) > 30:
        assert float(x.grad) * value < 0  # climbing, the value comes closer


def setting(seed: int, grid: tuple[int, int], stride: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens [2, 3, V, 8], their places, and semantics [2, 3, 6, grid / stride]."""
    random = torch.Generator().manual_seed(seed)
    visible, _ = tube_mask(2, grid[0] * grid[1], 0.75, random)
    tokens = torch.randn(2, 3, visible.shape[1], 8, generator=random).mul(3).round()
    return tokens, visible, torch.randn(2, 3, 6, grid[0] // stride, grid[1] // stride, generator=random)


def test_gradients_reach_tokens_and_densities_but_never_the_semantics() -> None:
    tokens, visible, semantic = setting(4, (4, 8))
    tokens.requires_grad_()
    semantic.requires_grad_()
    model = Suppression(6, 8, hidden=16)
    model(tokens, visible, (4, 8), semantic).backward()
    assert semantic.grad is None
    assert tokens.grad is not None
    assert bool((tokens.grad != 0).all())
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_density_is_read_at_the_visible_places_from_semantics_of_any_stride() -> None:
    torch.manual_seed(5)
    net = DensityNet(6, 8, 5, 16)
    torch.nn.init.normal_(net.out.weight)
    semantic = torch.zeros(1, 1, 6, 2, 2)
    semantic[..., 0, 0] = 3.0  # differs in the top left quarter of the picture
    visible = torch.tensor([[0, 5, 15]])  # of 4 x 4 places: top left, its neighbour in the same cell, bottom right
    with torch.no_grad():
        net.align[0].weight[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0.0
        net.align[2].weight[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0.0
        _, means, _ = net(semantic, (4, 4), visible)
    assert means.shape == (1, 1, 3, 8, 5)
    assert torch.allclose(means[0, 0, 0], means[0, 0, 1])
    assert not torch.allclose(means[0, 0, 0], means[0, 0, 2])


def test_without_semantics_only_the_learnt_variable_counts() -> None:
    torch.manual_seed(6)
    tokens, visible, semantic = setting(7, (4, 8), stride=2)
    plain = Suppression(6, 8, hidden=16, conditional=False)
    aware = Suppression(6, 8, hidden=16)
    for model in (plain, aware):
        torch.nn.init.normal_(model.density.out.weight)
    assert torch.equal(plain(tokens, visible, (4, 8), semantic), plain(tokens, visible, (4, 8), semantic + 1))
    assert not torch.equal(aware(tokens, visible, (4, 8), semantic), aware(tokens, visible, (4, 8), semantic + 1))
    plain(tokens, visible, (4, 8), semantic).backward()
    assert plain.variable is not None
    assert plain.variable.grad is not None


def test_semantics_that_tell_the_tokens_make_them_cheap() -> None:
    torch.manual_seed(8)
    _, visible, semantic = setting(9, (4, 4))
    places = semantic.flatten(3).transpose(2, 3)
    told = torch.stack([places[b][:, visible[b]] for b in range(2)]).mul(4).round()
    tokens = torch.cat([told, told[..., :2]], 3)
    model = Suppression(6, 8, hidden=64)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(80):
        loss = model(tokens, visible, (4, 4), semantic)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.4 * losses[0]


def test_misfits_are_refused() -> None:
    tokens, visible, semantic = setting(10, (4, 4))
    with pytest.raises(FormatError, match="same clips"):
        Suppression(6, 8)(tokens, visible, (4, 4), semantic[:, :1])
    with pytest.raises(ConfigError, match="components"):
        Suppression(6, 8, 0)
