"""The frozen features equal the network they were read from; the adversary learns alone and judges without learning."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

import torch.nn.functional as F  # noqa: E402

from scene_edge.codec.errors import ConfigError, FormatError  # noqa: E402
from scene_edge.models.backbone import STAGES, STEM, Backbone, linear_bgr  # noqa: E402
from scene_edge.models.perceptual import Adversary, FeatureDistance, load_shufflenet  # noqa: E402

State = dict[str, torch.Tensor]


def shufflenet_state(seed: int) -> State:
    """A random ShuffleNetV2 x0.5 as its authors name it, batch norms and all."""
    random = torch.Generator().manual_seed(seed)
    state: State = {}

    def put(convolution: str, norm: str, *shape: int) -> None:
        fan_in = shape[1] * shape[2] * shape[3]
        state[f"{convolution}.weight"] = torch.randn(*shape, generator=random) * (2.0 / fan_in) ** 0.5
        for name, least in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
            state[f"{norm}.{name}"] = torch.rand(shape[0], generator=random) + least

    put("first_conv.0", "first_conv.1", STEM, 3, 3, 3)
    inputs = STEM
    for number, (outputs, units) in enumerate(STAGES):
        half = outputs // 2
        for index in range(units):
            prefix, main = f"stage{number + 2}.{index}", inputs if index == 0 else half
            put(f"{prefix}.branch_main.0", f"{prefix}.branch_main.1", half, main, 1, 1)
            put(f"{prefix}.branch_main.3", f"{prefix}.branch_main.4", half, 1, 3, 3)
            put(f"{prefix}.branch_main.5", f"{prefix}.branch_main.6", half, half, 1, 1)
            if index == 0:
                put(f"{prefix}.branch_proj.0", f"{prefix}.branch_proj.1", inputs, 1, 3, 3)
                put(f"{prefix}.branch_proj.2", f"{prefix}.branch_proj.3", half, inputs, 1, 1)
        inputs = outputs
    return state


def layer(state: State, x: torch.Tensor, convolution: str, norm: str, stride: int = 1) -> torch.Tensor:
    weight = state[f"{convolution}.weight"]
    groups = weight.shape[0] if weight.shape[1] == 1 else 1
    y = F.conv2d(x, weight, None, stride, weight.shape[2] // 2, groups=groups)
    return F.batch_norm(y, *(state[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")))


def stages(state: State, y: torch.Tensor) -> list[torch.Tensor]:
    """What follows the pooled stem, as published."""
    features = []
    for number, (_, units) in enumerate(STAGES):
        for index in range(units):
            prefix, stride = f"stage{number + 2}.{index}", 2 if index == 0 else 1
            side, main = (y, y) if index == 0 else (y[:, 0::2], y[:, 1::2])
            for at, active, step in ((0, True, 1), (3, False, stride), (5, True, 1)):
                main = layer(state, main, f"{prefix}.branch_main.{at}", f"{prefix}.branch_main.{at + 1}", step)
                main = F.relu(main) if active else main
            if index == 0:
                side = layer(state, side, f"{prefix}.branch_proj.0", f"{prefix}.branch_proj.1", 2)
                side = F.relu(layer(state, side, f"{prefix}.branch_proj.2", f"{prefix}.branch_proj.3"))
            y = torch.cat([side, main], 1)
        features.append(y)
    return features


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(shufflenet_state(1), tmp_path / "shufflenet.pth")
    return tmp_path / "shufflenet.pth"


def pictures(seed: int) -> torch.Tensor:
    return torch.rand(2, 24, 16, 24, generator=torch.Generator().manual_seed(seed))


def test_features_equal_those_of_the_network_that_was_read(weights: Path) -> None:
    packed, state, trunk = pictures(2), shufflenet_state(1), Backbone()
    load_shufflenet(trunk, weights)
    with torch.no_grad():
        stem = F.relu(trunk.stem(packed).unflatten(1, (4, STEM)).amax(1))
        got = trunk(packed.permute(0, 2, 3, 1) * 255.0)
    pooled = F.max_pool2d(F.relu(layer(state, linear_bgr(packed), "first_conv.0", "first_conv.1", 2)), 2)
    assert torch.allclose(stem[..., 1:-1, 1:-1], pooled[..., 1:-1, 1:-1], atol=1e-4)  # borders pad in other spaces
    for value, expected in zip(got, stages(state, stem), strict=True):
        assert torch.allclose(value, expected, rtol=1e-3, atol=1e-3)


def test_distance_is_zero_for_the_same_picture_and_grows_with_the_difference(weights: Path) -> None:
    distance, original = FeatureDistance(weights), pictures(3)
    noise = pictures(4) - 0.5
    assert float(distance(original, original)) == 0.0
    near, far = (float(distance(original + gain * noise, original)) for gain in (0.05, 0.5))
    assert 0.0 < near < far


def test_distance_moves_the_picture_and_nothing_else(weights: Path) -> None:
    distance, made, original = FeatureDistance(weights), pictures(5).requires_grad_(), pictures(6).requires_grad_()
    distance(made, original).backward()
    assert made.grad is not None
    assert bool(made.grad.abs().sum() > 0)
    assert original.grad is None
    assert not any(parameter.requires_grad for parameter in distance.parameters())


def test_missing_and_foreign_weights_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such weights"):
        FeatureDistance(tmp_path / "nothing.pth")
    state = shufflenet_state(7)
    del state["stage3.2.branch_main.0.weight"]
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(FormatError, match="ShuffleNetV2"):
        FeatureDistance(tmp_path / "cut.pth")
    wide = shufflenet_state(7)
    wide["stage2.0.branch_main.0.weight"] = torch.zeros(48, 24, 1, 1)
    torch.save(wide, tmp_path / "wide.pth")
    with pytest.raises(FormatError, match="ShuffleNetV2"):
        FeatureDistance(tmp_path / "wide.pth")


def test_hinge_loss_is_the_formula() -> None:
    torch.manual_seed(8)
    adversary = Adversary(8).eval()  # power iteration rests, so that two passes agree
    real, made = pictures(9), pictures(10)
    with torch.no_grad():
        on_real, on_made = adversary.critic(real - 0.5), adversary.critic(made - 0.5)
        assert on_real.shape == (2, 1, 4, 6)
        expected = (1 - on_real).clamp(min=0).mean() + (1 + on_made).clamp(min=0).mean()
        assert torch.allclose(adversary.discriminator_loss(real, made), expected, atol=1e-5)
        assert torch.allclose(adversary.generator_loss(made), -on_made.mean(), atol=1e-5)


def test_generator_moves_the_picture_alone_even_when_the_critic_steps_in_between() -> None:
    torch.manual_seed(11)
    adversary, made = Adversary(8), pictures(12).requires_grad_()
    loss = adversary.generator_loss(made)
    adversary.step(pictures(13), made)
    loss.backward()
    assert made.grad is not None
    assert bool(made.grad.abs().sum() > 0)
    assert all(parameter.grad is None for parameter in adversary.parameters())


def test_the_critic_learns_to_tell_and_an_outer_optimiser_leaves_it_alone() -> None:
    torch.manual_seed(14)
    adversary = Adversary(8, learning_rate=5e-3)
    real, made = pictures(15), pictures(16) * 0.5
    losses = [adversary.step(real, made) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]
    before = {name: value.detach().clone() for name, value in adversary.named_parameters()}
    outer = torch.optim.AdamW(adversary.parameters(), 0.1, weight_decay=0.1)
    adversary.generator_loss(made.requires_grad_()).backward()
    outer.step()
    assert all(torch.equal(value, before[name]) for name, value in adversary.named_parameters())


def test_a_saved_adversary_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    torch.manual_seed(17)
    first = Adversary(8)
    first.step(pictures(18), pictures(19))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = Adversary(8)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for adversary in (first, second):
        adversary.step(pictures(20), pictures(21))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
