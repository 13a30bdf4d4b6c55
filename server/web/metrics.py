"""GET /metrics: the cameras' views as Prometheus samples, made afresh at each scrape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from scene_edge.server.hub import Hub

PREFIX = "scene_edge_"
STATUSES = ("online", "degraded", "silent", "offline", "stopped", "unknown")


class _Cameras(Collector):
    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def collect(self) -> Iterator[Metric]:
        views = self._hub.cameras()
        yield _gauge("camera_status", "1 for the status that a camera has", _statuses(views), ["status"])
        yield _counter("frames", "Frames by the camera's own ledger", _ledgers(views), ["camera_state"])
        yield _counter("camera_dropped", "Frames that the camera dropped", _dropped(views, "ledger"), ["reason"])
        yield _counter("server_dropped", "What the server could not use", _dropped(views, "server"), ["reason"])
        yield _counter("committed_frames", "Frames whose results are stored", _of_server(views, "committed"), [])
        yield _gauge("spooled_frames", "Frames of this run that wait in the camera", _waiting(views, "spooled"), [])
        yield _gauge("backfill_frames", "Frames that wait behind the live ones", _waiting(views, "backfill"), [])
        yield _gauge("kbps", "Bitrate on the wire in kbit/s", _rates(views), ["stream"])
        yield _gauge("match_ratio", "Share of frames joined with their semantics", _scalars(views, "match_rate"), [])
        yield _gauge("scene_strength", "How strong SCENE filters, 0 to 1", _scalars(views, "scene_strength"), [])
        yield _counter("passed_frames", "Frames too good for fusion to help", _of_server(views, "passed"), [])
        yield _gauge("latency_ms", "Capture to commit", _latencies(views), ["quantile"])
        yield _gauge("tracks", "Objects followed on the current picture", _tracks(views), [])
        yield _gauge("waiting_frames", "Frames that wait for their semantics", _of_server(views, "waiting"), [])
        health = self._hub.health()
        yield _gauge("up", "1 while every part of the server works", [((), float(health["status"] == "ok"))], [], ())
        if health["rss_mb"] is not None:
            yield _gauge("server_rss_mb", "Resident memory of the server", [((), health["rss_mb"])], [], ())
        workers = health["workers"]
        yield _gauge("worker_processes", "Worker processes that run", [((), float(_running(workers)))], [], ())
        restarts: list[_Sample] = [((), float(sum(worker["restarts"] for worker in workers)))]
        yield _counter("worker_restarts", "Worker processes that died and were started again", restarts, [], ())
        unrouted: list[_Sample] = [((reason,), float(count)) for reason, count in health["dropped"].items()]
        yield _counter("messages_dropped", "Messages that reached no worker", unrouted, ["reason"], ())


def render(hub: Hub) -> bytes:
    """The exposition text."""
    registry = CollectorRegistry()
    registry.register(_Cameras(hub))
    return generate_latest(registry)


_Sample = tuple[tuple[str, ...], float]


def _gauge(
    name: str, text: str, samples: list[_Sample], labels: list[str], first: tuple[str, ...] = ("camera",)
) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, text, labels=[*first, *labels])
    for values, number in samples:
        family.add_metric(values, number)
    return family


def _counter(
    name: str, text: str, samples: list[_Sample], labels: list[str], first: tuple[str, ...] = ("camera",)
) -> Metric:
    family = CounterMetricFamily(PREFIX + name, text, labels=[*first, *labels])
    for values, number in samples:
        family.add_metric(values, number)
    return family


_Views = list[dict[str, Any]]


def _running(workers: _Views) -> int:
    return sum(worker["state"] == "running" for worker in workers)


def _statuses(views: _Views) -> list[_Sample]:
    return [((view["camera"], word), float(view["status"] == word)) for view in views for word in STATUSES]


def _ledgers(views: _Views) -> list[_Sample]:
    return [
        ((view["camera"], name), float(view["ledger"][name]))
        for view in views
        for name in ("captured", "committed")
        if view["ledger"][name] is not None
    ]


def _waiting(views: _Views, name: str) -> list[_Sample]:
    return [((view["camera"],), float(view["ledger"][name])) for view in views if view["ledger"][name] is not None]


def _dropped(views: _Views, source: str) -> list[_Sample]:
    return [
        ((view["camera"], reason), float(count)) for view in views for reason, count in view[source]["dropped"].items()
    ]


def _of_server(views: _Views, name: str) -> list[_Sample]:
    return [((view["camera"],), float(view["server"][name])) for view in views]


def _rates(views: _Views) -> list[_Sample]:
    return [
        ((view["camera"], stream), rate) for view in views for stream, rate in view["kbps"].items() if rate is not None
    ]


def _scalars(views: _Views, key: str) -> list[_Sample]:
    return [((view["camera"],), float(view[key])) for view in views if view[key] is not None]


def _latencies(views: _Views) -> list[_Sample]:
    return [
        ((view["camera"], name), value)
        for view in views
        for name, value in view["latency_ms"].items()
        if value is not None
    ]


def _tracks(views: _Views) -> list[_Sample]:
    return [((view["camera"],), float(len(view["tracks"]))) for view in views]
