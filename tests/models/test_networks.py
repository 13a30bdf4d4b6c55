"""The networks keep their promises: causal, stateless at keys, identity at birth, kernels assembled per channel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

torch = pytest.importorskip("torch")

from scene_edge.codec.bundle import write_bundle  # noqa: E402
from scene_edge.codec.errors import BundleError  # noqa: E402
from scene_edge.codec.kernels import KernelBank  # noqa: E402
from scene_edge.codec.planes import Planes, pack, unpack  # noqa: E402
from scene_edge.models.data import flip_packed, x264_round_trip  # noqa: E402
from scene_edge.models.layers import CausalTemporal, from_packed, packed_to_bgr, to_packed  # noqa: E402
from scene_edge.models.scene import (  # noqa: E402
    CENTRE,
    COARSENESS,
    UNIT,
    AssembledConv,
    FoldedScene,
    SceneConfig,
    SceneFilterGraph,
    SceneNet,
)
from scene_edge.models.smc import SemDec, Smc, SmcConfig, SmcDecoder, SmcEncoder  # noqa: E402

SMALL = SmcConfig(latent=4, coder=8, fuse_widths=(8, 8, 8), entry=8)


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def test_packed_pictures_survive_the_way_through_floats() -> None:
    picture = noise(1, 2, 8, 16, 24)
    assert torch.equal(to_packed(from_packed(picture)), picture)


def test_flip_is_the_mirror_of_the_planes() -> None:
    random = np.random.default_rng(2)
    y, u, v = (random.integers(0, 256, shape, dtype=np.uint8) for shape in ((32, 64), (16, 32), (16, 32)))
    mirrored = unpack(np.ascontiguousarray(flip_packed(pack(Planes(y, u, v)))), 64, 32)
    assert np.array_equal(mirrored.y, y[:, ::-1])
    assert np.array_equal(mirrored.u, u[:, ::-1])
    assert np.array_equal(mirrored.v, v[:, ::-1])


def test_grey_is_grey_in_bgr() -> None:
    packed = np.full((1, 8, 8, 24), 128, np.uint8)
    bgr = packed_to_bgr(from_packed(torch.from_numpy(packed)))
    assert bgr.shape == (1, 3, 32, 32)
    assert torch.allclose(bgr, torch.full_like(bgr, (128 - 16) * 1.164383), atol=0.1)


def test_temporal_convolution_is_causal_and_finite() -> None:
    layer = CausalTemporal(3)
    frames = [torch.randn(1, 3, 5, 5) for _ in range(6)]

    def run(start: int) -> list[torch.Tensor]:
        state, out = torch.zeros(1, 6, 5, 5), []
        for frame in frames[start:]:
            y, state = layer(frame, state)
            out.append(y)
        return out

    whole, late = run(0), run(2)
    assert torch.allclose(whole[4], late[2])  # three frames of memory: history before that does not matter
    assert not torch.allclose(whole[2], late[0])


def test_nothing_is_coded_where_the_codec_lost_nothing() -> None:
    smc = Smc(SMALL)
    states = smc.states(1, 16, 24)
    picture = torch.rand(1, 24, 16, 24)
    semantic, seen, _, _ = smc.mine_both(picture, picture, states["sem"], states["lossy"])
    assert torch.allclose(seen, smc.mine_lossy(picture, states["lossy"])[0], atol=1e-5)
    assert bool(semantic.abs().max() > 0)
    assert torch.equal(semantic, seen)


def test_smc_graphs_have_the_contract_s_shapes() -> None:
    smc = Smc(SMALL)
    states = smc.states(1, 16, 24)
    x, lossy = noise(3, 1, 16, 24, 24), noise(4, 1, 16, 24, 24)
    latent, sem, seen = SmcEncoder(smc)(x, lossy, states["sem"], states["lossy"])
    assert latent.shape == (1, 4, 4, 6)
    assert sem.shape == states["sem"].shape
    assert seen.shape == states["lossy"].shape
    fused, seen_again, fuse = SmcDecoder(smc)(lossy, latent.round(), states["lossy"], states["fuse"])
    assert fused.dtype == torch.uint8
    assert fused.shape == lossy.shape
    assert fuse.shape == states["fuse"].shape
    assert torch.allclose(seen, seen_again, atol=1e-5)  # both ends mine the lossy frame alike


def test_untrained_fusion_is_the_lossy_frame_and_no_latent_adds_nothing() -> None:
    smc = Smc(SMALL)
    states = smc.states(1, 16, 24)
    lossy = noise(5, 1, 16, 24, 24)
    fused, _, _ = SmcDecoder(smc)(lossy, torch.randn(1, 4, 4, 6), states["lossy"], states["fuse"])
    assert torch.equal(fused, lossy)
    assert not SemDec(8, 4)(torch.zeros(1, 4, 4, 6)).any()


def test_rescaling_the_latent_changes_nothing_but_its_size() -> None:
    smc = Smc(SMALL)
    residual = torch.randn(1, SMALL.semantic, 4, 6)
    before = smc.sem_enc(residual)
    restored = smc.sem_dec(before)
    smc.rescale_latent(torch.tensor([2.0, 0.5, 10.0, 1.0]))
    after = smc.sem_enc(residual)
    assert torch.allclose(after[:, 2], 10 * before[:, 2], rtol=1e-4)
    assert torch.allclose(smc.sem_dec(after), restored, atol=1e-5)


def test_assembled_convolution_equals_the_folded_kernel() -> None:
    layer = AssembledConv(6, 4)
    coefficients = torch.randn(1, 24, 1, 1)
    x = torch.randn(1, 6, 9, 7)
    parts = coefficients.reshape(4, 6)
    weight = (layer.base.weight.reshape(4, 6, 6, 3, 3) * parts[..., None, None, None]).sum(0)
    assert layer.base.bias is not None
    bias = (layer.base.bias.reshape(4, 6) * parts).sum(0)
    folded = torch.nn.functional.conv2d(x, weight, bias, padding=1)
    assert torch.allclose(layer(x, coefficients), folded, atol=1e-5)


def test_untrained_scene_is_the_identity() -> None:
    net = SceneNet(SceneConfig(width=8))
    picture = noise(6, 1, 8, 16, 24)
    coefficients = net.prior(from_packed(noise(7, 1, 18, 32, 24)))
    assert coefficients.shape == (1, net.config.coefficients, 1, 1)
    assert torch.equal(SceneFilterGraph(FoldedScene(net, net.controls(coefficients, 40.0)))(picture), picture)


def test_a_folded_scene_is_the_filter_of_that_scene() -> None:
    net = SceneNet(SceneConfig(width=8))
    torch.nn.init.normal_(net.head.weight, std=0.05)
    picture = from_packed(noise(6, 1, 8, 16, 24))
    torch.nn.init.normal_(net.coarseness.slopes, std=0.1)
    scene, other = torch.rand(2, 1, net.config.coefficients, 1, 1)
    first, second = net.controls(scene, 30.0), net.controls(other, 30.0)
    folded = FoldedScene(net, first)
    assert torch.allclose(folded(picture), net(picture, first), atol=1e-5)
    assert not torch.allclose(folded(picture), net(picture, second), atol=1e-3)
    assert not torch.allclose(folded(picture), net(picture, net.controls(scene, 40.0)), atol=1e-3)
    assert [layer.weight.shape for layer in folded.kernels().values()] == [(8, 8, 3, 3)] * 2 + [(24, 8, 3, 3)]


def test_a_block_s_own_features_stand_in_for_the_scene_and_memory_for_the_last_picture() -> None:
    picture = from_packed(noise(6, 1, 8, 16, 24))
    for own, follows in ((0, True), (1, True), (2, False)):
        net = SceneNet(SceneConfig(width=8, own=own))
        torch.nn.init.normal_(net.head.weight, std=0.05)
        first, second = (net(picture, net.controls(torch.rand(1, net.config.coefficients, 1, 1), 30.0)) for _ in "ab")
        assert torch.equal(first, second) != follows
    net = SceneNet(SceneConfig(width=8, temporal=True))
    torch.nn.init.normal_(net.head.weight, std=0.05)
    controls = net.controls(torch.rand(1, net.config.coefficients, 1, 1), 30.0)
    assert torch.equal(net(picture, controls), net(picture, controls, picture)), "at first there is nothing else"
    assert not torch.equal(net(picture, controls), net(picture, controls, 1 - picture))


def test_a_camera_folds_the_same_kernels_from_half_precision(tmp_path: Path) -> None:
    net = SceneNet(SceneConfig(width=8))
    torch.nn.init.normal_(net.head.weight, std=0.05)
    torch.nn.init.normal_(net.coarseness.slopes, std=0.1)
    save_file({key: value.half().numpy() for key, value in net.state_dict().items()}, tmp_path / "weights.safetensors")
    parameters = {"config": net.config.as_dict(), "kernels": [[f"assembled{i}", f"assembled.{i}.base"] for i in (0, 1)]}
    parameters["residual"] = ["head", "head"]
    said = {"slopes": "coarseness.slopes", "centre": CENTRE, "unit": UNIT, "range": list(COARSENESS)}
    parameters["coarseness"] = said
    manifest = {"format": 1, "name": "s", "kind": "scene", "version": "1", "counter": 1, "graphs": {}}
    bank = KernelBank(write_bundle(tmp_path, {**manifest, "parameters": parameters}))
    coefficients = torch.rand(1, net.config.coefficients, 1, 1)
    for crf in (None, 10.0, 27.0, 35.0, 51.0):
        found = bank.assemble(coefficients.numpy(), crf=crf)
        for name, layer in FoldedScene(net, net.controls(coefficients, crf or CENTRE)).kernels().items():
            assert np.allclose(found[name].weights, layer.weight.detach(), atol=3e-3)
            assert layer.bias is not None
            assert np.allclose(found[name].bias, layer.bias.detach(), atol=3e-3)
    half = bank.assemble(coefficients.numpy(), 0.5, 51.0)
    assert np.array_equal(half["head"].weights, 0.5 * found["head"].weights)
    assert np.array_equal(half["assembled1"].weights, found["assembled1"].weights)
    with pytest.raises(BundleError, match="fit"):
        bank.assemble(np.ones(3, np.float32))
    for wrong in ({**said, "slopes": "head.weight"}, {**said, "range": [30]}, {**said, "unit": 0.0}, "yes"):
        parameters["coarseness"] = wrong
        with pytest.raises(BundleError, match="quantiser"):
            KernelBank(write_bundle(tmp_path, {**manifest, "parameters": parameters}))


def test_x264_round_trip_keeps_count_and_size_and_obeys_crf() -> None:
    random = np.random.default_rng(8)
    base = random.integers(0, 256, (32, 48), dtype=np.uint8)
    half = np.full((16, 24), 128, np.uint8)
    frames = [Planes(np.roll(base, shift, 1), half, half) for shift in range(5)]
    fine, fine_bits = x264_round_trip(frames, 20)
    coarse, coarse_bits = x264_round_trip(frames, 45)
    assert len(fine) == len(coarse) == len(fine_bits) == 5
    assert (fine[0].width, fine[0].height) == (48, 32)
    assert sum(coarse_bits) < sum(fine_bits)
