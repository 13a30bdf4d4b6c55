"""The published SMC: its size, its contract, its memory, and the way to an engine."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from scene_edge.codec.planes import ALIGN, Planes, pack, unpack  # noqa: E402
from scene_edge.models import smc_paper as sp  # noqa: E402
from scene_edge.models.layers import from_packed  # noqa: E402
from scene_edge.models.smc import SmcDecoder, SmcEncoder  # noqa: E402

TINY = sp.SmcPaperConfig(
    semantic=16, latent=8, sem_widths=(8, 8, 16, 16), joined=24, lossy_widths=(8, 8, 8, 16), fuse_widths=(8, 8, 8, 16)
)
STATES = ("sem", "lossy", "fuse")


@pytest.fixture
def tiny() -> sp.SmcPaper:
    torch.manual_seed(1)
    return sp.SmcPaper(TINY)


def loud(model: sp.SmcPaper) -> sp.SmcPaper:
    """With memories and a last layer that are heard: at birth both are next to silent."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".older." in name or ".newer." in name:
                parameter.normal_(std=0.3)
        model.f_net.head.weight.normal_(std=0.1)
    return model


def pictures(seed: int, frames: int, rows: int = 16, columns: int = 24) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.rand(frames, 1, 24, rows, columns, generator=random)


