"""The map that SCENE's machine variant follows: what it is taught, what weighs how much, and that training moves it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from scene_edge.codec.planes import Planes  # noqa: E402
from scene_edge.models.detector import Truth  # noqa: E402
from scene_edge.models.loop import Progressed  # noqa: E402
from scene_edge.models.pictures import to_i420  # noqa: E402
from scene_edge.models.pseudo_labels import Sample  # noqa: E402
from scene_edge.models.semantics import load_fastestdet  # noqa: E402
from scene_edge.models.train_where import LABELS, WhereRun, WhereTraining  # noqa: E402
from scene_edge.models.where import (  # noqa: E402
    LEAST_GROWN,
    WhereGraph,
    WhereNet,
    claimed_boxes,
    covered,
    targets,
    where_loss,
)
from tests.data import data_folder  # noqa: E402


def boxes(*corners: tuple[float, float, float, float]) -> torch.Tensor:
    return torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)


def truth(sure: torch.Tensor, doubtful: torch.Tensor) -> Truth:
    return Truth(sure, torch.zeros(len(sure), dtype=torch.long), doubtful)


def test_a_box_covers_its_cells_and_its_border() -> None:
    cover, weight = covered(boxes((16 + LEAST_GROWN, 16 + LEAST_GROWN, 48 - LEAST_GROWN, 32 - LEAST_GROWN)), 3, 4)
    assert torch.equal(cover, torch.tensor([[0.0] * 4, [0.0, 1.0, 1.0, 0.0], [0.0] * 4]))
    assert torch.equal(weight, 1 + cover * 8 / 2)
    half, _ = covered(boxes((0, 0, 24 - LEAST_GROWN, 64)), 2, 3)
    assert half[0].tolist() == [1.0, 0.5, 0.0]


def test_a_small_object_weighs_as_much_as_a_large_one() -> None:
    _, small = covered(boxes((32, 32, 36, 36)), 9, 9)
    _, large = covered(boxes((0, 0, 144, 144)), 9, 9)
    assert float((small - 1).sum()) == pytest.approx(float((large - 1).sum()), rel=0.3)


def test_what_a_teacher_doubts_weighs_nothing_unless_the_other_is_sure() -> None:
    doubtful = boxes((70, 6, 74, 10))
    wanted, weights = targets([truth(boxes(), doubtful)] * 2, [boxes(), doubtful], 1, 8)
    assert wanted[0].sum() == 0
    assert weights[0, 0, 0].tolist() == [1, 1, 1, 1, 0, 1, 1, 1]
    assert wanted[1, 0, 0].tolist() == [0, 0, 0, 0, 1, 0, 0, 0]
    assert weights[1].min() == 1


def test_the_loss_is_nothing_for_the_map_itself() -> None:
    wanted = torch.tensor([[[[0.0, 1.0, 0.5]]]])
    weights = torch.ones_like(wanted)
    assert float(where_loss(torch.tensor([[[[-30.0, 30.0, 0.0]]]]), wanted, weights)) == pytest.approx(0, abs=1e-6)
    assert float(where_loss(torch.tensor([[[[30.0, 30.0, 0.0]]]]), wanted, weights)) == pytest.approx(10, abs=1e-3)
    assert float(where_loss(torch.tensor([[[[30.0, 30.0, 0.0]]]]), wanted, torch.tensor([[[[0.0, 1, 1]]]]))) < 1e-6


def test_what_fastestdet_claims_are_the_boxes_that_its_own_decoder_finds() -> None:
    pytest.importorskip("onnxruntime")
    from benchmarks.second_judge import FastestDet
    from scene_edge.codec.media import read_video
    from scene_edge.codec.planes import pack
    from scene_edge.models.pictures import resize

    data = data_folder()
    planes = resize(next(read_video(data / "dev" / "vos" / "scooter-black.mp4"))[0], 352, 352)
    net = WhereNet()
    load_fastestdet(net.sem_net, net.verdicts, data / "models" / "FastestDet.onnx")
    x = torch.from_numpy(pack(planes)[None]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        (found,) = claimed_boxes(net.verdicts, net.sem_net.look(x))
    theirs = FastestDet(data / "models" / "FastestDet.onnx", score=0.65).detect(planes).boxes
    assert len(theirs)
    for box in theirs:
        assert float(np.abs(found.numpy() - box).max(axis=1).min()) < 12, "found here as well, but for the border"


@torch.no_grad()
def loss_of(training: WhereTraining) -> float:
    semantic, wanted, weights = training.batch(1_000_000)
    return float(where_loss(training.model.head(semantic), wanted, weights))


def test_training_learns_where_the_labels_are_and_leaves_the_body_alone(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    (tmp_path / LABELS).mkdir()
    samples = []
    for index in range(4):
        luma = random.integers(40, 60, (144, 256)).astype(np.uint8)
        left = 40 * index
        luma[40:100, left : left + 60] = 220
        chroma = np.full((72, 128), 128, np.uint8)
        file = f"{index}.npy"
        np.save(tmp_path / LABELS / file, to_i420(Planes(luma, chroma, chroma)))
        box = np.array([[left / 256, 40 / 144, (left + 60) / 256, 100 / 144]], np.float32)
        samples.append(Sample((file,), f"clip{index}", box, np.zeros(1, np.int64), np.ones(1, np.float32)))
    config = WhereRun(data_folder(), tmp_path, batch=2)
    training = WhereTraining(config, samples)
    body = {key: value.clone() for key, value in training.model.sem_net.state_dict().items()}
    before = loss_of(training)
    optimiser = torch.optim.Adam([value for value in training.model.parameters() if value.requires_grad], 5e-3)
    for number in range(8):
        loss, _ = training.step(Progressed(0.0, number))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss_of(training) < 0.9 * before
    assert all(torch.equal(value, body[key]) for key, value in training.model.sem_net.state_dict().items())


def test_the_graph_is_between_nought_and_one() -> None:
    torch.manual_seed(2)
    x = torch.randint(0, 256, (1, 16, 24, 24), dtype=torch.uint8)
    with torch.no_grad():
        there = WhereGraph(WhereNet())(x)
    assert there.shape == (1, 1, 4, 6)
    assert 0 <= float(there.min()) <= float(there.max()) <= 1
