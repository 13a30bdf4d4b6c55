"""Objectives against oracles, and a run that resumes where it stopped."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from scene_edge.codec.errors import ConfigError, FormatError, UsageError  # noqa: E402
from scene_edge.models.data import relight_packed  # noqa: E402
from scene_edge.models.instruments import OnnxFeatures  # noqa: E402
from scene_edge.models.loop import Progressed, RunConfig, Trainer  # noqa: E402
from scene_edge.models.objectives import LatentPrior, MachineDistance, _excess, rate_slope, ssim  # noqa: E402
from scene_edge.models.registry import build_export  # noqa: E402
from scene_edge.models.train_scene import thumbnail  # noqa: E402


def test_latent_prior_matches_the_logistic_written_out() -> None:
    prior = LatentPrior(2)
    latent = torch.tensor([[[[0.0, 3.0]], [[-1.0, 2.0]]]])
    scale = math.exp(-0.5)

    def likelihood(x: float) -> float:
        return 1 / (1 + math.exp(-(x + 0.5) / scale)) - 1 / (1 + math.exp(-(x - 0.5) / scale))

    expected = -sum(math.log2(likelihood(x)) for x in (0.0, 3.0, -1.0, 2.0))
    assert float(prior.bits(latent, None).detach()) == pytest.approx(expected, rel=1e-4)
    assert float(prior.bits(latent, torch.full_like(latent, 5)).detach()) != pytest.approx(expected, rel=1e-2)


def test_an_object_is_claimed_from_a_third_of_a_chance_on() -> None:
    """Who minimises the mean over what may be true says more than 0.5 where the truth is 0.9 in three of ten cases."""
    said = torch.linspace(0.001, 0.999, 999)
    means = {}
    for chance in (0.2, 0.35, 0.8):
        there, not_there = (_excess(said, torch.full_like(said, truth)) for truth in (0.9, 0.001))
        means[chance] = float(said[(chance * there + (1 - chance) * not_there).argmin()])
    assert means[0.2] < 0.45
    assert 0.5 < means[0.35] < 0.8 <= means[0.8] <= 0.9
    assert torch.equal(_excess(said, said), torch.zeros_like(said))


def test_what_is_missed_is_one_less_f1_of_the_claims() -> None:
    machine = MachineDistance.__new__(MachineDistance)
    truth = torch.zeros(1, 85, 1, 4)
    truth[:, 4], truth[:, 5] = torch.tensor([0.99, 0.99, 0.99, 0.01]), 0.99
    assert float(machine.missed([truth] * 5, [truth] * 5)) < 0.15, "softened, and 1 in the denominator"
    seen = truth.clone()
    seen[:, 4, :, 1:3] = 0.01  # 2 of 3 missed at each of three scales
    expected = 1 - 2 * 3 / (3 + 9 + 1)
    assert float(machine.missed([seen] * 5, [truth] * 5)) == pytest.approx(expected, abs=0.02)
    seen = truth.clone()
    seen[:, 6], seen[:, 5] = 0.99, 0.01  # of another class: neither found nor right
    assert float(machine.missed([seen] * 5, [truth] * 5)) > 0.95
    seen = truth.clone().requires_grad_()
    machine.missed([seen * 0.6] * 5, [truth] * 5).backward()
    assert seen.grad is not None
    assert float(seen.grad[0, 4, 0, 0]) < 0 < float(seen.grad[0, 4, 0, 3])


def test_ssim_of_a_picture_with_itself_is_one() -> None:
    picture = torch.rand(2, 1, 32, 32)
    assert torch.allclose(ssim(picture, picture), torch.ones(2), atol=1e-5)
    assert bool((ssim(picture, picture.flip(3)) < 0.9).all())


def test_rate_slope_recovers_a_line() -> None:
    busy = 7.0  # one crop costs more bits and loses more, at every quality
    points = [[(bits, 3.0 - 0.4 * math.log(bits)), (bits * busy, 5.0 - 0.4 * math.log(bits))] for bits in (0.01, 0.08)]
    assert rate_slope(points) == pytest.approx(0.4)


def test_thumbnail_averages_areas() -> None:
    picture = torch.full((1, 24, 36, 64), 0.25)
    picture[:, 16:20] = 0.5
    thumb = thumbnail(picture)
    assert thumb.shape == (1, 24, 18, 32)
    assert torch.allclose(thumb[:, :16], torch.tensor(0.25))
    assert torch.allclose(thumb[:, 16:20], torch.tensor(0.5))


def tiny_onnx(path: Path, operator: str = "Sigmoid") -> None:
    weight = onnx.numpy_helper.from_array(np.random.default_rng(3).normal(size=(4, 3, 3, 3)).astype(np.float32), "w")
    nodes = [
        onnx.helper.make_node(
            "Conv", ["x", "w"], ["c"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], dilations=[1, 1], group=1
        ),
        onnx.helper.make_node(operator, ["c"], ["s"]),
        onnx.helper.make_node("Mul", ["c", "s"], ["y"]),
    ]
    values = [onnx.helper.make_tensor_value_info(name, 1, None) for name in ("x", "y")]
    graph = onnx.helper.make_graph(nodes, "tiny", values[:1], values[1:], [weight])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), str(path))


def test_instrument_equals_its_onnx(tmp_path: Path) -> None:
    tiny_onnx(tmp_path / "tiny.onnx")
    reference = pytest.importorskip("onnx.reference").ReferenceEvaluator(str(tmp_path / "tiny.onnx"))
    x = np.random.default_rng(4).normal(size=(1, 3, 8, 8)).astype(np.float32)
    (expected,) = reference.run(None, {"x": x})
    (got,) = OnnxFeatures(tmp_path / "tiny.onnx", ["y"])(torch.from_numpy(x))
    assert np.allclose(got.numpy(), expected, atol=1e-5)


def test_instrument_refuses_operators_it_does_not_know(tmp_path: Path) -> None:
    tiny_onnx(tmp_path / "tiny.onnx", "Erf")
    with pytest.raises(UsageError, match="Erf"):
        OnnxFeatures(tmp_path / "tiny.onnx", ["y"])


def toy_run(out: Path, minutes: float) -> Trainer:
    torch.manual_seed(0)
    return Trainer(RunConfig(data=out, out=out, max_minutes=minutes), torch.nn.Linear(2, 1))


def test_training_resumes_with_steps_average_and_log(tmp_path: Path) -> None:
    first = toy_run(tmp_path, 0.002)

    def step(progress: Progressed, trainer: Trainer = first) -> tuple[torch.Tensor, dict[str, float]]:
        return (trainer.model(torch.ones(4, 2)) - 1).square().mean(), {}

    record = first.run(step)
    assert record["steps"] == first.steps > 0
    again = toy_run(tmp_path, 0.004)
    assert again.steps == first.steps
    for key, value in first.average.items():
        assert torch.equal(again.average[key], value)
    for line in (tmp_path / "log.jsonl").read_text().splitlines():
        json.loads(line)


def test_damaged_checkpoint_is_one_clear_error(tmp_path: Path) -> None:
    toy_run(tmp_path, 0.0).save()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    state["trained"] = {"wrong": torch.zeros(1)}
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(FormatError, match="no-resume"):
        toy_run(tmp_path, 0.0)


def test_export_of_an_unknown_model_names_the_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="smc-s"):
        build_export("nothing", tmp_path, tmp_path, tmp_path)
    with pytest.raises(ConfigError, match="checkpoint"):
        build_export("smc-s", tmp_path, tmp_path, tmp_path)


def test_relighting_changes_all_pictures_alike_and_leaves_grey_colours_grey() -> None:
    random = np.random.default_rng(2)
    first = random.integers(60, 200, (2, 4, 4, 24), dtype=np.uint8)
    first[..., 16:] = 128
    second = first.copy()
    second[0, 0, 0, 0] += 1
    one, other = relight_packed([first, second], np.random.default_rng(5))
    assert not np.array_equal(one, first)
    assert np.array_equal(one[1], other[1])
    assert abs(int(one[0, 0, 0, 0]) - int(other[0, 0, 0, 0])) <= 2
    assert (np.abs(one[..., 16:].astype(int) - 128) <= 1).all()
