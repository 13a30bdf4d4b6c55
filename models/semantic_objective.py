"""SMC's learning objective without its rate: alpha * (beta * NSS + MAE) + perceptual + adversarial (equation 6).

Each term is a module of its own; here they share one clip, one mask and one set of weights. A weight of zero switches
its term off: nothing is built, computed or reported for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from scene_edge.codec.errors import ConfigError, FormatError
from scene_edge.models.masked import CELL, SMALL, MaskedConfig, MaskedVideo
from scene_edge.models.perceptual import Adversary, FeatureDistance
from scene_edge.models.suppression import Suppression


@dataclass(frozen=True)
class SemanticTermsConfig:
    """Weights and sizes; the default is the paper's (section 4.2). `mask_ratio` lies in `masked`.

    alpha = 0 drops masking and suppression, beta = 0 suppression alone ("SMC woNSS"); conditional = False suppresses
    without semantics ("SMC woSem"). `weights` is the ShuffleNetV2 file, relative to the data folder. Of the last
    `frames` of each clip, `pictures` of a batch, drawn anew at each call, meet the perceptual and adversarial terms; 0
    means all. Where only the last frame learns, only the last is worth showing.
    """

    alpha: float = 1.0
    beta: float = 0.1
    perceptual: float = 1.0
    adversarial: float = 1.0
    components: int = 5
    conditional: bool = True
    masked: MaskedConfig = field(default_factory=MaskedConfig)
    frames: int = 0
    pictures: int = 0
    weights: str = "models/shufflenetv2.pth"
    critic_width: int = 64
    critic_learning_rate: float = 2e-4

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "perceptual", "adversarial"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ConfigError(
                    f"weight {name} out of range", got=getattr(self, name), allowed="0 (off) or a positive number"
                )
        if min(self.frames, self.pictures) < 0:
            raise ConfigError(
                "frames and pictures must be counted", got=(self.frames, self.pictures), allowed="0 (all) or more"
            )

    @property
    def is_off(self) -> bool:
        """Whether nothing is switched on."""
        return not (self.alpha or self.perceptual or self.adversarial)

    @classmethod
    def off(cls) -> SemanticTermsConfig:
        """No term at all."""
        return cls(alpha=0.0, beta=0.0, perceptual=0.0, adversarial=0.0)

    @classmethod
    def small(cls) -> SemanticTermsConfig:
        """The same objective in networks for a processor; its adversary is given less to say, at small batches."""
        return cls(masked=SMALL, adversarial=0.05, frames=1, pictures=3, critic_width=24)


class SemanticTerms(nn.Module):
    """fused, original [B, T, 24, h, w] in 0..1, semantic [B, T, S, r, c] -> weighted losses by name.

    Names: masked, suppression, perceptual, adversarial; their sum is the objective. Mask and choice of pictures are
    drawn from `generator`, a CPU one, or else from torch's seed. Once a step the adversary learns by `discriminate`:

        figures["critic"] = terms.discriminate(fused, original)
        loss = sum(terms(fused, original, compensated).values())

    The frozen features and the discriminator have parameters, but no gradient of these losses reaches them.
    """

    def __init__(self, config: SemanticTermsConfig, semantic: int, data: Path) -> None:
        super().__init__()
        self.config = config
        self.masked = MaskedVideo(config.masked) if config.alpha else None
        self.suppression = None
        if config.alpha and config.beta:
            self.suppression = Suppression(
                semantic, config.masked.width, config.components, conditional=config.conditional
            )
        self.perceptual = FeatureDistance(data / config.weights) if config.perceptual else None
        self.adversary = Adversary(config.critic_width, config.critic_learning_rate) if config.adversarial else None

    def forward(
        self, fused: Tensor, original: Tensor, semantic: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        config, terms = self.config, {}
        if fused.dim() != 5 or fused.shape != original.shape:
            raise FormatError(
                "fused and original are not the same clips", got=tuple(fused.shape), allowed=tuple(original.shape)
            )
        if self.masked is not None:
            prediction = self.masked(fused, original, generator)
            terms["masked"] = config.alpha * prediction.loss
            if self.suppression is not None:
                grid = fused.shape[3] // CELL, fused.shape[4] // CELL
                surprise = self.suppression(prediction.tokens, prediction.visible, grid, semantic)
                terms["suppression"] = config.alpha * config.beta * surprise
        if self.perceptual is not None or self.adversary is not None:
            made, real = self._some(fused, original, generator)
            if self.perceptual is not None:
                terms["perceptual"] = config.perceptual * self.perceptual(made, real)
            if self.adversary is not None:
                terms["adversarial"] = config.adversarial * self.adversary.generator_loss(made)
        return terms

    def discriminate(self, fused: Tensor, original: Tensor, generator: torch.Generator | None = None) -> float:
        """One step of the adversary on as many pictures as it judges; its loss, 0 where the term is off."""
        if self.adversary is None:
            return 0.0
        made, real = self._some(fused, original, generator)
        return self.adversary.step(real, made)

    def _some(self, fused: Tensor, original: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """The same few pictures of both, [N, 24, h, w] each, in the layout that convolutions like."""
        fused, original = (clip[:, -self.config.frames :] for clip in (fused, original))  # -0 is the whole
        count = fused.shape[0] * fused.shape[1]
        index = torch.randperm(count, generator=generator)[: self.config.pictures or count].to(fused.device)
        chosen = [clip.flatten(0, 1).index_select(0, index) for clip in (fused, original)]
        made, real = (pictures.contiguous(memory_format=torch.channels_last) for pictures in chosen)
        return made, real
