"""Training of the action networks: features of the frozen trunk once, then one ridge regression in closed form."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from scene_edge.codec.errors import ConfigError
from scene_edge.models.action import FRAMES, ActionNet
from scene_edge.models.action_clips import REVERSED, Clip, load, plain

CACHE, WEIGHTS, REPORT = "cache", "weights.pt", "report.json"
VIEWS = ((0.0, 1.0, False), (0.0, 0.75, False), (0.25, 0.75, False), (0.12, 0.76, False), (0.0, 1.0, True))
"""Start, span and mirroring of the parts of a clip that train, and that vote at a test; the first is the whole clip."""

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ActionRun:
    """`data` holds index.json, train/, dev/ and models/; `out` takes a folder for each set with its cache, weights and
    report. Features done before `max_minutes` ran out are kept, so that the next call goes on from there."""

    data: Path
    out: Path
    sets: tuple[str, ...] = ("arid", "fight")
    max_minutes: float = 20.0
    resume: bool = True
    seed: int = 0
    threads: int = 1
    ridge: float = 0.1

    def __post_init__(self) -> None:
        if self.max_minutes <= 0 or self.ridge <= 0:
            raise ConfigError("training needs time and a positive ridge", got=(self.max_minutes, self.ridge))


def train(config: ActionRun) -> dict[str, Any]:
    """Train each set on its training clips and test it on its dev clips; returns the report of each set."""
    torch.set_num_threads(config.threads)
    deadline = time.monotonic() + 60 * config.max_minutes
    return {name: _train_set(config, name, deadline) for name in config.sets}


def _train_set(config: ActionRun, name: str, deadline: float) -> dict[str, Any]:
    folder, started = config.out / name, time.monotonic()
    clips, labels = load(config.data, folder / CACHE, name, "train")
    net = ActionNet(len(labels))
    net.backbone.load_fastestdet(config.data / "models" / "FastestDet.onnx")
    features = views_of(net, clips, folder / "features-train.npz", config.resume, deadline)
    weight, bias = fit(features, [clip.label for clip in clips], labels, config.ridge)
    with torch.no_grad():
        net.classify.weight.copy_(torch.from_numpy(weight)[:, :, None, None])
        net.classify.bias.copy_(torch.from_numpy(bias))  # type: ignore[union-attr]
    minutes = (time.monotonic() - started) / 60
    dev, _ = load(config.data, folder / CACHE, name, "dev")
    dev_features = views_of(net, dev, folder / "features-dev.npz", config.resume, deadline)
    report = {
        "set": name,
        "labels": labels,
        "train_clips": len(clips),
        "dev_clips": len(dev),
        "minutes": round(minutes, 1),
        "config": {key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()},
        "dev": evaluate(dev_features @ weight.T + bias, [clip.label for clip in dev]),
    }
    torch.save(net.state_dict(), folder / WEIGHTS)
    (folder / REPORT).write_text(json.dumps(report, indent=1))
    return report


@torch.no_grad()
def views_of(net: ActionNet, clips: Sequence[Clip], file: Path, resume: bool, deadline: float) -> F32:
    """Features [clips, views, FEATURES] by the frozen trunk, kept in `file`; raises ConfigError past the deadline."""
    done: list[F32] = []
    if resume and file.is_file():
        with np.load(file) as arrays:
            done = list(arrays["x"])
    net.eval()
    for clip in track(clips[len(done) :], description=file.stem):
        if time.monotonic() > deadline:
            np.savez(file, x=np.stack(done)) if done else None
            raise ConfigError(
                "the time box ended before the features", got=f"{len(done)} of {len(clips)} clips", hint="Run it again."
            )
        with torch.autocast("cpu", torch.bfloat16):
            rows = [net.features(plain(clip, *view)).float().flatten().numpy() for view in VIEWS]
        done.append(np.stack(rows))
    features = np.stack(done)
    np.savez(file, x=features)
    return features


def fit(features: F32, truth: Sequence[int], labels: Sequence[str], ridge: float) -> tuple[F32, F32]:
    """Weights [actions, FEATURES] and bias of a ridge regression on standardised features, each clip both ways.

    Played backwards, sitting down is standing up: that halves what a place can tell about an action.
    """
    count, views, size = features.shape
    backwards = features.reshape(count, views, FRAMES, size // FRAMES)[:, :, ::-1].reshape(count * views, size)
    swapped = np.array([labels.index(REVERSED.get(name, name)) for name in labels])
    once = np.repeat(np.asarray(truth), views)
    x = np.concatenate([features.reshape(count * views, size), backwards])
    target = np.eye(len(labels))[np.concatenate([once, swapped[once]])] - 1 / len(labels)
    mean, spread = x.mean(0), x.std(0)
    scale = 1 / (spread + 0.1 * spread.mean() + 1e-9)
    z = (x - mean) * scale
    kernel = z @ z.T / size  # the dual form: far fewer clips than features
    dual = np.linalg.solve(kernel + ridge * np.eye(len(z)), target)
    weight = ((z.T @ dual.astype(np.float32)) / size * scale[:, None]).T
    # Regression targets differ by one: times SHARPNESS, a softmax over them is a usable score.
    weight = SHARPNESS * weight
    return weight.astype(np.float32), (-weight @ mean).astype(np.float32)


SHARPNESS = 4.0


def evaluate(scores: F32, truth: Sequence[int]) -> dict[str, Any]:
    """Top-1 by the mean over views and by the first view, and the former's confusion [truth][answer].

    `scores` are [clips, views, actions].
    """
    actions = scores.shape[2]
    confusion = np.zeros((actions, actions), int)
    np.add.at(confusion, (np.asarray(truth), scores.mean(1).argmax(1)), 1)
    single = (scores[:, 0].argmax(1) == np.asarray(truth)).mean()
    return {
        "top1": round(float(np.trace(confusion) / len(truth)), 4),
        "top1_one_view": round(float(single), 4),
        "confusion": confusion.tolist(),
    }
