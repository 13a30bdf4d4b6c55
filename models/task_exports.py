"""Exports of the task networks and of SCENE's map: graphs, calibration on training pictures, parameters, cards."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from scene_edge.codec.errors import ConfigError
from scene_edge.codec.planes import PACKED_CHANNELS, Planes, pack
from scene_edge.models.action import FRAMES, ActionNet
from scene_edge.models.action import HEIGHT as ACTION_HEIGHT
from scene_edge.models.action import WIDTH as ACTION_WIDTH
from scene_edge.models.action_clips import load, plain
from scene_edge.models.detector import HEIGHT, STRIDES, WIDTH, DetectorNet
from scene_edge.models.pictures import from_i420, letterbox, resize
from scene_edge.models.pseudo_labels import read_index
from scene_edge.models.registry import LITERT_SIZES, BundleExport, GraphExport, Sample, card_of, load_average
from scene_edge.models.teacher import CLASSES
from scene_edge.models.train_action import CACHE
from scene_edge.models.train_detector import LABELS, REPORT, WEIGHTS
from scene_edge.models.where import WhereGraph, WhereNet

CARD = "card.md"
CALIBRATION = 96

WINDOW_S, HOP_S = 1.5, 0.5
"""What the server feeds an action network: the last one and a half seconds, twice a second."""

WHERE_WIDTH = 640
"""Luma samples of a row of the picture that SCENE's map is made from."""

USE = {
    "width": WHERE_WIDTH,
    "period_ms": 125,
    "low": 0.35,
    "high": 0.65,
    "fade": 0.7,
    "coarse": 4,
    "off_crf": 27,
    "on_crf": 37,
}
"""How a camera uses the map (`edge/attention.py`)."""

ORIGIN = (
    "The trunk (ShuffleNetV2 x0.5) started from the weights of FastestDet, Copyright (c) 2022, dog-qiuqiu, "
    "BSD-3-Clause; its first convolution was rewritten for packed YUV, all layers were trained further."
)


def detector_export(run: Path, data: Path, cache: Path) -> BundleExport:
    """The detector's one graph, calibrated on frames of the training set. `data` and `cache` are not needed."""
    net = DetectorNet()
    report = _load(run, net)
    samples: list[Sample] = [{"x": pictures[None]} for pictures in _letterboxed(run / LABELS)]
    outputs = [f"{kind}{stride}" for stride in STRIDES for kind in ("score", "box")]
    graph = GraphExport(net.eval(), [("x", samples[0]["x"])], outputs, samples)
    parameters = {"size": [HEIGHT, WIDTH], "strides": list(STRIDES), "classes": list(CLASSES)}
    card = _detector_card(report)
    return BundleExport("detector-s", "detector", {"detector": graph}, parameters, report, _files(card))


def action_export(name: str) -> Callable[[Path, Path, Path], BundleExport]:
    """The export of one action set's network."""

    def export(run: Path, data: Path, cache: Path) -> BundleExport:
        folder = run / name if (run / name / WEIGHTS).is_file() else run
        clips, labels = load(data, folder / CACHE, name, "train")
        net = ActionNet(len(labels))
        report = _load(folder, net)
        chosen = [clips[i] for i in np.random.default_rng(5).permutation(len(clips))[:CALIBRATION]]
        samples: list[Sample] = [{"clip": plain(clip).numpy()} for clip in chosen]
        graph = GraphExport(net.eval(), [("clip", samples[0]["clip"])], ["logits"], samples)
        parameters = {
            "labels": list(labels),
            "frames": FRAMES,
            "size": [ACTION_HEIGHT, ACTION_WIDTH],
            "window_s": WINDOW_S,
            "hop_s": HOP_S,
        }
        card = _action_card(name, report)
        return BundleExport(f"action-{name}", "action", {"action": graph}, parameters, report, _files(card))

    return export


@torch.no_grad()
def where_export(run: Path, data: Path, cache: Path) -> BundleExport:
    """SCENE for machines: the map's one graph, and how a camera uses it. `data` and `cache` are not needed."""
    net = WhereNet()
    record = load_average(run, net)
    samples: list[Sample] = [{"x": _at_width(planes)[None]} for planes in _frames(run / LABELS)]
    rows, columns = LITERT_SIZES[0]
    shapes: list[dict[str, tuple[int, ...]]] = [{"x": (1, rows, columns, PACKED_CHANNELS)}]
    graph = GraphExport(WhereGraph(net).eval(), [("x", samples[0]["x"])], ["there"], samples, shapes)
    return BundleExport("scene-machine", "scene", {"where": graph}, {"where": USE}, record, card_of(run))


def _at_width(planes: Planes) -> np.ndarray:
    """Packed, as a camera shows it to the map."""
    height = round(planes.height * WHERE_WIDTH / planes.width / 2) * 2
    return pack(resize(planes, WHERE_WIDTH, height))


