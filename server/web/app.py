"""The web application: one static page, JSON, JPEG, server-sent events and metrics over a Hub. Read-only throughout."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles

from scene_edge.server.config import WebConfig
from scene_edge.server.hub import Hub
from scene_edge.server.web.metrics import render

POLL_S = 0.1
LIST_EVERY_S = 1.0

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
        points = hub.history(camera)
        if points is None:
            raise HTTPException(404, "no such camera")
        return JSONResponse(points)

    @app.get("/api/cameras/{camera}/picture/{kind}.jpg")
    def picture(camera: str, kind: str) -> Response:
        found = hub.jpeg(camera, kind) if kind in ("lossy", "fused") else None
        if found is None:
            raise HTTPException(404, "no such picture: lossy, or fused where semantics are joined, once there is one")
        data, seq = found
        headers = {"Cache-Control": "no-store", "X-Frame-Seq": str(seq)}
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
                yield _event("cameras", await run_in_threadpool(_overview, hub))
            for camera, seen in (await run_in_threadpool(hub.pictures)).items():
                if shown.get(camera) != seen["seq"]:
                    shown[camera] = seen["seq"]
                    yield _event("picture", {"camera": camera, **seen})
            await asyncio.sleep(POLL_S)
    finally:
        listeners.leave()


def _overview(hub: Hub) -> dict[str, Any]:
    return {"cameras": hub.cameras(), "health": hub.health()}


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
