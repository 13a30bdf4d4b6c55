"""Training of the map that SCENE's machine variant follows: a head on a frozen body, in minutes of one core."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scene_edge.models.detector_data import draw, sampling_weights
from scene_edge.models.layers import from_packed
from scene_edge.models.loop import Progressed, RunConfig, Trainer, autocast, device
from scene_edge.models.pseudo_labels import Sample, build
from scene_edge.models.semantics import load_fastestdet
from scene_edge.models.where import WhereNet, claimed_boxes, targets, where_loss

LABELS = "labels"
"""Folder of the labelled frames, inside the run's."""

BODY = "models/FastestDet.onnx"
JUDGED = 24
"""Batches of training pictures that the finished map is held against."""


@dataclass
class WhereRun(RunConfig):
    """A training run of the map; `data` holds index.json, train/ and models/."""

    learning_rate: float = 2e-3
    batch: int = 8


class WhereTraining:
    """One run; `train` below is the way in."""

    def __init__(self, config: WhereRun, samples: list[Sample]) -> None:
        self.config, self.samples, self.weights = config, samples, sampling_weights(samples)
        self.model = WhereNet()
        load_fastestdet(self.model.sem_net, self.model.verdicts, config.data / BODY)
        self.model.to(device()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.trainer = Trainer(config, self.model)

    def batch(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """S of pictures drawn at random, what the map of them is to be, and the weights."""
        random = np.random.default_rng((self.config.seed, number))
        folder = self.config.out / LABELS
        drawn = [draw(folder, self.samples, self.weights, random) for _ in range(self.config.batch)]
        pictures = torch.stack([picture for picture, _ in drawn]).to(device())
        with torch.no_grad(), autocast():
            semantic = self.model.sem_net.look(from_packed(pictures))
            claims = claimed_boxes(self.model.verdicts, semantic)
        wanted, weights = targets([truth for _, truth in drawn], claims, *semantic.shape[2:])
        return semantic.float(), wanted.to(device()), weights.to(device())

    def step(self, progress: Progressed) -> tuple[Tensor, dict[str, float]]:
        semantic, wanted, weights = self.batch(progress.step)
        logits = self.model.head(semantic)
        return where_loss(logits, wanted, weights), _figures(logits, wanted)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """On training pictures that were drawn anew."""
        found = []
        for number in range(JUDGED):
            semantic, wanted, _ = self.batch(1_000_000 + number)
            found.append(_figures(self.model.head(semantic), wanted))
        return {key: round(float(np.mean([figures[key] for figures in found])), 4) for key in found[0]}


@torch.no_grad()
def _figures(logits: Tensor, wanted: Tensor) -> dict[str, float]:
    """Of the cells that something covers, how many are found at 0.5; how many are claimed, and how many covered."""
    claimed, there = logits > 0, wanted > 0.5
    found = float((claimed & there).sum()) / max(1.0, float(there.sum()))
    return {"recall": found, "claimed": float(claimed.float().mean()), "covered": float(there.float().mean())}


def train(config: WhereRun) -> dict[str, Any]:
    """Train (or go on training) the map; returns the training record. Raises SourceError where the data is missing."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    samples = build(config.data, config.out / LABELS)
    training = WhereTraining(config, samples)
    record = training.trainer.run(training.step)
    training.model.load_state_dict(training.trainer.average)
    record["training_pictures_check"] = training.evaluate()
    record["body"] = "FastestDet, frozen. Copyright (c) 2022, dog-qiuqiu, BSD-3-Clause"
    clips = len({sample.clip for sample in samples})
    record["data"] = (
        f"{len(samples)} frames of {clips} clips, each with a compressed copy; boxes of YOLOX-nano, FastestDet"
    )
    return record
