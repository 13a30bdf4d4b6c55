"""Opens SCENE and SMC for one picture size as the settings say, and says what could not be opened and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import BundleError, ConfigError, EngineError, SceneEdgeError, StoreError
from scene_edge.codec.kernels import Kernels
from scene_edge.codec.quality import load_qualities
from scene_edge.edge.attention import WHERE, AttentionFilter
from scene_edge.edge.cachefile import cache_path
from scene_edge.edge.choice import AUTO, choice_for, engine_marks
from scene_edge.edge.config import CameraConfig, NetworkConfig, SemanticsConfig, public_key_of
from scene_edge.edge.counters import Counters
from scene_edge.edge.guarded import GuardedSession
from scene_edge.edge.prefilter import PreFilter, SessionOpener
from scene_edge.edge.scene import SceneFilter
from scene_edge.edge.scene_guard import GuardSettings, RateGuard
from scene_edge.edge.semantics import SemanticEncoder
from scene_edge.edge.share import FixedQuality, QualityControl, ShareControl
from scene_edge.inference.proofs import Proofs
from scene_edge.inference.session import Session, open_session

Tell = Callable[[str], None]

T = TypeVar("T")


@dataclass(slots=True)
class Networks:
    """What runs beside the H.264 encoder. `degraded` holds a reason for each part that should run and does not, and
    for each engine that is not the first choice."""

    scene: PreFilter | None = None
    semantics: SemanticEncoder | None = None
    degraded: tuple[str, ...] = ()
    choices: dict[str, str] = field(default_factory=dict)
    """Why each network that runs does so on the engine and at the precision that it does."""
    reopen_scene: Callable[[Tell], PreFilter] | None = None
    reopen_semantics: Callable[[Tell], SemanticEncoder] | None = None
    """How a network that failed is opened again, in any thread, and who is told what `degraded` would say of it;
    None: it is not."""

    @property
    def engines(self) -> dict[str, str]:
        found = {"scene": self.scene.engine if self.scene else ""}
        found["smc"] = self.semantics.engine if self.semantics else ""
        return found

    def close(self) -> None:
        if self.scene is not None:
            self.scene.close()
        if self.semantics is not None:
            self.semantics.close()


def open_networks(config: CameraConfig, width: int, height: int, *, strict: bool, live: bool = False) -> Networks:
    """SCENE and SMC for `width` x `height` luma samples. `live`: SCENE's; and a run may take `watchdog.hang_s` at most,
    and what failed may be opened again.

    `strict`: raise the error of whatever does not open. Otherwise the camera goes on without it and `degraded` says so.
    """
    networks = Networks()
    degraded: list[str] = []
    hang_s = config.watchdog.hang_s if live else None

    def open_scene(opener: Opener) -> PreFilter:
        guard, crf, floor = _guard(config), _crf(config), config.scene.floor
        return open_prefilter(opener.bundle, opener, width, height, live=live, guard=guard, crf=crf, floor=floor)

    def open_semantics(opener: Opener) -> SemanticEncoder:
        return SemanticEncoder(opener.bundle, width, height, opener)

    if live:

        def again(network: NetworkConfig, part: str, opened: Callable[[Opener], T], tell: Tell) -> T:
            opener = Opener(config, network, width, height, hang_s)
            found = opened(opener)
            for reason in opener.fallbacks(part):
                tell(reason)
            return found

        networks.reopen_scene = partial(again, config.scene, "scene", open_scene)
        networks.reopen_semantics = partial(again, config.semantics, "smc", open_semantics)
    if config.scene.enabled:
        try:
            opener = Opener(config, config.scene, width, height, hang_s)
            networks.scene = open_scene(opener)
            networks.choices["scene"] = opener.why
            degraded += opener.fallbacks("scene") + _remember(config, opener.bundle)
        except SceneEdgeError as error:
            if strict:
                raise
            degraded.append(f"no scene: {error}")
    if config.semantics.enabled:
        try:
            opener = Opener(config, config.semantics, width, height, hang_s)
            steps = [quality.step for quality in load_qualities(opener.bundle)]
            quality_control(config.semantics, steps, config.video.gop)  # refuses now what each stream would refuse
            networks.semantics = open_semantics(opener)
            networks.choices["smc"] = opener.why
            degraded += opener.fallbacks("smc") + _remember(config, opener.bundle)
        except SceneEdgeError as error:
            if strict:
                networks.close()
                raise
            degraded.append(f"no semantics: {error}")
    networks.degraded = tuple(degraded)
    return networks


def open_prefilter(
    bundle: Bundle,
    open_network: SessionOpener,
    width: int,
    height: int,
    *,
    live: bool = False,
    guard: RateGuard | None = None,
    crf: float | None = None,
    floor: float = 0.0,
) -> PreFilter:
    """SCENE of either kind, as the bundle is: with a map of what matters, or with kernels that follow the scene."""
    if WHERE in bundle.graphs:
        return AttentionFilter(bundle, width, height, open_network, live=live, guard=guard, crf=crf, floor=floor)
    return SceneFilter(bundle, width, height, open_network, live=live, guard=guard, crf=crf)


def scene_graph(config: CameraConfig) -> str:
    """The graph of SCENE's bundle that costs most. Raises BundleError or ConfigError where it does not open."""
    return WHERE if WHERE in open_bundle(config, config.scene.bundle).graphs else "filter"


