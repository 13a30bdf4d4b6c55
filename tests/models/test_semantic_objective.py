"""The terms together: switches, weights, seeds, and who learns from what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from scene_edge.codec.errors import ConfigError, FormatError  # noqa: E402
from scene_edge.models.masked import MaskedConfig  # noqa: E402
from scene_edge.models.semantic_objective import SemanticTerms, SemanticTermsConfig  # noqa: E402
from tests.models.test_perceptual import shufflenet_state  # noqa: E402

TINY = SemanticTermsConfig(
    masked=MaskedConfig(16, 2, 16, 2, 1, 1, mask_ratio=0.75), weights="shufflenet.pth", critic_width=8, pictures=2
)
NAMES = {"masked", "suppression", "perceptual", "adversarial"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    torch.save(shufflenet_state(1), folder / "shufflenet.pth")
    return folder


def clips(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fused and original [2, 3, 24, 16, 16], semantics [2, 3, 6, 4, 4]."""
    random = torch.Generator().manual_seed(seed)
    fused, original = (torch.rand(2, 3, 24, 16, 16, generator=random) for _ in range(2))
    return fused, original, torch.randn(2, 3, 6, 4, 4, generator=random)


def test_defaults_are_the_paper_s() -> None:
    config = SemanticTermsConfig()
    assert (config.alpha, config.beta, config.components) == (1.0, 0.1, 5)
    assert (config.masked.mask_ratio, config.masked.encoder_blocks, config.masked.decoder_blocks) == (0.9, 6, 2)
    assert SemanticTermsConfig.small().masked.encoder_blocks == 6


@pytest.mark.parametrize(
    ("switched", "left"),
    [
        ({}, NAMES),
        ({"alpha": 0.0}, {"perceptual", "adversarial"}),
        ({"beta": 0.0}, NAMES - {"suppression"}),
        ({"perceptual": 0.0, "adversarial": 0.0}, {"masked", "suppression"}),
        ({"alpha": 0.0, "perceptual": 0.0, "adversarial": 0.0}, set()),
    ],
)
def test_a_weight_of_zero_leaves_its_term_out(data: Path, switched: dict[str, float], left: set[str]) -> None:
    terms = SemanticTerms(replace(TINY, **switched), 6, data)  # type: ignore[arg-type]
    assert set(terms(*clips(2))) == left
    assert (terms.discriminate(*clips(2)[:2]) > 0) == ("adversarial" in left)


def test_weights_scale_their_terms(data: Path) -> None:
    torch.manual_seed(3)
    plain = SemanticTerms(TINY, 6, data).eval()
    heavy = SemanticTerms(replace(TINY, alpha=2.0, beta=0.3, perceptual=5.0, adversarial=0.5), 6, data).eval()
    heavy.load_state_dict(plain.state_dict())
    one, other = (terms(*clips(4), torch.Generator().manual_seed(5)) for terms in (plain, heavy))
    for name, factor in (("masked", 2.0), ("suppression", 6.0), ("perceptual", 5.0), ("adversarial", 0.5)):
        assert torch.allclose(other[name], factor * one[name], rtol=1e-4), name


def test_a_seed_fixes_every_term(data: Path) -> None:
    terms = SemanticTerms(TINY, 6, data).eval()
    first, second = (terms(*clips(6), torch.Generator().manual_seed(7)) for _ in range(2))
    torch.manual_seed(8)
    third = terms(*clips(6))
    torch.manual_seed(8)
    fourth = terms(*clips(6))
    for name in NAMES:
        assert torch.equal(first[name], second[name])
        assert torch.equal(third[name], fourth[name])


def test_all_terms_move_the_fused_clip_and_none_the_semantics_the_original_or_what_is_frozen(data: Path) -> None:
    terms = SemanticTerms(TINY, 6, data)
    fused, original, semantic = (value.requires_grad_() for value in clips(9))
    for name, loss in terms(fused, original, semantic).items():
        (gradient,) = torch.autograd.grad(loss, fused, retain_graph=True)
        assert bool(gradient.abs().sum() > 0), name
    sum(terms(fused, original, semantic).values()).backward()  # type: ignore[union-attr]
    assert semantic.grad is None
    assert original.grad is None
    learning = {name.partition(".")[0] for name, value in terms.named_parameters() if value.grad is not None}
    assert learning == {"masked", "suppression"}


def test_no_limit_of_pictures_means_all(data: Path) -> None:
    terms = SemanticTerms(replace(TINY, pictures=0, alpha=0.0), 6, data)
    fused, original, semantic = clips(10)
    fused.requires_grad_()
    terms(fused, original, semantic)["perceptual"].backward()
    assert fused.grad is not None
    assert bool((fused.grad.abs().sum((2, 3, 4)) > 0).all())


def test_only_the_last_frames_are_shown_where_only_they_learn(data: Path) -> None:
    terms = SemanticTerms(replace(TINY, frames=1, pictures=0, alpha=0.0), 6, data)
    fused, original, semantic = clips(12)
    fused.requires_grad_()
    sum(terms(fused, original, semantic).values()).backward()  # type: ignore[union-attr]
    assert fused.grad is not None
    assert torch.equal(fused.grad.abs().sum((2, 3, 4)) > 0, torch.tensor([[False, False, True]] * 2))


def test_settings_and_clips_that_make_no_sense_are_refused(data: Path) -> None:
    with pytest.raises(ConfigError, match="beta"):
        SemanticTermsConfig(beta=-1.0)
    with pytest.raises(ConfigError, match="counted"):
        SemanticTermsConfig(pictures=-1)
    fused, original, semantic = clips(11)
    with pytest.raises(FormatError, match="same clips"):
        SemanticTerms(TINY, 6, data)(fused, original[:, :2], semantic)
