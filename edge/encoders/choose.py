"""Chooses an encoder by trial, remembers the verdict for this very machine, and says when the first choice failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scene_edge.codec.errors import EncoderError
from scene_edge.edge.board import fingerprint
from scene_edge.edge.cachefile import CacheFile, cache_path
from scene_edge.edge.config import VideoConfig
from scene_edge.edge.encoders import EncoderSettings
from scene_edge.edge.encoders.trial import TRIAL_GOP, Verdict, run_trial

Trial = Callable[[str, EncoderSettings], Verdict]


@dataclass(frozen=True, slots=True)
class Choice:
    """The encoder that passed, and the verdicts on those before it that did not. `tune` is what was asked for."""

    encoder: str
    failed: tuple[Verdict, ...] = ()
    tune: str = "human"

    @property
    def degraded(self) -> tuple[str, ...]:
        """Reasons for the status and the birth message; none if the first choice passed and does all that is asked."""
        reasons = [f"encoder {verdict.encoder}: {verdict.reason}" for verdict in self.failed]
        if self.tune != "human" and self.encoder != "libx264":
            reasons.append(f"encoder {self.encoder}: video.tune is libx264's alone, and does nothing here")
        return tuple(reasons)


class VerdictCache:
    """Verdicts by encoder, picture size and the machine's fingerprint."""

    def __init__(self, path: Path | None = None, marks: dict[str, str] | None = None) -> None:
        self._file = CacheFile(path or cache_path("encoders.json"), fingerprint() if marks is None else marks)

    def get(self, name: str, settings: EncoderSettings) -> Verdict | None:
        reason = self._file.get(_key(name, settings))
        return Verdict(name, reason) if isinstance(reason, str) else None

    def put(self, settings: EncoderSettings, verdict: Verdict) -> bool:
        """False if it could not be written."""
        return self._file.put(_key(verdict.encoder, settings), verdict.reason)


def _key(name: str, settings: EncoderSettings) -> tuple[str, int, int, str]:
    return name, settings.width, settings.height, "crf" if settings.bitrate_kbps is None else "bitrate"


def choose_encoder(
    config: VideoConfig, settings: EncoderSettings, *, cache: VerdictCache | None = None, trial: Trial = run_trial
) -> Choice:
    """The first candidate that passes its trial. Raises EncoderError, with every verdict, if none does."""
    candidates: Sequence[str] = config.candidates if config.encoder == "auto" else (config.encoder,)
    cache = cache or VerdictCache()
    trial_settings = replace(settings, gop=TRIAL_GOP)
    failed: list[Verdict] = []
    for name in candidates:
        verdict = cache.get(name, trial_settings)
        if verdict is None:
            verdict = trial(name, trial_settings)
            cache.put(trial_settings, verdict)
        if verdict.passed:
            return Choice(name, tuple(failed), settings.tune)
        failed.append(verdict)
    reasons = "; ".join(f"{verdict.encoder} {verdict.reason}" for verdict in failed)
    raise EncoderError("no encoder passes its trial", got=reasons, hint="See: scene-edge doctor")
