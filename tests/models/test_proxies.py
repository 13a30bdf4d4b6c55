"""Codec proxies against what they stand for: a real JPEG, known motion, the plain block transform, real x264."""

from __future__ import annotations

import io

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from scene_edge.codec.errors import ConfigError  # noqa: E402
from scene_edge.codec.planes import pack, unpack  # noqa: E402
from scene_edge.models.blocks import (  # noqa: E402
    dct_matrix,
    from_blocks,
    from_planes,
    quantiser_step,
    to_blocks,
    to_planes,
)
from scene_edge.models.data import x264_round_trip  # noqa: E402
from scene_edge.models.motion import compensate, search, vector_bits  # noqa: E402
from scene_edge.models.proxy import PROXIES, RealCodec, Slopes, build_codec  # noqa: E402
from scene_edge.models.proxy_hybrid import HybridProxy, _quantised, deblock  # noqa: E402
from scene_edge.models.proxy_jpeg import JpegProxy, quality_at, scaled_table  # noqa: E402

QUALITIES = (5, 10, 20, 35, 50, 65, 80, 90, 95)


def scene(seed: int, height: int = 64, width: int = 64) -> np.ndarray:
    """A smooth random picture with edges, u8 [height, width], away from black and white."""
    random = np.random.default_rng(seed)
    rough = torch.from_numpy(random.uniform(50, 205, (1, 1, height // 8 + 1, width // 8 + 1)))
    smooth = torch.nn.functional.interpolate(rough, (height, width), mode="bicubic", align_corners=True)[0, 0].numpy()
    smooth[height // 3 : height // 2, width // 4 : width // 2] += 30
    return np.clip(smooth + random.normal(0, 2, smooth.shape), 16, 235).astype(np.uint8)


def packed(*lumas: np.ndarray) -> torch.Tensor:
    """Grey pictures of these lumas, as one packed float batch."""
    y = torch.stack([torch.from_numpy(luma.copy()) for luma in lumas])[:, None].float() / 255
    grey = torch.full((len(lumas), 1, y.shape[2] // 2, y.shape[3] // 2), 128 / 255)
    return from_planes([y, grey, grey])


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((first.astype(float) - second.astype(float)) ** 2)))


def test_dct_is_orthonormal_and_blocks_go_back() -> None:
    matrix = dct_matrix()
    assert torch.allclose(matrix @ matrix.T, torch.eye(8), atol=1e-5)
    frame = torch.rand(2, 24, 8, 12)
    assert torch.equal(from_planes(to_planes(frame)), frame)
    plane = to_planes(frame)[0]
    assert torch.equal(from_blocks(to_blocks(plane)), plane)
    assert torch.equal(to_blocks(plane)[1, 2, 3], plane[1, 0, 16:24, 24:32])


def test_step_doubles_every_six() -> None:
    assert quantiser_step(0) == 0.625
    assert quantiser_step(30) == pytest.approx(2 * quantiser_step(24))


def test_jpeg_s_tables_are_libjpeg_s() -> None:
    image = pytest.importorskip("PIL.Image")
    proxy = JpegProxy()
    for quality in (1, 10, 49, 50, 51, 75, 100):
        file = io.BytesIO()
        image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(file, "JPEG", quality=quality)
        written = image.open(file).quantization
        for number, table in enumerate((proxy.luma, proxy.chroma)):
            assert scaled_table(table, quality).flatten().int().tolist() == written[number]


def test_jpeg_follows_a_real_jpeg_over_qualities_and_pictures() -> None:
    image = pytest.importorskip("PIL.Image")
    proxy, sizes, scores = JpegProxy(), [], []
    for seed in range(3):
        luma = scene(seed, 96, 128)
        for quality in QUALITIES:
            file = io.BytesIO()
            image.fromarray(luma).save(file, "JPEG", quality=quality, optimize=True)
            real = np.asarray(image.open(file))
            decoded, bits = proxy.code(packed(luma), quality)
            ours = to_planes(decoded)[0][0, 0].numpy() * 255
            sizes.append((np.log(8.0 * file.tell() - 8 * 330), np.log(float(bits))))  # without the header
            scores.append((psnr(luma, real), psnr(luma, np.clip(ours, 0, 255))))
    assert np.corrcoef(np.transpose(sizes))[0, 1] > 0.97
    assert np.abs(np.diff(scores)).max() < 0.3, "dB"
    assert psnr(luma, np.clip(ours, 0, 255)) > 40, "at quality 95"


def test_jpeg_s_quality_follows_qp() -> None:
    qualities = [quality_at(qp) for qp in (0, 20, 26, 32, 40, 51)]
    assert qualities == sorted(qualities, reverse=True)
    assert 1 <= qualities[-1] < qualities[0] <= 100
    table = scaled_table(JpegProxy().luma, quality_at(34))
    assert float(table[0, 0]) == pytest.approx(quantiser_step(34), abs=1)


def drifting() -> list[torch.Tensor]:
    """Three packed frames of rough noise in which what is seen moves by a packed position a frame."""
    random = np.random.default_rng(11)
    base = np.cumsum(np.cumsum(random.normal(0, 1, (2, 24, 10, 10)), 2), 3)
    base = (base - base.min()) / (base.max() - base.min())
    cut = [np.ascontiguousarray(base[:, :, i : i + 8, i : i + 8]) for i in range(3)]
    return [torch.from_numpy(part.astype(np.float32)) for part in cut]


PLAIN = {
    26: ([14942.871, 15087.154], [835.3655, 857.3668, 882.5513], 1483.730),
    40: ([2243.0024, 2214.9844], [821.2740, 831.4225, 860.0497], 1159.607),
}
"""QP -> bits, energy of each reconstruction, and gradient, of the block transform without motion."""


@pytest.mark.parametrize("qp", PLAIN)
def test_without_motion_and_filter_the_hybrid_is_the_plain_block_transform(qp: int) -> None:
    frames = drifting()
    last = frames[2].requires_grad_()
    decoded, bits = HybridProxy(0, deblocking=False)(frames, qp)
    weights = torch.linspace(0, 1, 24)[None, :, None, None]
    (bits.sum() / 1000 + (decoded[-1] * weights).sum()).backward()
    wanted_bits, energy, gradient = PLAIN[qp]
    assert bits.sum(1).tolist() == pytest.approx(wanted_bits, rel=1e-5)
    assert [float(x.detach().double().square().sum()) for x in decoded] == pytest.approx(energy, rel=1e-5)
    assert last.grad is not None
    assert float(last.grad.double().abs().sum()) == pytest.approx(gradient, rel=1e-5)


@pytest.mark.parametrize("deadzone", [1 / 3, 1 / 6])
def test_the_hybrid_quantises_with_a_dead_zone_and_learns_nothing_from_what_is_never_coded(deadzone: float) -> None:
    levels = torch.tensor([-2.4, -0.9, -0.1, 0.0, 0.12, 0.6, 0.9, 1.4, 5.0]).requires_grad_()
    whole, likely = _quantised(levels, deadzone)
    assert whole.tolist() == pytest.approx([np.sign(x) * np.floor(abs(x) + deadzone) for x in levels.tolist()])
    assert bool((likely >= 0).all())
    (whole.sum() + likely.sum()).backward()
    assert levels.grad is not None
    assert levels.grad.tolist() == [0, 0, 0, 0, 0, 2, 2, 2, 2], "sign by sign; none where a level is far from its first"


def test_a_codec_s_slopes_say_how_much_of_a_gradient_is_believed() -> None:
    frames = [packed(scene(10), scene(11)).requires_grad_()]

    def gradients(slopes: Slopes) -> list[torch.Tensor]:
        decoded, bits = RealCodec(PROXIES["hybrid"](), slopes)(frames, 34.0)
        values = (decoded[0].square().sum(), torch.log(bits).sum())
        return [torch.autograd.grad(value, frames, retain_graph=True)[0] for value in values]

    whole, some = gradients(Slopes(1.0, 1.0)), gradients(Slopes(0.5, 0.25))
    assert torch.allclose(some[0], 0.5 * whole[0], atol=1e-6)
    assert torch.allclose(some[1], 0.25 * whole[1], atol=1e-6)


def test_search_finds_a_known_shift_and_prefers_standing_still() -> None:
    wide = torch.from_numpy(scene(4, 96, 96)).float()[None, None] / 255
    before, now = wide[:, :, 16:80, 16:80], wide[:, :, 19:83, 11:75]
    vectors = search(now, before, 7, price=0.01)
    assert vectors.shape == (1, 2, 4, 4)
    inside = vectors[0, :, :3, 1:]  # what came in from the border was not there before
    assert bool((inside[0] == 3).all())
    assert bool((inside[1] == -5).all())
    assert torch.equal(compensate(before, vectors)[0, 0, :48, 16:], now[0, 0, :48, 16:])
    flat = torch.full_like(now, 0.5)
    assert not search(flat, flat, 7, price=0.01).any()
    assert not vector_bits(torch.zeros_like(vectors)).any()


def test_chroma_moves_by_half_samples() -> None:
    plane = torch.arange(64.0).reshape(1, 1, 8, 8)
    vectors = torch.tensor([0.5, -1.0])[None, :, None, None]
    wanted = (plane[0, 0, 2:4, 1:5] + plane[0, 0, 3:5, 1:5]) / 2
    assert torch.equal(compensate(plane, vectors)[0, 0, 2:4, 2:6], wanted)


def test_gradients_flow_through_the_compensated_samples() -> None:
    before = torch.rand(1, 1, 16, 16).requires_grad_()
    compensate(before, torch.tensor([2.0, 0.0])[None, :, None, None])[0, 0, 5, 5].backward()
    assert before.grad is not None
    assert before.grad.nonzero().tolist() == [[0, 0, 7, 5]]


def test_motion_saves_bits_where_there_is_motion_and_costs_none_where_there_is_not() -> None:
    wide = scene(5, 96, 96)
    moving = [packed(wide[16 + 2 * t : 80 + 2 * t, 16 + 4 * t : 80 + 4 * t]) for t in range(3)]
    _, with_motion = HybridProxy()(moving, 30)
    _, without = HybridProxy(reach=0)(moving, 30)
    assert float(with_motion.sum()) < 0.8 * float(without.sum())
    _, once = HybridProxy()(moving[:1], 30)
    _, twice = HybridProxy()(moving[:1] * 2, 30)
    assert float(twice.sum()) < 1.4 * float(once.sum())


def test_deblocking_smooths_a_coding_step_and_leaves_the_picture_s_own_edges() -> None:
    plane = torch.full((1, 1, 16, 32), 0.4)
    plane[..., 8:16] += 4 / 255  # a step that quantisation makes
    plane[..., 24:] += 120 / 255  # an edge of the picture
    all_blocks = torch.ones(1, 2, 4, dtype=torch.bool)
    out = deblock(plane, all_blocks, 36)
    assert float((out[..., 8] - out[..., 7]).abs().max()) < 3 / 255
    assert torch.equal(out[..., 17:], plane[..., 17:])
    assert torch.equal(deblock(plane, ~all_blocks, 36), plane)
    assert torch.equal(deblock(plane, all_blocks, 10), plane), "nothing is filtered at so fine a step"
    turned = deblock(plane.transpose(2, 3), all_blocks.transpose(1, 2), 36)
    assert torch.allclose(turned.transpose(2, 3), out, atol=1e-6)


@pytest.mark.parametrize("name", PROXIES)
def test_proxies_spend_less_and_distort_more_at_higher_qp(name: str) -> None:
    proxy = build_codec(name, False)
    frames = [packed(scene(6), scene(7)), packed(scene(7), scene(7))]
    bits, errors = [], []
    for qp in (24, 32, 40, 48):
        decoded, spent = proxy(frames, qp)
        bits.append(spent)
        errors.append(float((decoded[0] - frames[0]).abs().mean()))
    assert bool((torch.stack(bits).diff(dim=0) < 0).all())
    assert errors == sorted(errors)


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("name", PROXIES)
def test_gradients_are_finite_and_reach_the_samples(name: str, real: bool) -> None:
    frames = [packed(scene(8), scene(9)).requires_grad_() for _ in range(2)]
    decoded, bits = build_codec(name, real)(frames, 35.0)
    (torch.log(bits).sum() + sum((x - 0.3).abs().mean() for x in decoded)).backward()
    for frame in frames:
        assert frame.grad is not None
        assert bool(torch.isfinite(frame.grad).all())
        assert float((frame.grad[:, :16] != 0).float().mean()) > 0.8, "all but blocks of which nothing is coded"


@pytest.mark.parametrize("name", PROXIES)
def test_straight_through_has_x264_s_values_and_the_proxy_s_gradient(name: str) -> None:
    frames = [packed(scene(10), scene(11)).requires_grad_(), packed(scene(11), scene(11))]
    decoded, bits = RealCodec(PROXIES[name]())(frames, 34.6)
    for sample in range(2):
        coded = [(frame[sample].detach() * 255).round().byte().permute(1, 2, 0).numpy() for frame in frames]
        planes = [unpack(np.ascontiguousarray(picture), 64, 64) for picture in coded]
        seen, spent = x264_round_trip(planes, 35)
        assert bits[sample].tolist() == pytest.approx(spent)
        for ours, theirs in zip(decoded, seen, strict=True):
            wanted = torch.from_numpy(pack(theirs)[:16, :16]).permute(2, 0, 1).float() / 255
            assert torch.allclose(ours[sample].detach(), wanted, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(RealCodec(PROXIES[name]())(frames, 34.6)[1], bits)
    torch.log(bits).sum().backward()
    got, frames[0].grad = frames[0].grad, None
    torch.log(PROXIES[name]()(frames, 35.0)[1]).sum().backward()
    assert torch.allclose(got, frames[0].grad, rtol=1e-3, atol=1e-6)


def test_an_unknown_proxy_is_refused() -> None:
    with pytest.raises(ConfigError, match="jpeg, hybrid"):
        build_codec("mpeg", False)
