"""Training of detector and action nets: stem algebra, shift, assignment, metrics; tiny runs that resume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402

from scene_edge.codec.errors import ConfigError, SourceError, UsageError  # noqa: E402
from scene_edge.codec.media import read_video  # noqa: E402
from scene_edge.codec.planes import Planes, pack  # noqa: E402
from scene_edge.models import action as action_net  # noqa: E402
from scene_edge.models.action import FEATURES, ActionNet, pack_frames  # noqa: E402
from scene_edge.models.action_clips import Clip, load, plain  # noqa: E402
from scene_edge.models.backbone import Backbone, linear_bgr, packed_stem  # noqa: E402
from scene_edge.models.detection_metrics import average_precision  # noqa: E402
from scene_edge.models.detector import DetectorNet, Truth, assign, decode, detection_loss, generalised_iou  # noqa: E402
from scene_edge.models.detector_data import draw, sampling_weights  # noqa: E402
from scene_edge.models.pictures import from_i420, to_i420  # noqa: E402
from scene_edge.models.pseudo_labels import Sample, build, recoded  # noqa: E402
from scene_edge.models.teacher import Teacher  # noqa: E402
from scene_edge.models.train_action import ActionRun, evaluate, fit, views_of  # noqa: E402
from scene_edge.models.train_detector import DetectorRun  # noqa: E402
from scene_edge.server.analytics import action as server_action  # noqa: E402
from scene_edge.server.analytics.detections import iou_matrix  # noqa: E402
from scene_edge.server.analytics.detector import decode_levels, grid_cells, open_detector  # noqa: E402
from tests.data import data_file, dev_clip  # noqa: E402


def picture(width: int, height: int, seed: int = 0) -> Planes:
    random = np.random.default_rng(seed)
    half = (height // 2, width // 2)
    return Planes(
        random.integers(16, 236, (height, width), np.uint8),
        random.integers(90, 160, half, np.uint8),
        random.integers(90, 160, half, np.uint8),
    )


def test_packed_stem_equals_the_strided_convolution_on_bgr() -> None:
    torch.manual_seed(0)
    kernel, bias = torch.randn(5, 3, 3, 3), torch.randn(5)
    weight, offset = packed_stem(kernel, bias)
    packed = torch.rand(1, 24, 8, 8)
    ours = F.conv2d(packed, weight, offset, padding=1)
    plain_answer = F.pixel_unshuffle(F.conv2d(linear_bgr(packed), kernel, bias, stride=2, padding=1), 2)
    theirs = plain_answer.reshape(1, 5, 4, 8, 8).transpose(1, 2).reshape(1, 20, 8, 8)
    torch.testing.assert_close(ours[..., 1:-1, 1:-1], theirs[..., 1:-1, 1:-1], rtol=1e-4, atol=1e-4)


def test_a_still_picture_has_no_features_and_no_action() -> None:
    torch.manual_seed(0)
    net = ActionNet(3).eval()
    still = torch.randint(0, 255, (1, 32, 40, 24), dtype=torch.uint8).repeat(8, 1, 1, 1)
    with torch.no_grad():
        assert net.features(still).abs().max() < 1e-5
        assert net(still).shape == (1, 3, 1, 1)


def test_strides_and_channels_of_the_trunk() -> None:
    shapes = [tuple(x.shape) for x in Backbone()(torch.zeros(1, 16, 24, 24, dtype=torch.uint8))]
    assert shapes == [(1, 48, 8, 12), (1, 96, 4, 6), (1, 192, 2, 3)]


def test_server_and_training_prepare_clips_alike() -> None:
    planes = [picture(64, 32, seed) for seed in range(3)]
    dark = [Planes((one.y // 8 + 16).astype(np.uint8), one.u, one.v) for one in planes]
    y, u, v = (np.stack([getattr(one, name) for one in dark]) for name in "yuv")
    trained_on = pack_frames(action_net.expose(y), u, v).numpy()
    served = server_action.expose(np.stack([pack(one) for one in dark]))
    assert (trained_on == served).all()


def test_server_and_training_decode_boxes_alike() -> None:
    torch.manual_seed(0)
    outputs = tuple(
        torch.randn(1, channels, 64 // stride, 96 // stride) for stride in (8, 16, 32) for channels in (2, 4)
    )
    logits, boxes, _, _ = decode(outputs)
    cells, steps = grid_cells(96, 64)
    raw = torch.cat([output.flatten(2).transpose(1, 2) for output in outputs[1::2]], 1)[0].numpy()
    found = decode_levels(logits[0].numpy(), raw, cells, steps, 1e-6, ("person", "vehicle"))
    np.testing.assert_allclose(found.boxes, boxes[0].numpy(), rtol=1e-4, atol=1e-3)


def test_labels_take_cells_at_their_centre_and_doubt_silences_the_rest() -> None:
    outputs = DetectorNet()(torch.zeros(1, 16, 24, 24, dtype=torch.uint8))
    logits, boxes, centres, strides = decode(outputs)
    truth = Truth(torch.tensor([[16.0, 8, 48, 56]]), torch.tensor([1]), torch.tensor([[60.0, 0, 96, 64]]))
    targets, matched, weight = assign(logits[0], boxes[0], centres, strides, truth)
    taken = matched >= 0
    assert taken.any()
    assert (targets[~taken] == 0).all()
    assert (targets[:, 0] == 0).all()
    assert 0 < float(targets.max()) <= 1
    inside = (centres > torch.tensor([16.0, 8])) & (centres < torch.tensor([48.0, 56]))
    assert inside[taken].all()
    doubtful = (centres[:, 0] >= 60) & ~taken
    assert (weight[doubtful] == 0).all()
    assert (weight[taken] == 1).all()


def test_generalised_iou_of_equal_and_of_far_boxes() -> None:
    first = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    second = torch.tensor([[0.0, 0, 10, 10], [90, 0, 100, 10]])
    torch.testing.assert_close(generalised_iou(first, second), torch.tensor([1.0, -0.8]))


def test_a_picture_without_labels_still_gives_a_gradient() -> None:
    net = DetectorNet()
    outputs = net(torch.zeros(1, 8, 8, 24, dtype=torch.uint8))
    empty = Truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
    loss, _ = detection_loss(outputs, [empty])
    loss.backward()
    assert float(loss.detach()) > 0
    assert net.heads[0].score.bias.grad.abs().sum() > 0


def test_average_precision_by_hand() -> None:
    truth = {1: np.array([[0, 0, 10, 10], [20, 0, 30, 10]], np.float32)}
    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60], [20, 0, 30, 11], [0, 0, 10, 10]], np.float32)
    scores = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    # recall 1/2 at precision 1, recall 1 at precision 2/3; the second box on the first truth is a false one
    assert average_precision({1: (boxes, scores)}, truth) == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert average_precision({1: (boxes[:0], scores[:0])}, truth) == 0.0


def test_i420_round_trip_and_recoding_keep_size_and_count() -> None:
    planes = picture(64, 48)
    back = from_i420(to_i420(planes))
    assert all((getattr(back, name) == getattr(planes, name)).all() for name in "yuv")
    frames = [picture(64, 48, seed) for seed in range(5)]
    coded = recoded(frames, 40)
    assert [(one.width, one.height) for one in coded] == [(64, 48)] * 5
    assert any((a.y != b.y).any() for a, b in zip(frames, coded, strict=True))


def test_training_pictures_keep_boxes_inside(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", to_i420(picture(320, 240)))
    sample = Sample(
        ("a.npy",),
        "train/vos/a.mp4",
        np.array([[0.2, 0.2, 0.6, 0.9], [0.1, 0.1, 0.2, 0.2]], np.float32),
        np.array([0, 1]),
        np.array([0.9, 0.2], np.float32),
    )
    for seed in range(6):
        packed, truth = draw(tmp_path, [sample], sampling_weights([sample]), np.random.default_rng(seed))
        assert tuple(packed.shape) == (72, 128, 24)
        boxes = torch.cat([truth.boxes, truth.ignored])
        assert (boxes[:, 0] >= 0).all()
        assert (boxes[:, 2] <= 512).all()
        assert (boxes[:, 3] <= 288).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (truth.classes == 0).all()


def clip(label: int, group: str, seed: int) -> Clip:
    random = np.random.default_rng(seed)
    y = random.integers(30, 60, (12, 40, 48), np.uint8) + np.uint8(100 * label)
    u = np.full((12, 20, 24), 128, np.uint8)
    return Clip(f"{seed}.mp4", group, label, 10.0, y, u, u)


def test_views_have_the_size_that_the_network_takes() -> None:
    one = clip(0, "a", 0)
    assert tuple(plain(one).shape) == (8, 32, 40, 24)
    assert not torch.equal(plain(one, flip=True), plain(one))


def test_ridge_learns_order_in_time_and_what_backwards_means() -> None:
    random = np.random.default_rng(0)
    labels = ("Sit", "Stand")
    truth = [i % 2 for i in range(24)]
    x = random.normal(0, 0.1, (24, 2, 8, FEATURES // 8)).astype(np.float32)
    ramp = np.linspace(-1, 1, 8)[:, None]
    for i, label in enumerate(truth):
        x[i, :, :, :40] += ramp if label else -ramp
    flat = x.reshape(24, 2, FEATURES)
    weight, bias = fit(flat[:12], truth[:12], labels, 0.1)
    result = evaluate(flat[12:] @ weight.T + bias, truth[12:])
    assert result["top1"] == 1.0
    only_sitting, bias = fit(flat[0:12:2], [0] * 6, labels, 0.1)  # standing is learnt from sitting played backwards
    assert (flat[13::2, 0] @ only_sitting.T + bias).argmax(1).tolist() == [1] * 6


def test_features_are_kept_and_a_full_time_box_is_said(tmp_path: Path) -> None:
    net, file = ActionNet(2), tmp_path / "features.npz"
    clips = [clip(i % 2, str(i), i) for i in range(2)]
    first = views_of(net, clips[:1], file, True, float("inf"))
    both = views_of(net, clips, file, True, float("inf"))
    assert np.array_equal(both[:1], first)
    with pytest.raises(ConfigError, match="time box"):
        views_of(net, clips, file, False, 0.0)


def test_bad_settings_and_missing_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        ActionRun(tmp_path, tmp_path, ridge=0)
    with pytest.raises(ConfigError):
        DetectorRun(tmp_path, tmp_path, max_minutes=0)
    with pytest.raises(UsageError, match="no such action set"):
        load(tmp_path, tmp_path, "dance", "train")
    with pytest.raises(SourceError, match="no teacher"):
        build(tmp_path, tmp_path / "labels")


def test_teacher_and_instrument_agree() -> None:
    file = data_file("models/yolox_nano.onnx")
    planes, _ = next(iter(read_video(dev_clip("adl_rundle6.mp4"), limit=1)))
    labels = Teacher(file).label(planes)
    persons = labels.boxes[(labels.classes == 0) & (labels.scores > 0.4)] * np.array([planes.width, planes.height] * 2)
    detector = open_detector(file, threads=1)
    other = detector.detect(planes).named("person").above(0.3)
    assert len(persons) >= 3
    assert (iou_matrix(persons.astype(np.float32), other.boxes).max(axis=1) > 0.8).mean() >= 0.8
