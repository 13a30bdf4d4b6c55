"""Training of the detector on the teacher's labels: resumable, time-boxed, measured on the dev street clip."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn

from scene_edge.codec.errors import ConfigError
from scene_edge.codec.media import read_video
from scene_edge.codec.planes import pack
from scene_edge.models.detection_metrics import average_precision, read_mot
from scene_edge.models.detector import HEIGHT, WIDTH, DetectorNet, decode, detection_loss
from scene_edge.models.detector_data import SURE, draw, sampling_weights
from scene_edge.models.pictures import letterbox
from scene_edge.models.pseudo_labels import Sample, build
from scene_edge.models.teacher import suppress

CHECKPOINT, WEIGHTS, LOG, REPORT, LABELS = "checkpoint.pt", "weights.pt", "log.jsonl", "report.json", "labels"
MOT = "dev/mot/adl_rundle6"


@dataclass(frozen=True, slots=True)
class DetectorRun:
    """`data` holds index.json, train/, dev/ and models/; `out` takes labels, checkpoint, log, weights and report."""

    data: Path
    out: Path
    max_minutes: float = 30.0
    resume: bool = True
    seed: int = 0
    steps: int = 1600
    batch: int = 16
    rate: float = 2e-3
    trunk_rate: float = 8e-4
    decay: float = 0.02
    average: float = 0.995
    save_every: int = 50
    threads: int = 1

    def __post_init__(self) -> None:
        if self.max_minutes <= 0 or self.steps < 1 or self.batch < 1:
            raise ConfigError("training needs time, steps and a batch", got=(self.max_minutes, self.steps, self.batch))


def train(config: DetectorRun) -> dict[str, Any]:
    """Label where there are no labels yet, train, measure, and write weights.pt and report.json into `out`."""
    samples = build(config.data, config.out / LABELS)
    net, steps, minutes = fit(config, samples)
    torch.save(net.state_dict(), config.out / WEIGHTS)
    report = {
        "frames": len(samples),
        "labels": int(sum((sample.scores >= SURE[sample.classes]).sum() for sample in samples)),
        "parameters": sum(value.numel() for value in net.parameters()),
        "steps": steps,
        "minutes": round(minutes, 1),
        "config": {key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()},
        "dev": {"person_ap50": round(street_ap50(net, config.data), 4), "clip": MOT, "every": 3},
    }
    (config.out / REPORT).write_text(json.dumps(report, indent=1))
    return report


def fit(config: DetectorRun, samples: list[Sample]) -> tuple[nn.Module, int, float]:
    """The averaged network, its steps and minutes; takes up an earlier checkpoint where `resume` is set."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    net = DetectorNet()
    net.backbone.load_fastestdet(config.data / "models" / "FastestDet.onnx")
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    mean = {key: value.clone() for key, value in net.state_dict().items()}
    trunk = list(net.backbone.parameters())
    fresh = [*net.lateral.parameters(), *net.heads.parameters()]
    optimiser = torch.optim.AdamW(
        [{"params": fresh, "lr": config.rate}, {"params": trunk, "lr": config.trunk_rate}], weight_decay=config.decay
    )
    bases = [group["lr"] for group in optimiser.param_groups]
    step, spent_s, weights = 0, 0.0, sampling_weights(samples)
    file = config.out / CHECKPOINT
    if config.resume and file.is_file():
        state = torch.load(file, weights_only=True)
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        mean, step, spent_s = state["mean"], state["step"], state["spent_s"]
    started, log, recent = time.monotonic() - spent_s, config.out / LOG, []
    with Progress() as bar:
        task = bar.add_task("detector", total=config.steps, completed=step)
        while (done := max(step / config.steps, (time.monotonic() - started) / 60 / config.max_minutes)) < 1:
            for group, base in zip(optimiser.param_groups, bases, strict=True):
                group["lr"] = base * min(1.0, (step + 1) / 60) * (0.51 + 0.49 * math.cos(math.pi * done))
            recent.append(_step(net, mean, optimiser, config, samples, weights, step))
            step += 1
            if step % 10 == 0:
                bar.update(task, completed=step, description=f"detector loss {recent[-1]['loss']:.3f}")
            if step % config.save_every == 0:
                spent_s = time.monotonic() - started
                entry = {key: round(float(np.mean([one[key] for one in recent])), 4) for key in recent[0]}
                with log.open("a") as lines:
                    lines.write(json.dumps({"step": step, "s": round(spent_s, 1), **entry}) + "\n")
                recent = []
                state = {"net": net.state_dict(), "optimiser": optimiser.state_dict(), "mean": mean}
                torch.save({**state, "step": step, "spent_s": spent_s}, file)
    net.load_state_dict(mean)
    return net.eval(), step, (time.monotonic() - started) / 60


def _step(
    net: DetectorNet,
    mean: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
    config: DetectorRun,
    samples: list[Sample],
    weights: np.ndarray,
    step: int,
) -> dict[str, float]:
    random = np.random.default_rng((config.seed, step))
    drawn = [draw(config.out / LABELS, samples, weights, random) for _ in range(config.batch)]
    with torch.autocast("cpu", torch.bfloat16):
        outputs = net(torch.stack([picture for picture, _ in drawn]))
    loss, parts = detection_loss(outputs, [truth for _, truth in drawn])
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 5.0)
    optimiser.step()
    share = min(config.average, (step + 1) / (step + 20))
    with torch.no_grad():
        for key, value in net.state_dict().items():
            mean[key].lerp_(value, 1 - share)
    return {"loss": float(loss.detach()), **parts}


@torch.no_grad()
def street_ap50(net: nn.Module, data: Path, every: int = 3) -> float:
    """Person AP50 on every `every`-th frame of the dev street clip, whole frames scaled to the network's size."""
    net.eval()
    truth = read_mot(data / f"{MOT}.gt.txt")
    found = {}
    for index, (planes, _) in enumerate(read_video(data / f"{MOT}.mp4")):
        if index % every:
            continue
        small, scale = letterbox(planes, WIDTH, HEIGHT)
        logits, boxes, _, _ = decode(net(torch.from_numpy(pack(small))[None]))
        scores = logits[0, :, 0].sigmoid().numpy().astype(np.float32)
        kept = np.flatnonzero(scores > 0.01)
        best = boxes[0].numpy()[kept].astype(np.float32)
        survivors = suppress(best, scores[kept], 0.5)
        found[index + 1] = ((best[survivors] / scale).astype(np.float32), scores[kept][survivors])
    return average_precision(found, truth)