def run(model: sp.SmcPaper, original: torch.Tensor, lossy: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Latent and fused picture of every frame [1, 24, h, w], one by one, states carried."""
    states = model.states(1, *original.shape[-2:])
    for picture, seen_picture in zip(original, lossy, strict=True):
        semantic, states["sem"] = model.sem_net(picture, states["sem"])
        seen, states["lossy"] = model.mine_lossy(seen_picture, states["lossy"])
        latent = model.sem_enc(semantic - seen)
        fused, states["fuse"] = model.fuse(seen_picture, seen, model.sem_dec(latent), states["fuse"])
        yield latent, fused


def test_parameters_are_within_three_per_cent_of_the_published_counts() -> None:
    with torch.device("meta"):
        model = sp.SmcPaper()
    counts = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in model.named_children()}
    assert sum(counts.values()) == pytest.approx(48.23, rel=0.03)
    for name, published in (("sem_net", 12.2), ("sem_net_s", 3.1), ("f_net", 8.7)):
        assert counts[name] == pytest.approx(published, rel=0.03), name


def test_graphs_have_the_contract_of_the_camera_s_networks_at_stride_32(tiny: sp.SmcPaper) -> None:
    x, lossy = ((picture[0].permute(0, 2, 3, 1) * 255).to(torch.uint8) for picture in (pictures(2, 1), pictures(3, 1)))
    states = tiny.states(1, 16, 24)
    latent, sem, seen = SmcEncoder(tiny)(x, lossy, states["sem"], states["lossy"])
    assert latent.shape == (1, TINY.latent, 2, 3)
    fused, seen_again, fuse = SmcDecoder(tiny)(lossy, latent.round(), states["lossy"], states["fuse"])
    assert fused.dtype == torch.uint8
    assert fused.shape == lossy.shape
    assert torch.equal(fused, lossy)  # untrained
    assert torch.equal(seen, seen_again)  # both ends mine the lossy frame alike
    assert [value.shape for value in (sem, seen, fuse)] == [states[key].shape for key in STATES]
    assert all(value.shape[2:] == (4, 6) for value in states.values())  # the grid on which the runtimes keep states


def test_padded_pictures_are_whole_numbers_of_positions() -> None:
    assert ALIGN % sp.STRIDE == 0


def test_pictures_unpack_to_their_planes_and_back() -> None:
    random = np.random.default_rng(4)
    y, u, v = (random.integers(0, 256, shape, dtype=np.uint8) for shape in ((32, 64), (16, 32), (16, 32)))
    packed = from_packed(torch.from_numpy(pack(Planes(y, u, v))[None]))
    full = sp.full_picture(packed)
    assert np.array_equal((full[0, 0] * 255).round().numpy(), y)
    assert np.array_equal((full[0, 2] * 255).round().numpy(), v.repeat(2, 0).repeat(2, 1))
    assert torch.allclose(sp.packed_picture(full), packed, atol=1e-6)
    again = unpack((sp.packed_picture(full)[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy(), 64, 32)
    assert np.array_equal(again.u, u)


def test_memory_splits_into_every_grid_and_joins_without_loss() -> None:
    memory = sp.Memory([(3, 4), (2, 8), (5, 16), (4, 32)])
    state = torch.randn(2, memory.channels, 4, 6)
    parts = memory.split(state)
    shapes = [(2, 6, 16, 24), (2, 4, 8, 12), (2, 10, 4, 6), (2, 8, 2, 3)]
    assert [tuple(part.shape) for part in parts] == shapes
    assert torch.equal(memory.join(parts), state)


def test_no_frame_depends_on_a_later_one_but_on_earlier_ones(tiny: sp.SmcPaper) -> None:
    model, original, lossy = loud(tiny), pictures(5, 4), pictures(6, 4)
    with torch.no_grad():
        before = list(run(model, original, lossy))
        late_original, late_lossy = original.clone(), lossy.clone()
        late_original[2], late_lossy[2] = pictures(7, 2)
        after = list(run(model, late_original, late_lossy))
    for kind in (0, 1):
        for index in (0, 1):
            assert torch.equal(before[index][kind], after[index][kind])
        assert not torch.allclose(before[3][kind], after[3][kind])  # same frame, other memory


def test_carried_states_make_one_sequence_of_two_halves(tiny: sp.SmcPaper) -> None:
    """Frame by frame with states equals each temporal convolution over the whole sequence at once."""
    model, frames = loud(tiny), pictures(8, 5)
    with torch.no_grad():
        state = model.states(1, 16, 24)["sem"]
        one_by_one = []
        for frame in frames:
            semantic, state = model.sem_net(frame, state)
            one_by_one.append(semantic)
        whole = whole_sequence(model.sem_net, frames[:, 0])
    assert torch.allclose(torch.cat(one_by_one), whole, atol=1e-4)


def whole_sequence(net: sp.SemNet, frames: torch.Tensor) -> torch.Tensor:
    """Sem-Net over frames [T, 24, h, w] at once, its memory written out as shifts along time."""

    def past(x: torch.Tensor, by: int) -> torch.Tensor:
        return torch.cat([torch.zeros_like(x[:by]), x[:-by]])

    x, levels = sp.leaky(net.pool(sp.leaky(net.stem(sp.full_picture(frames) - 0.5)))), []
    for index, block in enumerate(net.blocks):
        y = block.first(x)
        y = y + block.temporal.older(past(y, 2)) + block.temporal.newer(past(y, 1))
        x = sp.leaky(block.skip(x) + block.second(sp.leaky(y)))
        if index % 2:
            levels.append(torch.nn.functional.adaptive_avg_pool2d(x, (2, 3)))
    return net.head(sp.leaky(net.join(torch.cat(levels, 1))))


def test_a_lost_latent_leaves_the_lossy_semantics_as_they_are(tiny: sp.SmcPaper) -> None:
    assert not tiny.sem_dec(torch.zeros(1, TINY.latent, 2, 3)).any()


def test_rescaling_the_latent_changes_nothing_but_its_size(tiny: sp.SmcPaper) -> None:
    residual, gain = torch.randn(1, 16, 2, 3), torch.linspace(0.5, 4.0, 8)
    before = tiny.sem_enc(residual)
    restored = tiny.sem_dec(before)
    tiny.rescale_latent(gain)
    after = tiny.sem_enc(residual)
    assert torch.allclose(after, gain[None, :, None, None] * before, rtol=1e-3, atol=1e-5)
    assert torch.allclose(tiny.sem_dec(after), restored, rtol=1e-3, atol=1e-5)


def test_training_reaches_every_weight_and_lowers_the_loss(tiny: sp.SmcPaper) -> None:
    original = pictures(9, 3).mul(0.2).add(0.4)  # three frames: the oldest memory is heard in the third
    lossy = original * 0.8
    optimiser = torch.optim.Adam(tiny.parameters(), 1e-3)
    losses = []
    for _ in range(6):
        fused = torch.cat([picture for _, picture in run(tiny, original, lossy)])
        loss = (fused - original[:, 0]).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    silent = [name for name, value in tiny.named_parameters() if value.grad is None or not value.grad.any()]
    assert silent == []  # the last layer was silent in the first step only


@pytest.mark.parametrize("graph", ["encoder", "decoder"])
def test_exported_graph_equals_torch_at_another_size(tiny: sp.SmcPaper, graph: str) -> None:
    """ONNX with free height and width, run by OpenVINO at a size that the export never saw."""
    openvino = pytest.importorskip("openvino")
    from scene_edge.models.registry import GraphExport
    from scene_edge.quantize import graphs as g

    def sample(rows: int, columns: int) -> dict[str, np.ndarray]:
        random = np.random.default_rng(rows)
        states = tiny.states(1, rows, columns)
        noise = {key: random.normal(size=states[key].shape).astype(np.float32) for key in STATES}
        pair = [random.integers(0, 256, (1, rows, columns, 24), dtype=np.uint8) for _ in range(2)]
        if graph == "encoder":
            return {"x": pair[0], "lossy": pair[1], "state_sem": noise["sem"], "state_lossy": noise["lossy"]}
        latent = random.normal(size=(1, TINY.latent, rows // 8, columns // 8)).astype(np.float32)
        return {"lossy": pair[1], "latent": latent, "state_lossy": noise["lossy"], "state_fuse": noise["fuse"]}

    loud(tiny)
    module, outputs = {
        "encoder": (SmcEncoder(tiny), ["latent", "next_sem", "next_lossy"]),
        "decoder": (SmcDecoder(tiny), ["fused", "next_lossy", "next_fuse"]),
    }[graph]
    samples = [sample(24, 32), sample(32, 16)]
    export = GraphExport(module, list(samples[0].items()), outputs, samples)
    axes = g.dynamic_axes(export)
    assert set(axes) == set(samples[0])
    model = g.to_onnx(g.export_program(export, samples[0], axes), list(samples[0]), outputs)
    for value in (*model.graph.input, *model.graph.output):
        assert len(value.type.tensor_type.shape.dim) == 4
    other = sample(40, 24)
    core = openvino.Core()
    got = core.compile_model(core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(
        other
    )
    for name, expected in g.run_torch(export, other).items():
        close = 1.0 if name == "fused" else 1e-3
        assert np.abs(got[name].astype(np.float32) - expected.astype(np.float32)).max() <= close, name
