"""Each picture is encoded once, however many pages show it."""

from __future__ import annotations

import threading
from collections import OrderedDict

from scene_edge.server.state import Snapshot
from scene_edge.server.web.jpeg import encode_jpeg

CACHED_PICTURES = 64


class JpegCache:
    """The latest pictures at one quality."""

    def __init__(self, quality: int) -> None:
        self._quality = quality
        self._lock = threading.Lock()
        self._jpegs: OrderedDict[tuple[str, str], tuple[Snapshot, bytes]] = OrderedDict()

    def get(self, camera: str, kind: str, snapshot: Snapshot) -> bytes | None:
        """`kind` is `lossy` or `fused`; None where the picture was not fused. Raises EncoderError."""
        planes = snapshot.fused if kind == "fused" else snapshot.lossy
        if planes is None:
            return None
        key = (camera, kind)
        with self._lock:
            held = self._jpegs.get(key)
            if held is not None and held[0] is snapshot:
                return held[1]
        data = encode_jpeg(planes, self._quality)
        with self._lock:
            self._jpegs[key] = (snapshot, data)
            self._jpegs.move_to_end(key)
            while len(self._jpegs) > CACHED_PICTURES:
                self._jpegs.popitem(last=False)
        return data
