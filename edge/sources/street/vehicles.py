"""The vehicles of the rendered street, seen from the side: outline, glass, lamps and turning wheels, in metres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scene_edge.edge.sources.street.canvas import Canvas, Colour, Real, Sprite, smooth

WHEEL_PHASES = 6
PAINT: tuple[Colour, ...] = (
    (0.62, 0.08, 0.09), (0.12, 0.22, 0.45), (0.74, 0.75, 0.77),
    (0.10, 0.11, 0.12), (0.86, 0.85, 0.82), (0.22, 0.36, 0.34),
)  # fmt: skip
GLASS: Colour = (0.16, 0.20, 0.24)

Outline = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Body:
    """One kind of vehicle heading right: half its length, its outlines, and where the wheels and doors are."""

    half_length_m: float
    height_m: float
    shell: Outline
    windows: tuple[Outline, ...]
    wheels: tuple[float, float]
    wheel_radius_m: float
    doors: tuple[float, ...]
    sill_m: float


SEDAN = Body(
    2.25, 1.45,
    [(-2.25, .32), (-2.22, .85), (-2.10, .98), (-1.55, 1.02), (-1.00, 1.40), (-.55, 1.45), (.25, 1.44),
     (.60, 1.36), (1.12, 1.00), (1.95, .88), (2.20, .72), (2.25, .45), (2.18, .28), (-2.15, .26)],
    ([(-1.38, 1.02), (-.93, 1.33), (-.36, 1.37), (-.36, .99)], [(-.28, .99), (-.28, 1.37), (.22, 1.36), (.50, 1.29),
     (.93, 1.00)]),
    (-1.38, 1.40), .33, (-.32, .72), .30,
)  # fmt: skip
HATCH = Body(
    2.00, 1.55,
    [(-2.00, .35), (-2.00, .95), (-1.88, 1.15), (-1.60, 1.48), (-1.0, 1.55), (.10, 1.54), (.45, 1.45), (1.02, 1.05),
     (1.70, .93), (1.96, .75), (2.00, .45), (1.94, .30), (-1.92, .28)],
    ([(-1.70, 1.08), (-1.48, 1.42), (-.95, 1.47), (-.45, 1.47), (-.45, 1.04)], [(-.37, 1.04), (-.37, 1.47), (.08, 1.46),
     (.37, 1.38), (.84, 1.05)]),
    (-1.30, 1.28), .34, (-.41, .62), .32,
)  # fmt: skip
VAN = Body(
    2.60, 2.10,
    [(-2.60, .40), (-2.60, 1.90), (-2.45, 2.08), (1.05, 2.10), (1.50, 1.95), (2.02, 1.25), (2.45, 1.05), (2.60, .80),
     (2.60, .40), (2.50, .32), (-2.52, .32)],
    ([(.55, 1.22), (.55, 1.85), (1.10, 1.86), (1.42, 1.74), (1.84, 1.24)],),
    (-1.65, 1.70), .36, (.48, -.85), .36,
)  # fmt: skip
BODIES = (SEDAN, HATCH, VAN)


def _mirrored(outline: Outline, direction: float) -> Real:
    return np.array([(x * direction, y) for x, y in outline], np.float32)


def _wheel(canvas: Canvas, x: float, radius: float, turn: float) -> None:
    hub = np.array([x, radius], np.float32)
    canvas.capsule(hub, hub, radius * 1.12, radius * 1.12, (0.04, 0.04, 0.045))
    canvas.capsule(hub, hub, radius, radius, (0.11, 0.11, 0.12))
    canvas.capsule(hub, hub, radius * 0.66, radius * 0.66, (0.55, 0.56, 0.58))
    for spoke in range(5):
        angle = turn + 2 * np.pi * spoke / 5
        arm = np.array([np.cos(angle), np.sin(angle)], np.float32) * radius * 0.46
        canvas.capsule(hub + arm, hub + arm, radius * 0.13, radius * 0.13, (0.13, 0.13, 0.14))
    canvas.capsule(hub, hub, radius * 0.14, radius * 0.14, (0.30, 0.31, 0.33))


def _details(canvas: Canvas, body: Body, direction: float, paint: Colour) -> None:
    """Glass, the light along the shoulder, doors, handles, lamps, bumpers."""
    half, shoulder = body.half_length_m, min(0.98, body.height_m * 0.62)
    dark: Colour = (paint[0] * 0.35, paint[1] * 0.35, paint[2] * 0.35)
    light: Colour = (min(paint[0] * 1.3 + 0.12, 1), min(paint[1] * 1.3 + 0.12, 1), min(paint[2] * 1.3 + 0.12, 1))

    def line(x0: float, y0: float, x1: float, y1: float, width_m: float, colour: Colour) -> None:
        a, b = np.array([x0 * direction, y0], np.float32), np.array([x1 * direction, y1], np.float32)
        canvas.capsule(a, b, width_m, width_m, colour)

    for window in body.windows:
        canvas.polygon(_mirrored(window, direction), GLASS, top=2.6, bottom=0.9)
    line(-half + 0.25, shoulder - 0.13, half - 0.45, shoulder - 0.20, 0.016, light)
    line(-half + 0.25, body.sill_m + 0.10, half - 0.25, body.sill_m + 0.10, 0.030, dark)
    for door in body.doors:
        line(door, body.sill_m + 0.12, door, shoulder, 0.010, dark)
        line(door - 0.28, shoulder - 0.10, door - 0.14, shoulder - 0.10, 0.018, dark)
    line(half - 0.16, 0.70, half - 0.30, 0.76, 0.075, (0.95, 0.95, 0.88))
    line(-half + 0.09, 0.78, -half + 0.09, 0.92, 0.070, (0.70, 0.06, 0.05))
    line(half - 0.10, 0.40, half - 0.28, 0.36, 0.045, (0.10, 0.10, 0.11))
    line(-half + 0.10, 0.42, -half + 0.28, 0.38, 0.045, (0.10, 0.10, 0.11))
    line(0.78, shoulder + 0.05, 0.86, shoulder + 0.09, 0.06, paint)


def vehicle(body: Body, paint: Colour, direction: float, turn: float, px_per_m: float) -> Sprite:
    """One picture of a vehicle heading right (`direction` 1) or left (-1), its wheels turned by `turn` radians."""
    canvas = Canvas(-body.half_length_m - 0.1, body.half_length_m + 0.1, body.height_m + 0.1, px_per_m)
    under = np.array([(-1, 0.24), (1, 0.24), (1, 0.42), (-1, 0.42)], np.float32)
    canvas.polygon(under * [body.half_length_m * 0.9, 1], (0.05, 0.05, 0.05))
    canvas.polygon(smooth([(x * direction, y) for x, y in body.shell]), paint, top=1.22, bottom=0.52)
    _details(canvas, body, direction, paint)
    for wheel in body.wheels:
        _wheel(canvas, wheel * direction, body.wheel_radius_m, -turn * direction)
    return canvas.sprite()


def rolling(body: Body, paint: Colour, direction: float, px_per_m: float) -> tuple[Sprite, ...]:
    """WHEEL_PHASES pictures that together turn the wheels by one spoke."""
    step = 2 * np.pi / 5 / WHEEL_PHASES
    return tuple(vehicle(body, paint, direction, phase * step, px_per_m) for phase in range(WHEEL_PHASES))
