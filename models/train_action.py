"""Training of the action networks: resumable, time-boxed; `cross_validate` chooses settings without the dev clips."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor, nn

from scene_edge.codec.errors import ConfigError
from scene_edge.models.action import ActionNet
from scene_edge.models.action_clips import Clip, backwards, load, plain, varied

CACHE, CHECKPOINT, WEIGHTS, LOG, REPORT = "cache", "checkpoint.pt", "weights.pt", "log.jsonl", "report.json"


@dataclass(frozen=True, slots=True)
class ActionRun:
    """`data` holds index.json, train/, dev/ and models/; `out` takes a folder for each set with its cache, checkpoint,
    log, weights and report. The sets share `max_minutes` equally."""

    data: Path
    out: Path
    sets: tuple[str, ...] = ("arid", "fight")
    max_minutes: float = 20.0
    resume: bool = True
    seed: int = 0
    epochs: int = 40
    batch: int = 10
    rate: float = 1e-3
    trunk_rate: float = 4e-4
    decay: float = 0.02
    dropout: float = 0.4
    smoothing: float = 0.1
    mixup: float = 0.2
    average: float = 0.98
    threads: int = 1

    def __post_init__(self) -> None:
        if self.max_minutes <= 0 or self.epochs < 1 or self.batch < 1:
            raise ConfigError(
                "training needs time, epochs and a batch", got=(self.max_minutes, self.epochs, self.batch)
            )


def train(config: ActionRun) -> dict[str, Any]:
    """Train each set on its training clips and test it on its dev clips; returns the report of each set."""
    return {name: _train_set(config, name) for name in config.sets}


def _train_set(config: ActionRun, name: str) -> dict[str, Any]:
    folder = config.out / name
    clips, labels = load(config.data, folder / CACHE, name, "train")
    started = time.monotonic()
    net, epochs = fit(config, name, _both_ways(clips, labels), len(labels), keep=True)
    minutes = (time.monotonic() - started) / 60
    dev, _ = load(config.data, folder / CACHE, name, "dev")
    report = {
        "set": name,
        "labels": labels,
        "train_clips": len(clips),
        "dev_clips": len(dev),
        "epochs": epochs,
        "minutes": round(minutes, 1),
        "config": {key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()},
        "dev": evaluate(net, dev, len(labels)),
    }
    torch.save(net.state_dict(), folder / WEIGHTS)
    (folder / REPORT).write_text(json.dumps(report, indent=1))
    return report


def cross_validate(config: ActionRun, name: str, folds: int = 3) -> dict[str, Any]:
    """Mean accuracy over folds of the training clips, no source video in two folds: chooses settings unseen by dev."""
    clips, labels = load(config.data, config.out / name / CACHE, name, "train")
    scores = []
    for fold, held in enumerate(split_folds(clips, folds, config.seed)):
        names = {clip.file for clip in held}
        short = replace(config, max_minutes=config.max_minutes / folds, seed=config.seed + fold)
        rest = _both_ways([clip for clip in clips if clip.file not in names], labels)
        net, _ = fit(short, name, rest, len(labels), keep=False)
        scores.append(evaluate(net, held, len(labels)))
    means = {key: round(float(np.mean([score[key] for score in scores])), 4) for key in ("top1", "top1_one_view")}
    return {"folds": folds, **means}


def _both_ways(clips: Sequence[Clip], labels: Sequence[str]) -> list[Clip]:
    return [*clips, *(backwards(clip, labels) for clip in clips)]


def split_folds(clips: Sequence[Clip], folds: int, seed: int) -> list[list[Clip]]:
    """Folds of about equal label counts; clips of one group stay together."""
    groups: dict[tuple[str, int], list[Clip]] = {}
    for clip in clips:
        groups.setdefault((clip.group, 0), []).append(clip)
    order = list(groups.values())
    np.random.default_rng(seed).shuffle(order)
    order.sort(key=len, reverse=True)
    result: list[list[Clip]] = [[] for _ in range(folds)]
    for members in order:
        label = members[0].label
        result[min(range(folds), key=lambda i: (sum(c.label == label for c in result[i]), len(result[i])))] += members
    return result


def fit(config: ActionRun, name: str, clips: Sequence[Clip], actions: int, *, keep: bool) -> tuple[nn.Module, int]:
    """The averaged network and the epochs done; with `keep`, checkpoints are written and an earlier one is taken up."""
    folder = config.out / name
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    net = ActionNet(actions, config.dropout)
    net.backbone.load_fastestdet(config.data / "models" / "FastestDet.onnx")
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    mean = {key: value.clone() for key, value in net.state_dict().items()}
    fresh = [*net.classify.parameters(), *net.backbone.motion.parameters()]  # type: ignore[union-attr]
    known = [p for p in net.parameters() if not any(p is q for q in fresh)]
    optimiser = torch.optim.AdamW(
        [{"params": fresh, "lr": config.rate}, {"params": known, "lr": config.trunk_rate}], weight_decay=config.decay
    )
    bases = [group["lr"] for group in optimiser.param_groups]
    epoch, spent_s = 0, 0.0
    file = folder / CHECKPOINT
    if keep and config.resume and file.is_file():
        state = torch.load(file, weights_only=True)
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        mean, epoch, spent_s = state["mean"], state["epoch"], state["spent_s"]
    started, log = time.monotonic() - spent_s, folder / LOG
    with Progress(disable=not keep) as bar:
        task = bar.add_task(f"action {name}", total=config.epochs, completed=epoch)
        while epoch < config.epochs:
            elapsed = (time.monotonic() - started) / 60
            done = max(
                epoch / config.epochs, elapsed / (config.max_minutes / len(config.sets))
            )  # the schedule ends with the time box
            if done >= 1:
                break
            for group, base in zip(optimiser.param_groups, bases, strict=True):
                group["lr"] = base * min(1.0, (epoch + 1) / 3) * (0.5 + 0.5 * math.cos(math.pi * done))
            loss = _epoch(net, mean, optimiser, config, clips, actions, epoch)
            epoch += 1
            bar.update(task, completed=epoch, description=f"action {name} loss {loss:.3f}")
            if keep:
                spent_s = time.monotonic() - started
                with log.open("a") as lines:
                    lines.write(json.dumps({"epoch": epoch, "loss": round(loss, 4), "s": round(spent_s, 1)}) + "\n")
                state = {"net": net.state_dict(), "optimiser": optimiser.state_dict(), "mean": mean}
                torch.save({**state, "epoch": epoch, "spent_s": spent_s}, file)
    net.load_state_dict(mean)
    return net.eval(), epoch


def _epoch(
    net: ActionNet,
    mean: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
    config: ActionRun,
    clips: Sequence[Clip],
    actions: int,
    epoch: int,
) -> float:
    random = np.random.default_rng((config.seed, epoch))
    order = random.permutation(len(clips))
    net.train()
    losses = []
    for first in range(0, len(order) - config.batch + 1, config.batch):
        chosen = [clips[i] for i in order[first : first + config.batch]]
        frames = torch.stack([varied(clip, random) for clip in chosen], 1)  # [T, B, h, w, 24]
        target = F.one_hot(torch.tensor([clip.label for clip in chosen]), actions).float()
        if config.mixup > 0:
            share = float(random.beta(config.mixup, config.mixup))
            partner = torch.from_numpy(random.permutation(len(chosen)))
            frames = (frames.float() * share + frames[:, partner].float() * (1 - share)).to(torch.uint8)
            target = target * share + target[partner] * (1 - share)
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(frames.flatten(0, 1), len(chosen))[:, :, 0, 0].float()
        loss = F.cross_entropy(logits, target, label_smoothing=config.smoothing)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimiser.step()
        losses.append(float(loss.detach()))
        share = min(config.average, (epoch + 1) / (epoch + 10))
        with torch.no_grad():
            for key, value in net.state_dict().items():
                mean[key].lerp_(value, 1 - share)
    return float(np.mean(losses))


VIEWS = tuple((start, span, flip) for start, span in ((0.0, 1.0), (0.0, 0.7), (0.3, 0.7)) for flip in (False, True))
"""Votes at a test: the whole clip and its two ends, each plain and mirrored."""


@torch.no_grad()
def evaluate(net: nn.Module, clips: Sequence[Clip], actions: int) -> dict[str, Any]:
    """Top-1 by the vote of VIEWS, top-1 of the first view alone, and the vote's confusion matrix [truth][answer]."""
    net.eval()
    confusion = np.zeros((actions, actions), int)
    single = 0
    for clip in clips:
        views = torch.stack([plain(clip, *view) for view in VIEWS], 1)
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(views.flatten(0, 1), len(VIEWS))[:, :, 0, 0].float()
        single += int(logits[0].argmax()) == clip.label
        confusion[clip.label, int(logits.softmax(1).mean(0).argmax())] += 1
    return {
        "top1": round(float(np.trace(confusion) / len(clips)), 4),
        "top1_one_view": round(single / len(clips), 4),
        "confusion": confusion.tolist(),
    }
