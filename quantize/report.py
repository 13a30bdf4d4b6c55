"""What a quantisation was made of and what it cost, as the manifest of a bundle keeps it. Plain values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino")


@dataclass(frozen=True)
class OutputError:
    """One output against float torch, over all evaluation samples. `relative` is rms(error) / rms(reference)."""

    largest: float
    mean: float
    relative: float


@dataclass(frozen=True)
class ArtifactReport:
    """One file of a bundle on its engine.

    `cpu_ms` is CPU time of one inference on one thread at `grid` (packed rows and columns), the best of a few runs.
    `latent_mismatch` is the share of the integers of the latent that differ from those of float torch.
    """

    graph: str
    engine: str
    precision: str
    file: str
    size_bytes: int
    errors: Mapping[str, OutputError]
    cpu_ms: float
    grid: tuple[int, int] | None
    latent_mismatch: float | None = None
    shipped: bool = True

    @property
    def worst(self) -> tuple[str, float]:
        """The output with the largest relative error, and that error."""
        return max(((name, error.relative) for name, error in self.errors.items()), key=lambda item: item[1])


@dataclass(frozen=True)
class TrainingReport:
    """Training of a graph in INT8: relative error of each output on samples held out, in PyTorch's model of INT8.

    Of a picture: relative to what the network changes of it. `taken` is False where training made it no better, and
    the weights before it were used.
    """

    steps: int
    seed: int
    before: Mapping[str, float]
    after: Mapping[str, float]
    taken: bool


@dataclass(frozen=True)
class QuantisationReport:
    """Everything about one `export_bundle`. Artefacts that were made only to compare with have `shipped` False.

    `training` is by graph, and empty for PTQ.
    """

    method: str
    weights_sha256: Mapping[str, str]
    calibration_sha256: Mapping[str, str]
    calibration_samples: Mapping[str, int]
    evaluation_samples: Mapping[str, int]
    tools: Mapping[str, str]
    artifacts: tuple[ArtifactReport, ...]
    training: Mapping[str, TrainingReport] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As JSON values, rounded to four digits."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def tool_versions() -> dict[str, str]:
    """Versions of the tools of this process; those that are absent are left out."""
    found = {}
    for name in TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
