"""Chooses an encoder by trial, remembers the verdict for this very machine, and says when the first choice failed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scene_edge.codec.errors import EncoderError
from scene_edge.edge.board import fingerprint
from scene_edge.edge.config import VideoConfig
from scene_edge.edge.encoders import EncoderSettings
from scene_edge.edge.encoders.trial import TRIAL_GOP, Verdict, run_trial

Trial = Callable[[str, EncoderSettings], Verdict]


@dataclass(frozen=True, slots=True)
class Choice:
    """The encoder that passed, and the verdicts on those before it that did not."""

    encoder: str
    failed: tuple[Verdict, ...] = ()

    @property
    def degraded(self) -> tuple[str, ...]:
        """Reasons for the status and the birth message; none if the first choice passed."""
        return tuple(f"encoder {verdict.encoder}: {verdict.reason}" for verdict in self.failed)


class VerdictCache:
    """Verdicts in one small JSON file, by encoder, picture size and the machine's fingerprint.

    A file that cannot be read or written costs a second trial and nothing else.
    """

    def __init__(self, path: Path | None = None, marks: dict[str, str] | None = None) -> None:
        self._path = path or default_cache_path()
        self._marks = fingerprint() if marks is None else marks

    def get(self, name: str, settings: EncoderSettings) -> Verdict | None:
        reason = self._read().get(self._key(name, settings))
        return Verdict(name, reason) if isinstance(reason, str) else None

    def put(self, settings: EncoderSettings, verdict: Verdict) -> bool:
        """False if it could not be written."""
        verdicts = self._read()
        verdicts[self._key(verdict.encoder, settings)] = verdict.reason
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(verdicts, indent=1), encoding="utf-8")
            temporary.replace(self._path)
        except OSError:
            return False
        return True

    def _read(self) -> dict[str, object]:
        try:
            verdicts = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return verdicts if isinstance(verdicts, dict) else {}

    def _key(self, name: str, settings: EncoderSettings) -> str:
        rate = "crf" if settings.bitrate_kbps is None else "bitrate"
        marks = json.dumps([name, settings.width, settings.height, rate, self._marks], sort_keys=True)
        return f"{name}-{hashlib.sha256(marks.encode()).hexdigest()[:16]}"


def default_cache_path() -> Path:
    """$XDG_CACHE_HOME/scene-edge/encoders.json, else below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "scene-edge" / "encoders.json"


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
            return Choice(name, tuple(failed))
        failed.append(verdict)
    reasons = "; ".join(f"{verdict.encoder} {verdict.reason}" for verdict in failed)
    raise EncoderError("no encoder passes its trial", got=reasons, hint="See: scene-edge doctor")
