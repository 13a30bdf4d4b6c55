"""Who moves through the rendered street, where each is at a given second, and in which picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import numpy as np

from scene_edge.edge.sources.street.backdrop import CROSSING_M, KERB_FAR_M, KERB_NEAR_M, Camera
from scene_edge.edge.sources.street.canvas import Real, Sprite
from scene_edge.edge.sources.street.people import GAIT_PHASES, Look, person
from scene_edge.edge.sources.street.vehicles import BODIES, PAINT, WHEEL_PHASES, vehicle

STRIDE_M = 1.26
"""Ground covered by one whole cycle of the gait at vigour 1."""

CYCLE_S = 24.0
"""Period of the unseen traffic lights: who crosses has green from WALK_S on, and the vehicles hold."""

WALK_S = (8.5, 17.0)

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Pose:
    """An actor at one moment: the point on the ground (metres), its picture there, and which pass this is."""

    x_m: float
    z_m: float
    sprite: Sprite
    passing: int


@dataclass(frozen=True, slots=True)
class Actor:
    """A mover: its class, the half-axes of its shadow on the ground, and its pose over time (None: not there)."""

    kind: str
    shadow_m: Point
    pose: Callable[[float], Pose | None]
    warm: Callable[[], None]


@dataclass(slots=True)
class _Gait:
    """The pictures of one person for one heading: drawn for one distance, and shrunk from that for others."""

    look: Look
    yaw: float
    px_per_m: float
    _drawn: dict[int, Sprite] = field(default_factory=dict)
    _sums: dict[int, Real] = field(default_factory=dict)

    def at(self, walked_m: float, px_per_m: float) -> Sprite:
        stride = STRIDE_M * max(self.look.vigour, 0.5) * self.look.height_m / 1.75
        phase = int(walked_m / stride * GAIT_PHASES) % GAIT_PHASES
        if phase not in self._drawn:
            self._drawn[phase] = person(self.look, 2 * np.pi * phase / GAIT_PHASES, self.yaw, self.px_per_m)
        drawn = self._drawn[phase]
        if abs(px_per_m / self.px_per_m - 1) < 0.01:
            return drawn
        if phase not in self._sums:
            self._sums[phase] = _summed(drawn)
        return _shrunk(drawn, self._sums[phase], px_per_m / self.px_per_m)

    def draw_all(self) -> None:
        stride = STRIDE_M * max(self.look.vigour, 0.5) * self.look.height_m / 1.75
        for phase in range(GAIT_PHASES):
            self.at((phase + 0.5) / GAIT_PHASES * stride, self.px_per_m)


def _summed(sprite: Sprite) -> Real:
    """[h + 1, w + 1, 4] running sums of y, u, v, inverse, for box averages of any size."""
    planes = np.stack([sprite.y, sprite.u, sprite.v, sprite.inverse], -1).astype(np.float32)
    sums: Real = np.zeros((planes.shape[0] + 1, planes.shape[1] + 1, 4), np.float32)
    sums[1:, 1:] = planes.cumsum(0).cumsum(1)
    return sums


def _shrunk(sprite: Sprite, sums: Real, ratio: float) -> Sprite:
    """`sprite` at `ratio` (at most 1) of its size, each pixel the mean of the pixels it covers."""
    ratio = min(ratio, 1.0)
    height, width = max(2, round(sprite.y.shape[0] * ratio)), max(2, round(sprite.y.shape[1] * ratio))
    rows = np.linspace(0, sprite.y.shape[0], height + 1).round().astype(np.intp)
    columns = np.linspace(0, sprite.y.shape[1], width + 1).round().astype(np.intp)
    corners = sums[rows[:, None], columns[None, :]]
    boxes = corners[1:, 1:] - corners[1:, :-1] - corners[:-1, 1:] + corners[:-1, :-1]
    area = (np.diff(rows)[:, None] * np.diff(columns)[None, :]).astype(np.float32)
    planes = np.rint(boxes / area[..., None]).astype(np.uint16)
    y, u, v, inverse = (np.ascontiguousarray(planes[..., index]) for index in range(4))
    return Sprite(y, u, v, inverse, round(sprite.left * ratio), round(sprite.top * ratio))


def _yaw(start: Point, end: Point) -> float:
    return float(np.arctan2(end[1] - start[1], end[0] - start[0]))


def walker(
    camera: Camera, look: Look, path: list[Point], speed_m_s: float, *, period_s: float | None, offset_s: float
) -> Actor:
    """A person who walks along `path` and starts again every `period_s` (None: as soon as the end is reached)."""
    legs = list(pairwise(path))
    lengths = [float(np.hypot(b[0] - a[0], b[1] - a[1])) for a, b in legs]
    gaits = [_Gait(look, _yaw(a, b), camera.focal_px / min(a[1], b[1])) for a, b in legs]
    period = period_s or sum(lengths) / speed_m_s

    def pose(time_s: float) -> Pose | None:
        passing, since_s = divmod(time_s + offset_s, period)
        left_m = since_s * speed_m_s
        for (start, end), length, gait in zip(legs, lengths, gaits, strict=True):
            if left_m < length:
                part = left_m / length
                x, z = start[0] + part * (end[0] - start[0]), start[1] + part * (end[1] - start[1])
                return Pose(x, z, gait.at(since_s * speed_m_s, camera.focal_px / z), int(passing))
            left_m -= length
        return None

    def warm() -> None:
        for gait in gaits:
            gait.draw_all()

    return Actor("person", (0.34, 0.22), pose, warm)


def driver(
    camera: Camera, body: int, paint: int, direction: float, z_m: float, speed_m_s: float, start_s: float,
    stop_x_m: float | None,
) -> Actor:  # fmt: skip
    """A vehicle that enters `start_s` into each cycle; with `stop_x_m` it halts there until the walkers are over."""
    shape = BODIES[body]
    edge_m = camera.half_span_m(z_m) + shape.half_length_m + 0.3
    scale = camera.focal_px / z_m

    @lru_cache(maxsize=WHEEL_PHASES)
    def drawn(phase: int) -> Sprite:
        return vehicle(shape, PAINT[paint], direction, 2 * np.pi / 5 * phase / WHEEL_PHASES, scale)

    def pose(time_s: float) -> Pose | None:
        passing, since_s = divmod(time_s - start_s, CYCLE_S)
        gone_m = speed_m_s * since_s
        if stop_x_m is not None:
            gone_m = _halting(since_s, speed_m_s, stop_x_m * direction + edge_m, WALK_S[1] - start_s)
        if gone_m > 2 * edge_m:
            return None
        turn = gone_m / shape.wheel_radius_m
        phase = int(turn / (2 * np.pi / 5) * WHEEL_PHASES) % WHEEL_PHASES
        return Pose((gone_m - edge_m) * direction, z_m, drawn(phase), int(passing) + 1)

    def warm() -> None:
        for phase in range(WHEEL_PHASES):
            drawn(phase)

    return Actor("car", (shape.half_length_m * 0.98, 0.85), pose, warm)


def _halting(since_s: float, speed_m_s: float, stop_m: float, go_s: float) -> float:
    """Metres covered: brake at 3 m/s2 to stand still at `stop_m`, wait until `go_s`, leave at 2 m/s2."""
    brake_s = speed_m_s / 3.0
    cruise_s = (stop_m - speed_m_s * brake_s / 2) / speed_m_s
    if since_s < cruise_s:
        return speed_m_s * since_s
    if since_s < cruise_s + brake_s:
        braking = since_s - cruise_s
        return speed_m_s * (cruise_s + braking) - 1.5 * braking * braking
    leaving = max(0.0, since_s - go_s)
    ramp_s = speed_m_s / 2.0
    if leaving < ramp_s:
        return stop_m + leaving * leaving
    return stop_m + speed_m_s * (leaving - ramp_s / 2)


def cast(camera: Camera, rng: np.random.Generator) -> list[Actor]:
    """Everybody in the street: walkers on both pavements, a runner, people at the crossing, and the traffic."""
    actors: list[Actor] = []
    lanes = ((8.7, 1), (9.6, -1), (10.4, 1), (11.2, -1), (18.9, -1), (19.4, 1), (19.9, -1), (20.4, 1), (20.9, -1))
    for z, heading in lanes:
        edge = camera.half_span_m(z) + 0.8
        speed = float(rng.uniform(1.05, 1.5))
        path = [(-heading * edge, z), (heading * edge, z)]
        offset = float(rng.uniform(0, 2 * edge / speed))
        actors.append(walker(camera, Look.draw(rng), path, speed, period_s=None, offset_s=offset))
    edge = camera.half_span_m(11.6) + 1
    runner = Look.draw(rng, vigour=1.6)
    actors.append(walker(camera, runner, [(edge, 11.6), (-edge, 11.6)], 3.1, period_s=11.0, offset_s=7.0))
    near, far = KERB_NEAR_M - 0.7, KERB_FAR_M + 0.9
    for number, (toward, delay_s) in enumerate(((1, 0.0), (-1, 0.6), (1, 1.7))):
        x = float(CROSSING_M[0] + 0.6 + 0.9 * number)
        first, last = (near, far) if toward > 0 else (far, near)
        edge_a, edge_b = camera.half_span_m(first) + 0.8, camera.half_span_m(last) + 0.8
        path = [(-edge_a, first), (x, first), (x, last), (edge_b, last)]
        speed = 1.35
        entry_s = WALK_S[0] + delay_s - (x + edge_a) / speed
        actors.append(
            walker(camera, Look.draw(rng), path, speed, period_s=CYCLE_S, offset_s=CYCLE_S - entry_s % CYCLE_S)
        )
    traffic = (
        (0, 1, 13.7, 7.0, 0.5, None),
        (2, 1, 13.7, 7.0, 3.6, None),
        (1, -1, 16.9, 6.0, 4.5, -0.4),
        (0, -1, 16.9, 6.5, 0.2, None),
        (1, 1, 13.7, 6.5, 18.5, None),
        (2, -1, 16.9, 6.5, 20.5, None),
    )
    for number, (body, heading, z, speed, start_s, stop_x) in enumerate(traffic):
        paint = (number * 2 + int(rng.integers(2))) % len(PAINT)
        actors.append(driver(camera, body, paint, heading, z, speed, start_s, stop_x))
    return actors
