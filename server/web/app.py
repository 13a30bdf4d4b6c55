"""The web application: one static page, JSON, JPEG, server-sent events and metrics over a Hub. Read-only throughout."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles

from scene_edge.server.config import WebConfig
from scene_edge.server.hub import Hub
from scene_edge.server.state import Snapshot
from scene_edge.server.web.jpeg import encode_jpeg
from scene_edge.server.web.metrics import render

POLL_S = 0.1
LIST_EVERY_S = 1.0
CACHED_PICTURES = 64

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' blob: data:;"
    " frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""uPlot sets the size of its canvases through inline styles; nothing else may be inline."""


def create_app(hub: Hub, config: WebConfig) -> FastAPI:
    """The application. The page's files are read from the package."""
    static = Path(str(package_files("scene_edge.server.web"))) / "static"
    app = FastAPI(title="scene-edge", docs_url=None, redoc_url=None, openapi_url="/api/openapi.json")
    pictures = _PictureCache(config.jpeg_quality)
    listeners = _Listeners(config.max_listeners)

    @app.middleware("http")
    async def harden(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(static / "index.html", headers={"Cache-Control": "no-cache"})

    @app.get("/api/cameras")
    def cameras() -> JSONResponse:
        return JSONResponse(hub.cameras())

    @app.get("/api/cameras/{camera}")
    def camera_view(camera: str) -> JSONResponse:
        found = [view for view in hub.cameras() if view["camera"] == camera]
        if not found:
            raise HTTPException(404, "no such camera")
        return JSONResponse(found[0])

    @app.get("/api/cameras/{camera}/history")
    def history(camera: str) -> JSONResponse:
        state = hub.find(camera)
        if state is None:
            raise HTTPException(404, "no such camera")
        return JSONResponse(state.history())

    @app.get("/api/cameras/{camera}/picture/{kind}.jpg")
    def picture(camera: str, kind: str) -> Response:
        state = hub.find(camera)
        snapshot = state.snapshot if state is not None else None
        if snapshot is None:
            raise HTTPException(404, "no picture of this camera yet")
        if kind not in ("lossy", "fused") or (kind == "fused" and snapshot.fused is None):
            raise HTTPException(404, "no such picture: lossy, or fused where semantics are joined")
        data = pictures.get(camera, kind, snapshot)
        headers = {"Cache-Control": "no-store", "X-Frame-Seq": str(snapshot.seq)}
        return Response(data, media_type="image/jpeg", headers=headers)

    @app.get("/api/events")
    async def events(request: Request) -> StreamingResponse:
        if not listeners.enter():
            raise HTTPException(503, "too many open pages")
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(_events(request, hub, listeners), media_type="text/event-stream", headers=headers)

    @app.get("/healthz")
    def healthz() -> JSONResponse:
        health = hub.health()
        return JSONResponse(health, 200 if health["status"] == "ok" else 503)

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(render(hub), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.mount("/static", StaticFiles(directory=static), name="static")
    return app


async def _events(request: Request, hub: Hub, listeners: _Listeners) -> AsyncIterator[str]:
    """`cameras` (the whole list) every second, `picture` whenever a camera shows another frame."""
    loop = asyncio.get_running_loop()
    shown: dict[str, int] = {}
    list_due_s = 0.0
    try:
        yield "retry: 2000\n\n"
        while not hub.stopping and not await request.is_disconnected():
            if loop.time() >= list_due_s:
                list_due_s = loop.time() + LIST_EVERY_S
                yield _event("cameras", {"cameras": hub.cameras(), "health": hub.health()})
            for camera, seq in hub.pictures().items():
                if shown.get(camera) != seq:
                    shown[camera] = seq
                    yield _event("picture", _picture_event(hub, camera, seq))
            await asyncio.sleep(POLL_S)
    finally:
        listeners.leave()


def _picture_event(hub: Hub, camera: str, seq: int) -> dict[str, Any]:
    state = hub.find(camera)
    snapshot = state.snapshot if state is not None else None
    if snapshot is None:
        return {"camera": camera, "seq": seq}
    return {
        "camera": camera,
        "seq": snapshot.seq,
        "width": snapshot.lossy.width,
        "height": snapshot.lossy.height,
        "fused": snapshot.fused is not None,
        "tracks": [
            {"id": track.track_id, "label": track.label, "box": [round(value, 1) for value in track.box]}
            for track in snapshot.tracks
        ],
    }


def _event(name: str, data: object) -> str:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"


class _Listeners:
    """How many event streams are open; each costs a task and a share of the uplink."""

    def __init__(self, limit: int) -> None:
        self._limit, self._open = limit, 0

    def enter(self) -> bool:
        if self._open >= self._limit:
            return False
        self._open += 1
        return True

    def leave(self) -> None:
        self._open -= 1


class _PictureCache:
    """Each picture is encoded once, however many pages show it."""

    def __init__(self, quality: int) -> None:
        self._quality = quality
        self._lock = threading.Lock()
        self._jpegs: OrderedDict[tuple[str, str], tuple[Snapshot, bytes]] = OrderedDict()

    def get(self, camera: str, kind: str, snapshot: Snapshot) -> bytes:
        key = (camera, kind)
        with self._lock:
            held = self._jpegs.get(key)
            if held is not None and held[0] is snapshot:
                return held[1]
        planes = snapshot.fused if kind == "fused" and snapshot.fused is not None else snapshot.lossy
        data = encode_jpeg(planes, self._quality)
        with self._lock:
            self._jpegs[key] = (snapshot, data)
            self._jpegs.move_to_end(key)
            while len(self._jpegs) > CACHED_PICTURES:
                self._jpegs.popitem(last=False)
        return data