def _guard(config: CameraConfig) -> RateGuard | None:
    """What keeps SCENE within scene.max_rise; none where the encoder holds a bitrate itself."""
    if config.scene.max_rise is None or config.video.bitrate_kbps is not None:
        return None
    video = config.video
    return RateGuard(GuardSettings(config.scene.max_rise, video.crf, video.preset, video.gop, video.tune))


def _crf(config: CameraConfig) -> float | None:
    """What frames will be coded with; none where the encoder holds a bitrate itself."""
    return None if config.video.bitrate_kbps is not None else float(config.video.crf)


def quality_control(config: SemanticsConfig, steps: Sequence[float], gop: int) -> QualityControl:
    """What chooses the quality of each GOP of `gop` frames. Raises ConfigError for a quality that is not in `steps`."""
    if config.quality == "auto":
        return ShareControl(steps, config.max_share, gop)
    if config.quality >= len(steps):
        raise ConfigError(
            "the bundle has no such semantics.quality", got=config.quality, allowed=f"auto, 0..{len(steps) - 1}"
        )
    return FixedQuality(config.quality)


def open_bundle(config: CameraConfig, name: str) -> Bundle:
    """The bundle `name` as the settings want bundles checked. Raises BundleError, ConfigError for an unreadable key."""
    try:
        key = public_key_of(config)
    except (OSError, ValueError) as error:
        raise ConfigError("bundles.public_key_file cannot be used", got=str(error)) from error
    bundle = Bundle.open(name, public_key=key, zoo=config.bundles.zoo)
    if key is None:
        return bundle
    least = Counters(config.bundles.counters_file).least(bundle.name)
    if bundle.counter < least:
        raise BundleError(
            f"bundle {bundle.name} is older than the one that was in use",
            got=f"counter {bundle.counter}",
            allowed=f">= {least}",
            hint="Its signature is good: somebody brought an old one back.",
        )
    return bundle


def _remember(config: CameraConfig, bundle: Bundle) -> list[str]:
    """Raise the bundle's counter, now that it runs; why that could not be written down, if so."""
    try:
        Counters(config.bundles.counters_file).raise_to(bundle)
    except (BundleError, StoreError) as error:
        return [f"bundle {bundle.name}: {error}"]
    return []


class Opener:
    """A SessionOpener with one network's preferences, which remembers the fallbacks of what it opened.

    Where the settings say `auto`, what `bench` found fastest for pictures of `width` x `height` comes first. With
    `hang_s` no run may take longer.
    """

    def __init__(
        self, config: CameraConfig, network: NetworkConfig, width: int, height: int, hang_s: float | None = None
    ) -> None:
        self.bundle = open_bundle(config, network.bundle)
        self._network, self._hang_s = network, hang_s
        self._chosen = choice_for(network, self.bundle, width, height)
        self._proofs = Proofs(cache_path("proofs"), engine_marks())
        self._fallbacks: set[str] = set()

    def __call__(
        self, bundle: Bundle, graph: str, height: int, width: int, kernels: Kernels | None = None, /
    ) -> Session:
        opened = partial(self._open, bundle, graph, height, width, kernels)
        session, failed = None, ""
        if self._chosen is not None:
            try:
                session = opened((self._chosen.engine,), self._chosen.precision)
            except EngineError as error:
                failed = f"what bench chose does not run any more: {error}"
        if session is None:
            session = opened(self._network.named_engines, self._network.precision)
        if failed:
            session.fallbacks = (failed, *session.fallbacks)
        self._fallbacks.update(session.fallbacks)
        return session if self._hang_s is None else GuardedSession(session, self._hang_s)

    @property
    def why(self) -> str:
        """What decided on the engine and precision of what was opened."""
        if self._chosen is not None and not self._fallbacks:
            return self._chosen.why
        order = f"in the order of the settings: {', '.join(self._network.named_engines)} at {self._network.precision}"
        measured = self._chosen is not None or self._network.engines[0] != AUTO
        return order if measured else f"{order}; not measured here (scene-edge bench)"

    def fallbacks(self, part: str) -> list[str]:
        return [f"{part}: {reason}" for reason in sorted(self._fallbacks)]

    def _open(
        self,
        bundle: Bundle,
        graph: str,
        height: int,
        width: int,
        kernels: Kernels | None,
        engines: Sequence[str],
        precision: str,
    ) -> Session:
        return open_session(
            bundle,
            graph,
            height=height,
            width=width,
            prefer=engines,
            precision=precision,
            threads=self._network.threads,
            kernels=kernels,
            proofs=self._proofs,
        )
