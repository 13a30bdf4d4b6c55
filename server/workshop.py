"""What a camera's worker is made of: the store, networks that cameras share, and networks of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from scene_edge.codec.errors import SceneEdgeError
from scene_edge.codec.planes import Planes
from scene_edge.server.analytics.detections import Detections
from scene_edge.server.analytics.seams import ActionRecogniser, Detector, Tracker
from scene_edge.server.config import ServerConfig, public_key_of
from scene_edge.server.fusion import BundleShelf
from scene_edge.server.hub import Hub
from scene_edge.server.pictures import Analytics, PicturePipeline, fusion_factory
from scene_edge.server.session import Publish
from scene_edge.server.state import CameraState
from scene_edge.server.store import Store
from scene_edge.server.worker import CameraWorker, PicturesFactory

log = structlog.get_logger(__name__)


class SharedDetector:
    """One detector for all cameras: one picture at a time, since its network fills the cores anyway."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return self._detector.name

    def detect(self, planes: Planes) -> Detections:
        with self._lock:
            return self._detector.detect(planes)

    def close(self) -> None:
        with self._lock:
            self._detector.close()


class Workshop:
    """Makes the workers of a process. Raises a SceneEdgeError where a network that was asked for does not open.

    `detector` and `recognisers` replace what the configuration names, `pictures` all of the work on pictures.
    """

    def __init__(
        self,
        config: ServerConfig,
        store: Store,
        hub: Hub,
        publish: Publish,
        *,
        detector: Detector | None = None,
        recognisers: Callable[[], list[ActionRecogniser]] | None = None,
        pictures: PicturesFactory | None = None,
    ) -> None:
        self._config, self._store, self._hub, self._publish = config, store, hub, publish
        self._missing: dict[str, str] = {}
        self._public_key = public_key_of(config)
        self._recognisers, self._pictures = recognisers, pictures
        opened = detector or self._open_detector()
        self._detector = SharedDetector(opened) if opened is not None else None
        if self._detector is not None:
            self._open_tracker()  # its imports take seconds: now, not while the first camera's frames wait
        self._shelf = BundleShelf(config.fusion.bundles, public_key=self._public_key)

    def close(self) -> None:
        if self._detector is not None:
            self._detector.close()

    def make_worker(self, camera: str, stop: threading.Event) -> CameraWorker:
        state = self._hub.state(camera)
        for part, reason in self._missing.items():
            state.degrade(part, reason)
        fusion = fusion_factory(self._shelf, self._config.fusion) if self._config.fusion.enabled else None

        def pictures(shown: CameraState) -> PicturePipeline:
            most = self._config.limits.max_pixels
            return PicturePipeline(shown, self._analytics(shown), fusion, max_pixels=most)

        return CameraWorker(camera, self._config, self._store, state, self._pictures or pictures, self._publish, stop)

    def _analytics(self, state: CameraState) -> Analytics:
        settings = self._config.analytics
        tracker = self._open_tracker() if self._detector is not None else None
        recognisers = self._recognisers() if self._recognisers is not None else self._open_recognisers(state)
        return Analytics(
            self._detector,
            tracker,
            recognisers,
            settings.detect_fps,
            settings.action_score,
            settings.max_lag_ms / 1000,
        )

    def _open_detector(self) -> Detector | None:
        """A path that the user gave must open; the shipped bundle may be absent, which is shown, not hidden."""
        from scene_edge.server.analytics.detector import open_detector

        settings = self._config.analytics
        if settings.detector == "off":
            return None
        try:
            return open_detector(settings.detector, threads=settings.threads, public_key=self._public_key)
        except SceneEdgeError as error:
            if "detector" in settings.model_fields_set:
                raise
            log.error("no detection", error=str(error))
            self._missing["detector"] = f"no detection: {error}"
            return None

    def _open_tracker(self) -> Tracker:
        from scene_edge.server.analytics.tracker import ByteTracker

        score = self._config.analytics.detector_score
        return ByteTracker(self._config.analytics.detect_fps, strong=score, activate=score)

    def _open_recognisers(self, state: CameraState) -> list[ActionRecogniser]:
        from scene_edge.server.analytics.action import open_recogniser

        opened: list[ActionRecogniser] = []
        for name in self._config.analytics.actions:
            try:
                threads = self._config.analytics.threads
                opened.append(open_recogniser(name, threads=threads, public_key=self._public_key))
            except SceneEdgeError as error:
                log.error("no action recognition", bundle=name, error=str(error))
                state.degrade(f"action {name}", f"no action recognition by {name}: {error}")
        return opened


@dataclass(frozen=True, slots=True)
class WorkshopPlan:
    """A workshop in a process of its own, with a connection of its own to the store of `owner`."""

    config: ServerConfig
    owner: str
    pictures: PicturesFactory | None = None

    def open(self, hub: Hub, publish: Publish) -> OwnWorkshop:
        store = Store(self.config.database, owner=self.owner, grouped=True)
        return OwnWorkshop(self.config, store, hub, publish, pictures=self.pictures)


class OwnWorkshop(Workshop):
    """Closes its store as well."""

    def close(self) -> None:
        super().close()
        self._store.close()