TASK_EXPORTS: dict[str, Callable[[Path, Path, Path], BundleExport]] = {
    "detector-s": detector_export,
    "action-arid": action_export("arid"),
    "action-fight": action_export("fight"),
    "scene-machine": where_export,
}


def _load(run: Path, net: nn.Module) -> dict[str, Any]:
    """Weights into `net`; the run's report without the paths of the machine that trained it."""
    if not (run / WEIGHTS).is_file() or not (run / REPORT).is_file():
        raise ConfigError("no finished training run there", got=str(run), hint="Train first: scene-edge train --help")
    net.load_state_dict(torch.load(run / WEIGHTS, weights_only=True))
    report: dict[str, Any] = json.loads((run / REPORT).read_text())
    report["config"] = {key: value for key, value in report["config"].items() if key not in ("data", "out")}
    return report


def _files(card: str) -> dict[str, bytes]:
    return {CARD: card.encode()}


def _letterboxed(folder: Path) -> list[np.ndarray]:
    """Packed network inputs of labelled training frames."""
    return [pack(letterbox(planes, WIDTH, HEIGHT)[0]) for planes in _frames(folder)]


def _frames(folder: Path) -> list[Planes]:
    """Labelled training frames, one of each clip first."""
    samples = read_index(folder)
    order = np.random.default_rng(5).permutation(len(samples))
    first: dict[str, int] = {}
    for index in order:
        first.setdefault(samples[index].clip, int(index))
    pictures = []
    for index in list(first.values())[:CALIBRATION]:
        planes = from_i420(np.load(folder / samples[index].files[index % len(samples[index].files)]))
        pictures.append(planes)
    return pictures


def _detector_card(report: dict[str, Any]) -> str:
    dev = report["dev"]
    return f"""# detector-s

Persons and vehicles on pictures of any size, seen at {WIDTH}x{HEIGHT} luma samples; packed YUV 4:2:0 in,
anchor-free on strides 8, 16 and 32, {report["parameters"]:,} parameters, ReLU only.

**Training.** {report["steps"]} steps of {report["config"]["batch"]} pictures ({report["minutes"]} minutes on one CPU
core that other work shared), on {report["frames"]} frames of the training clips (DAVIS, traffic, natural, CCTV,
night footage) and their H.264 copies at CRF 22 to 42. Labels: {report["labels"]} boxes of YOLOX-nano (Apache-2.0),
found by that network and not by people: this detector inherits its mistakes. {ORIGIN}

**Accuracy.** Person AP50 (all-point, every {dev["every"]}rd frame, float network) on the MOT street clip
ADL-Rundle-6, whole 1080p frames scaled to the network's size: **{dev["person_ap50"]:.3f}**. The instrument that taught
it reaches 0.69 there at two tiles of 416x416. No training frame is of that clip. Vehicles were not measured against
ground truth. One clip by day says little about other cameras: measure on your own.
"""


def _action_card(name: str, report: dict[str, Any]) -> str:
    kind = {"arid": "night footage (ARID)", "fight": "surveillance footage (fight or not)"}[name]
    dev = report["dev"]
    return f"""# action-{name}

Which of {len(report["labels"])} actions a clip of {kind} shows: {", ".join(report["labels"])}. {FRAMES} pictures of
{ACTION_WIDTH}x{ACTION_HEIGHT} luma samples, packed YUV 4:2:0, spread over about {WINDOW_S} s; a frozen
image trunk, of whose features only the changes within the clip are used, and one trained linear layer.

**Training.** Ridge regression on {report["train_clips"]} labelled clips, five views of each, forwards and backwards.
The trunk (ShuffleNetV2 x0.5) is that of FastestDet, Copyright (c) 2022, dog-qiuqiu, BSD-3-Clause, with its first
convolution rewritten for packed YUV.

**Accuracy** on {report["dev_clips"]} dev clips, float network: top-1 **{dev["top1"]:.3f}** by the vote of five
views; {dev["top1_one_view"]:.3f} with one view of the whole clip, as the server sees it.
So small a set leaves an uncertainty of {1.96 * (dev["top1"] * (1 - dev["top1"]) / report["dev_clips"]) ** 0.5:.2f}
either way.
The network always names one of its labels: it knows no "something else".

{_confusion(report["labels"], dev["confusion"])}"""


def _confusion(labels: Sequence[str], confusion: Sequence[Sequence[int]]) -> str:
    """Markdown table, truth in rows, answers in columns."""
    rows = [["truth \\ answer", *labels], ["---"] * (len(labels) + 1)]
    rows += [[label, *map(str, counts)] for label, counts in zip(labels, confusion, strict=True)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
