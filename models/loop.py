"""The training loop that all networks share: time-boxed, resumable, seeded, with a log that the model card quotes."""

from __future__ import annotations

import contextlib
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from scene_edge.codec.errors import FormatError


@dataclass
class RunConfig:
    """A training run: where it writes, how long it may take, and the optimiser's settings."""

    data: Path
    out: Path
    max_minutes: float = 60.0
    resume: bool = True
    seed: int = 7
    learning_rate: float = 4e-4
    batch: int = 4
    threads: int = 1
    save_every_s: float = 60.0


@dataclass
class Progressed:
    """What a step may ask of the run: fraction of the time box used, steps done."""

    fraction: float
    step: int


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def autocast() -> Iterator[None]:
    """bf16 wherever the hardware gains from it; ten times float32 on two matrix-unit cores."""
    with torch.autocast(device().type, torch.bfloat16):
        yield


class Trainer:
    """Runs `step(progress) -> (loss, figures)` until the time box is full; a later call goes on where it stopped.

    `faster` are parameters, such as an entropy model's, that learn at 100 times the rate. The learning rate warms up
    over 3 % of the time and falls as a cosine; weights are averaged (EMA), and it is the average that is kept for
    export. `state.pt` holds everything to resume, `log.jsonl` a line every few seconds.
    """

    def __init__(
        self,
        config: RunConfig,
        model: nn.Module,
        extra: nn.Module | None = None,
        faster: list[nn.Parameter] | None = None,
    ) -> None:
        self.config, self.model = config, model
        self.trained = nn.ModuleList([model] + ([extra] if extra is not None else []))
        self.average = {key: value.detach().clone().float() for key, value in model.state_dict().items()}
        quick = {id(parameter) for parameter in faster or []}
        slow = [parameter for parameter in self.trained.parameters() if id(parameter) not in quick]
        groups = [{"params": slow, "scale": 1.0}] + ([{"params": faster, "scale": 100.0}] if faster else [])
        self.optimiser = torch.optim.AdamW(groups, config.learning_rate, weight_decay=1e-4)
        self.seconds, self.steps = 0.0, 0
        config.out.mkdir(parents=True, exist_ok=True)
        self.state_path = config.out / "state.pt"
        if config.resume and self.state_path.exists():
            self._load()

    def _load(self) -> None:
        try:
            state = torch.load(self.state_path, weights_only=True, map_location=device())
            self.trained.load_state_dict(state["trained"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise FormatError(
                f"cannot resume from {self.state_path}",
                got=str(error).splitlines()[0],
                hint="Use --no-resume to start afresh.",
            ) from error
        self.average, self.seconds, self.steps = state["average"], state["seconds"], state["steps"]

    def save(self) -> None:
        temporary = self.state_path.with_suffix(".tmp")
        torch.save(
            {
                "trained": self.trained.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "average": self.average,
                "seconds": self.seconds,
                "steps": self.steps,
            },
            temporary,
        )
        temporary.replace(self.state_path)

    def run(self, step: Callable[[Progressed], tuple[torch.Tensor, dict[str, float]]]) -> dict[str, Any]:
        """Train; returns the record for the manifest. The averaged weights are in `average` and saved."""
        budget = self.config.max_minutes * 60
        sums: dict[str, float] = {}
        count, last_log, last_save = 0, time.monotonic(), time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[loss]}"))
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as bar, self._log() as log:
            task = bar.add_task(self.config.out.name, total=budget, completed=round(self.seconds), loss="")
            while self.seconds < budget:
                started = time.monotonic()
                figures = self._one(step, self.seconds / budget)
                now = time.monotonic()
                self.seconds += now - started
                for key, value in figures.items():
                    sums[key] = sums.get(key, 0.0) + value
                count += 1
                bar.update(task, completed=self.seconds, loss=f"loss {figures['loss']:.4f}")
                if now - last_log > 10:
                    line = {"step": self.steps, "seconds": round(self.seconds)}
                    log.write(json.dumps({**line, **{k: round(v / count, 5) for k, v in sums.items()}}) + "\n")
                    log.flush()
                    sums, count, last_log = {}, 0, now
                if now - last_save > self.config.save_every_s:
                    self.save()
                    last_save = now
        self.save()
        return self.record()

    def _log(self) -> Any:
        return (self.config.out / "log.jsonl").open("a", encoding="utf-8")

    def _one(
        self, step: Callable[[Progressed], tuple[torch.Tensor, dict[str, float]]], fraction: float
    ) -> dict[str, float]:
        cosine = 0.02 + 0.98 * 0.5 * (1 + float(torch.cos(torch.tensor(fraction * torch.pi))))
        rate = self.config.learning_rate * min(1.0, fraction / 0.03 + 0.01) * cosine
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        loss, figures = step(Progressed(fraction, self.steps))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
        if torch.isfinite(norm):  # one bad batch must not cost the run
            self.optimiser.step()
        self.steps += 1
        decay = min(0.998, self.steps / (self.steps + 20))
        with torch.no_grad():
            for key, value in self.model.state_dict().items():
                self.average[key].lerp_(value.float(), 1 - decay)
        return {"loss": float(loss.detach()), **figures}

    def record(self) -> dict[str, Any]:
        """What the model card says of the run."""
        hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
        return {
            "steps": self.steps,
            "minutes": round(self.seconds / 60, 1),
            "batch": self.config.batch,
            "seed": self.config.seed,
            "learning_rate": self.config.learning_rate,
            "hardware": f"{hardware}, {self.config.threads} threads, bf16 autocast",
            "torch": torch.__version__,
        }
