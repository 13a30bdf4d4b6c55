"""Suppression of non-semantic information (NSS): tokens that the semantics do not foretell cost their surprise.

SMC (TPAMI 2025), section 3.2: the masked objective alone makes the codec carry texture. So the rounded tokens of the
decoded video get a distribution, a mixture of K Gaussians whose parameters Density-Net reads from the semantic feature
(equation 3), their likelihood is the mixture's mass over one step of the quantiser (equation 4), and its negative
logarithm is a loss (equation 5; the caller applies beta). No such bit is ever sent. The semantic feature is detached:
tokens learn to be foretold, semantics never learn to foretell them. Without semantics (`conditional=False`) a plain
learnt variable takes their place, as in the ablation "SMC woSem" (table 8).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scene_edge.codec.errors import ConfigError, FormatError
from scene_edge.models.layers import conv
from scene_edge.models.masked import TOKEN_SPREAD, choose

LOG_VARIANCE_LIMIT = 8.0
"""Log variances stay within this of zero, smoothly: standard deviations of 0.02 to 55 steps."""

MIXTURE = 3
"""Parameters of a component: weight (as a logit), mean, log variance."""


def mixture_log_likelihood(values: Tensor, logits: Tensor, means: Tensor, log_variances: Tensor) -> Tensor:
    """ln p of `values` [...] under mixtures [..., K]: ln of c(value + 0.5) - c(value - 0.5), equation 4.

    c is the mixture's cumulative function. Exact in the tails too: differences are taken between logarithms, on the
    side of each Gaussian where they are small. In float32 or better.
    """
    inverse = torch.exp(-0.5 * log_variances)
    distance = (values[..., None] - means).abs()
    upper = torch.special.log_ndtr((0.5 - distance) * inverse)
    lower = torch.special.log_ndtr((-0.5 - distance) * inverse)
    # expm1 keeps the digits of wide Gaussians; the bound, the gradient of those that leave nothing below
    mass = upper + torch.log(-torch.expm1((lower - upper).clamp(max=-1e-7)))
    return torch.logsumexp(F.log_softmax(logits, -1) + mass, -1)


class DensityNet(nn.Module):
    """Semantic feature [B, T, S, r, c] -> mixture logits, means, log variances of the visible tokens.

    Two 3x3 convolutions align the feature with the tokens, a multi-layer perceptron gives the parameters (SMC, section
    3.2). Each value of a token has a mixture of its own: three tensors [B, T, V, width, K]. The feature may have any
    grid that divides or is divided by that of the tokens; it is averaged or repeated to the tokens' places.
    """

    def __init__(self, semantic: int, width: int, components: int = 5, hidden: int = 128) -> None:
        super().__init__()
        if components < 1:
            raise ConfigError("a mixture needs components", got=components, allowed="1 or more")
        self.width, self.components = width, components
        self.align = nn.Sequential(conv(semantic, hidden), nn.ReLU(), conv(hidden, hidden))
        self.mlp = nn.Sequential(nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.out = nn.Linear(hidden, width * components * MIXTURE)
        # at birth the mixture covers what tokens are at birth, whatever the semantics say
        nn.init.normal_(self.out.weight, std=0.01)
        start = torch.zeros(width, MIXTURE, components)
        start[:, 1] = torch.linspace(-TOKEN_SPREAD, TOKEN_SPREAD, components) if components > 1 else 0.0
        start[:, 2] = 2.0
        with torch.no_grad():
            self.out.bias.copy_(start.flatten())

    def forward(self, semantic: Tensor, grid: tuple[int, int], visible: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, time = semantic.shape[:2]
        aligned = self.align(F.adaptive_avg_pool2d(semantic.flatten(0, 1), grid))
        places = aligned.flatten(2).transpose(1, 2).reshape(batch, time, grid[0] * grid[1], -1)
        parameters = self.out(self.mlp(choose(places, visible))).float()
        logits, means, log_variances = parameters.reshape(
            *parameters.shape[:3], self.width, MIXTURE, self.components
        ).unbind(4)
        return logits, means, LOG_VARIANCE_LIMIT * torch.tanh(log_variances / LOG_VARIANCE_LIMIT)


class Suppression(nn.Module):
    """Rounded tokens [B, T, V, width] at `visible` [B, V], semantic feature [B, T, S, r, c] -> -ln p(Tok | S).

    The mean over all token values, in nats, so that beta does not depend on their number. `grid` is the rows and
    columns of patches. Raises FormatError where feature and tokens are not of the same clips.
    """

    def __init__(
        self, semantic: int, width: int, components: int = 5, *, conditional: bool = True, hidden: int = 128
    ) -> None:
        super().__init__()
        self.density = DensityNet(semantic, width, components, hidden)
        self.variable = None if conditional else nn.Parameter(torch.zeros(semantic, 1, 1))

    def forward(self, tokens: Tensor, visible: Tensor, grid: tuple[int, int], semantic: Tensor) -> Tensor:
        if semantic.dim() != 5 or semantic.shape[:2] != tokens.shape[:2]:
            raise FormatError(
                "semantics and tokens are not of the same clips",
                got=tuple(semantic.shape),
                allowed=f"[{tokens.shape[0]}, {tokens.shape[1]}, S, rows, columns]",
            )
        condition = semantic.detach()
        if self.variable is not None:
            condition = self.variable.expand_as(condition)
        logits, means, log_variances = self.density(condition, grid, visible)
        return -mixture_log_likelihood(tokens.float(), logits, means, log_variances).mean()
