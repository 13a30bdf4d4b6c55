"""Action recognition: the last pictures of a camera sampled evenly into a clip, one verdict for each hop of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import BundleError, FormatError
from scene_edge.codec.planes import ALIGN, U8, Planes, pack
from scene_edge.inference.session import DEFAULT_ENGINES, Session, open_session
from scene_edge.server.analytics.seams import Action

EXPOSURE = 0.35
MAX_GAIN = 6.0


@dataclass(frozen=True, slots=True)
class ActionModel:
    """What a bundle says of its network: clip length in frames and seconds, time between verdicts, size, labels."""

    labels: tuple[str, ...]
    frames: int
    height: int
    width: int
    window_s: float
    hop_s: float

    @classmethod
    def of(cls, bundle: Bundle) -> ActionModel:
        """From the bundle's parameters; raises BundleError where they cannot be used."""
        if bundle.kind != "action":
            raise BundleError(f"bundle {bundle.name} is no action model", got=bundle.kind, allowed="kind action")
        try:
            height, width = (int(side) for side in bundle.parameters["size"])
            model = cls(
                tuple(str(label) for label in bundle.parameters["labels"]),
                int(bundle.parameters["frames"]),
                height,
                width,
                float(bundle.parameters["window_s"]),
                float(bundle.parameters["hop_s"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            allowed = "labels, frames, size, window_s, hop_s"
            raise BundleError(f"bundle {bundle.name} lacks parameters", got=repr(error), allowed=allowed) from error
        usable = model.frames >= 2 and len(model.labels) >= 2 and model.hop_s > 0 and 0 < model.window_s < 60
        if not usable or height % ALIGN or width % ALIGN or min(height, width) < ALIGN:
            raise BundleError(f"bundle {bundle.name} has unusable parameters", got=str(model))
        return model


def expose(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Packed frames [T, h, w, 24] with one gain on all their luma, as in training: mean level towards EXPOSURE."""
    luma = frames[..., :16]
    level = max(float(luma.mean()) - 16.0, 1.0) / 219.0
    gain = min(max(EXPOSURE / level, 1.0), MAX_GAIN)
    curve = np.clip((np.arange(256) - 16.0) * gain + 16.0, 0, 255).astype(np.uint8)
    brighter = frames.copy()
    brighter[..., :16] = curve[luma]
    return brighter


def evenly(times_s: Sequence[float], start_s: float, end_s: float, count: int) -> list[int]:
    """Positions of the `count` pictures nearest to instants spread evenly over start_s..end_s."""
    wanted = np.linspace(start_s, end_s, count)
    return [int(index) for index in np.abs(np.asarray(times_s)[None, :] - wanted[:, None]).argmin(axis=1)]


class ClipRecogniser:
    """An ActionRecogniser of one camera: keeps the window's pictures small and packed, runs the network every hop.

    Verdicts of successive windows are averaged over `smooth` windows, so that one blurred clip does not flip them.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        smooth: int = 2,
        threads: int | None = None,
        prefer: Sequence[str] = DEFAULT_ENGINES,
    ) -> None:
        self.model = ActionModel.of(bundle)
        self.session: Session = open_session(
            bundle,
            "action",
            height=self.model.height // 4,
            width=self.model.width // 4,
            prefer=prefer,
            threads=threads,
        )
        self.fallbacks = self.session.fallbacks
        self._bundle_name = bundle.name
        self.name = f"{bundle.name}/{self.session.engine}-{self.session.precision}"
        self._pictures: deque[tuple[float, int, U8]] = deque()
        self._scores: deque[NDArray[np.float64]] = deque(maxlen=max(1, smooth))
        self._due_s: float | None = None
        self._kept_s = float("-inf")

    def push(self, planes: Planes, frame_seq: int, time_s: float) -> list[Action]:
        """Take the next picture; a verdict comes when a window is full, then every hop. Time going back starts anew."""
        if self._pictures and time_s < self._pictures[-1][0]:
            self.reset()
        window, hop = self.model.window_s, self.model.hop_s
        if self._due_s is None:
            self._due_s = time_s + window
        due = time_s >= self._due_s - 1e-6
        # Four pictures for each that the network takes are enough to sample from: a fast camera costs no more memory.
        if due or time_s - self._kept_s >= window / (4 * self.model.frames) - 1e-6:
            self._pictures.append((time_s, frame_seq, self._small(planes)))
            self._kept_s = time_s
        while self._pictures and self._pictures[0][0] < time_s - window - 1e-6:
            self._pictures.popleft()
        if not due:
            return []
        self._due_s = time_s + hop
        times = [one[0] for one in self._pictures]
        chosen = evenly(times, times[0], times[-1], self.model.frames)
        self._scores.append(self._run([self._pictures[index][2] for index in chosen]))
        scores = np.mean(self._scores, axis=0)
        best = int(scores.argmax())
        first, last = self._pictures[0][1], frame_seq
        return [Action(self.model.labels[best], float(scores[best]), first, last, self._bundle_name)]

    def classify(self, frames: Sequence[Planes]) -> dict[str, float]:
        """Score of each label for a whole trimmed clip, sampled evenly; leaves the stream's state alone."""
        if not frames:
            raise FormatError("a clip needs at least one picture", got=0)
        index = np.linspace(0, len(frames) - 1, self.model.frames).round().astype(int)
        scores = self._run([self._small(frames[position]) for position in index])
        return {label: float(score) for label, score in zip(self.model.labels, scores, strict=True)}

    def _small(self, planes: Planes) -> U8:
        size = (self.model.width, self.model.height)
        half = (size[0] // 2, size[1] // 2)
        y = cv2.resize(planes.y, size, interpolation=cv2.INTER_AREA)
        u = cv2.resize(planes.u, half, interpolation=cv2.INTER_AREA)
        v = cv2.resize(planes.v, half, interpolation=cv2.INTER_AREA)
        return pack(Planes(np.asarray(y, np.uint8), np.asarray(u, np.uint8), np.asarray(v, np.uint8)))

    def _run(self, pictures: Sequence[U8]) -> NDArray[np.float64]:
        logits = self.session.run({"clip": expose(np.stack(pictures))})["logits"].reshape(-1).astype(np.float64)
        if logits.shape != (len(self.model.labels),):
            allowed = len(self.model.labels)
            raise FormatError(
                f"{self.name} gives another number of scores than labels", got=len(logits), allowed=allowed
            )
        powers = np.exp(logits - logits.max())
        return np.asarray(powers / powers.sum(), np.float64)

    def reset(self) -> None:
        """Forget all pictures and verdicts: a new session begins."""
        self._pictures.clear()
        self._scores.clear()
        self._due_s, self._kept_s = None, float("-inf")

    def close(self) -> None:
        self.session.close()


def open_recogniser(
    spec: str | Path,
    *,
    threads: int | None = None,
    prefer: Sequence[str] = DEFAULT_ENGINES,
    public_key: bytes | None = None,
) -> ClipRecogniser:
    """A recogniser from the name or folder of an action bundle, which `public_key` must have signed, where there is
    one. Raises BundleError or EngineError."""
    return ClipRecogniser(Bundle.open(spec, public_key=public_key), threads=threads, prefer=prefer)
