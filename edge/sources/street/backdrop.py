"""The empty street behind the moving figures: one pinhole ray per pixel meets ground, house fronts or a side street.

World: x right and z away from the camera in metres on the ground, y up. The camera stands CAMERA_HEIGHT_M above
x = z = 0 and looks straight ahead through a shifted lens: what is upright in the world is upright in the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scene_edge.edge.sources.street.canvas import Real, to_yuv

CAMERA_HEIGHT_M = 3.6
KERB_NEAR_M, LANE_MIDDLE_M, KERB_FAR_M, FRONT_M = 12.0, 15.2, 18.4, 21.6
GAP_M = (2.6, 8.8)
GAP_END_M = 70.0
CROSSING_M = (-6.2, -3.0)
SUPERSAMPLE = 2


@dataclass(frozen=True, slots=True)
class Camera:
    """The pinhole: picture size, focal length and horizon in pixels."""

    width: int
    height: int

    @property
    def focal_px(self) -> float:
        return self.width * 0.94

    @property
    def horizon_px(self) -> float:
        return self.height * 0.24

    def project(self, x_m: float, z_m: float) -> tuple[float, float, float]:
        """A point on the ground -> (column, row, pixels per metre there)."""
        scale = self.focal_px / z_m
        return self.width / 2 + x_m * scale, self.horizon_px + CAMERA_HEIGHT_M * scale, scale

    def half_span_m(self, z_m: float) -> float:
        """How far to each side the picture reaches at distance z."""
        return self.width / 2 * z_m / self.focal_px


class Noise:
    """Smooth value noise over the plane, from one table of random numbers."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.table: Real = rng.random((64, 64)).astype(np.float32)

    def __call__(self, x: Real, y: Real) -> Real:
        """[...] in -1..1, changing over about one unit of x and y."""
        column, row = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
        fx, fy = x - column, y - row
        fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)

        def at(dy: int, dx: int) -> Real:
            value: Real = self.table[(row + dy) % 64, (column + dx) % 64]
            return value

        top = at(0, 0) * (1 - fx) + at(0, 1) * fx
        low = at(1, 0) * (1 - fx) + at(1, 1) * fx
        mixed: Real = ((top * (1 - fy) + low * fy) * 2 - 1).astype(np.float32)
        return mixed

    def rough(self, x: Real, y: Real) -> Real:
        mixed: Real = self(x, y) * 0.5 + self(x * 3.1 + 7, y * 3.1) * 0.3 + self(x * 9.7, y * 9.7 + 3) * 0.2
        return mixed


def _mix(base: Real, colour: tuple[float, float, float], where: Real) -> Real:
    mixed: Real = base + where[..., None] * (np.array(colour, np.float32) - base)
    return mixed


def _band(value: Real, low: float, high: float) -> Real:
    inside: Real = ((value >= low) & (value < high)).astype(np.float32)
    return inside


def _paving(x: Real, z: Real, noise: Noise) -> Real:
    tile = 0.6
    shift = np.floor(z / tile) % 2 * tile / 2
    joints = np.minimum(np.abs((x + shift) % tile), np.abs(z % tile)) < 0.022
    per_tile = noise.table[np.floor(z / tile).astype(np.int64) % 64, np.floor((x + shift) / tile).astype(np.int64) % 64]
    grey = 0.50 + 0.07 * (per_tile - 0.5) + 0.04 * noise.rough(x, z) - 0.13 * joints
    lit: Real = grey[..., None] * np.array([1.0, 0.97, 0.91], np.float32)
    return lit


def _ground(x: Real, z: Real, noise: Noise) -> Real:
    """Asphalt with markings between the kerbs, paving beyond them, a narrower road in the side street."""
    asphalt = 0.29 + 0.035 * noise.rough(x * 0.6, z * 0.6) + 0.045 * noise(x * 14, z * 14)
    colour = asphalt[..., None] * np.array([1.0, 1.0, 1.03], np.float32)
    on_road = _band(z, KERB_NEAR_M, KERB_FAR_M)
    worn = 0.82 + 0.18 * noise(x * 3, z * 5)
    dashes = _band(z, LANE_MIDDLE_M - 0.07, LANE_MIDDLE_M + 0.07) * ((x / 3) % 1 < 0.55) * (1 - _band(x, -7.0, -2.2))
    zebra = _band(x, *CROSSING_M) * ((z - KERB_NEAR_M - 0.3) / 1.0 % 1 < 0.5) * _band(z, 12.3, 18.1)
    colour = _mix(colour, (0.80, 0.80, 0.76), np.clip(dashes + zebra, 0, 1) * worn)
    stains = np.clip(noise(x * 0.4 + 5, z * 0.8) - 0.55, 0, 1) * on_road
    colour = colour * (1 - 0.5 * stains[..., None])
    in_gap = _band(x, GAP_M[0] + 0.9, GAP_M[1] - 0.9) * (z >= KERB_FAR_M)
    paved = np.clip(1 - on_road - in_gap, 0, 1)[..., None]
    colour = colour * (1 - paved) + _paving(x, z, noise) * paved
    kerb = _band(z, KERB_NEAR_M - 0.22, KERB_NEAR_M) + _band(z, KERB_FAR_M, KERB_FAR_M + 0.22) * (1 - in_gap)
    gutter = _band(z, KERB_NEAR_M, KERB_NEAR_M + 0.12) + _band(z, KERB_FAR_M - 0.12, KERB_FAR_M)
    colour = _mix(colour, (0.62, 0.61, 0.58), kerb)
    return colour * (1 - 0.35 * np.clip(gutter, 0, 1)[..., None])


WALLS = ((0.62, 0.36, 0.28), (0.74, 0.68, 0.56), (0.50, 0.44, 0.42), (0.70, 0.58, 0.40), (0.56, 0.60, 0.60))
AWNINGS = ((0.62, 0.14, 0.13), (0.13, 0.34, 0.26), (0.16, 0.24, 0.44), (0.66, 0.48, 0.14))


def _front(u: Real, y: Real, noise: Noise, house_m: float = 7.4) -> Real:
    """A row of houses along u: shop windows with awnings below, window rows above, each house of its own colour."""
    house = np.floor(u / house_m).astype(np.int64)
    along = u - house * house_m
    colour = np.array(WALLS, np.float32)[house * 3 % len(WALLS)]
    brick_row = np.floor(y / 0.075)
    joint = ((y % 0.075) < 0.012) | (((u + brick_row % 2 * 0.12) % 0.24) < 0.012)
    brick = 1 + 0.06 * noise(u * 9, y * 13) + 0.05 * noise(u * 0.7, y * 0.7) - 0.10 * joint
    colour = colour * brick[..., None]
    storey = (y - 3.5) % 2.9
    bay = (along - 0.55) % 2.1
    upper = _band(y, 3.5, 99.0) * _band(along, 0.5, 6.6)
    frame = _band(bay, 0.36, 1.64) * _band(storey, 0.52, 2.28) * upper
    glass = _band(bay, 0.45, 1.55) * _band(storey, 0.61, 2.19) * upper
    cross = _band(bay, 0.97, 1.03) + _band(storey, 1.52, 1.59)
    colour = _mix(colour, (0.86, 0.84, 0.79), frame)
    room = noise.table[np.floor((y - 3.5) / 2.9).astype(np.int64) % 64, (np.floor(u / 2.1).astype(np.int64) * 7) % 64]
    sheen = 0.14 + 0.22 * np.clip((storey - bay + 0.6) / 2, 0, 1) + 0.22 * room * _band(bay, 0.45, 0.80)
    pane = sheen[..., None] * np.array([0.92, 1.0, 1.12], np.float32)
    seen = (glass * (1 - np.clip(cross, 0, 1)))[..., None]
    colour = colour * (1 - seen) + pane * seen
    colour = _mix(colour, (0.66, 0.63, 0.57), _band(storey, 0.40, 0.52) * _band(bay, 0.28, 1.72) * upper)
    return _shop(colour, house, along, y, noise) * (1 - 0.25 * np.exp(-y * 4))[..., None]


def _shop(colour: Real, house: Real, along: Real, y: Real, noise: Noise) -> Real:
    """The ground floor: plinth, display window with goods, door, fascia and a striped awning."""
    window = _band(along, 0.5, 4.9) * _band(y, 0.55, 2.45)
    goods = 0.22 + 0.16 * noise(along * 3.3 + house * 5.7, y * 4.1) + 0.12 * (y < 1.1)
    colour = _mix(colour, (0.20, 0.18, 0.16), _band(along, 0.38, 5.02) * _band(y, 0.43, 2.55))
    tint = np.stack([goods * 1.15, goods * 1.05, goods * 0.85], -1)
    colour = colour * (1 - window[..., None]) + tint * window[..., None]
    colour = _mix(colour, (0.17, 0.15, 0.14), window * ((along - 0.5) % 1.47 < 0.06))
    door = _band(along, 5.6, 6.6) * _band(y, 0.0, 2.3)
    colour = _mix(colour, (0.24, 0.18, 0.13), door)
    colour = _mix(colour, (0.30, 0.36, 0.40), _band(along, 5.78, 6.42) * _band(y, 1.1, 2.1))
    cloth = np.array(AWNINGS, np.float32)[house % len(AWNINGS)]
    stripes = ((along * 2.2) % 1 < 0.5)[..., None]
    awning = (_band(along, 0.3, 5.1) * _band(y, 2.30, 2.95))[..., None]
    shade = (0.65 + 0.5 * np.clip((y - 2.30) / 0.65, 0, 1))[..., None]
    colour = colour * (1 - awning) + np.where(stripes, cloth, 0.86) * shade * awning
    return _mix(colour, (0.60, 0.57, 0.52), _band(y, 3.05, 3.35))


def _sky(row: Real, column: Real, noise: Noise) -> Real:
    cloud = np.clip(noise.rough(column * 5, row * 12) * 1.2 + 0.2, 0, 1)
    return _mix(
        np.array([0.60, 0.74, 0.90], np.float32) * np.ones((*row.shape, 1), np.float32), (0.93, 0.94, 0.95), cloud
    )


def _rays(camera: Camera, columns: Real, rows: Real, noise: Noise) -> Real:
    """RGB of the ray through each (row, column) of the picture, in pixels."""
    dx = (columns - camera.width / 2) / camera.focal_px
    dy = (camera.horizon_px - rows) / camera.focal_px
    far = np.float32(1e6)
    z_ground = np.where(dy < -1e-6, CAMERA_HEIGHT_M / np.maximum(-dy, 1e-6), far)
    x_front = dx * FRONT_M
    open_gap = (x_front > GAP_M[0]) & (x_front < GAP_M[1])
    z_side = np.where(dx * GAP_END_M > GAP_M[1], GAP_M[1] / np.maximum(dx, 1e-6), far)
    z_side = np.where(dx * GAP_END_M < GAP_M[0], GAP_M[0] / np.maximum(dx, 1e-6), z_side)
    z_wall = np.where(open_gap, np.minimum(np.where(z_side > FRONT_M, z_side, far), GAP_END_M), FRONT_M)
    y_wall = CAMERA_HEIGHT_M + dy * z_wall
    at_side = open_gap & (z_wall < GAP_END_M)
    roof = np.where(open_gap, np.where(at_side, 10.5, 7.5), 60.0)
    colour: Real = np.empty((*dx.shape, 3), np.float32)
    on_ground = z_ground <= z_wall
    x_ground = (dx * z_ground)[on_ground]
    colour[on_ground] = _ground(x_ground, z_ground[on_ground], noise)
    in_sky = ~on_ground & (y_wall > roof)
    colour[in_sky] = _sky(rows[in_sky] / camera.height, columns[in_sky] / camera.width, noise)
    on_wall = ~on_ground & ~in_sky
    right = dx * GAP_END_M > GAP_M[1]
    along = np.where(at_side, z_wall + np.where(right, 3.0, 40.0), dx * z_wall + 60.0)[on_wall]
    shade = np.where(at_side, np.where(right, 0.66, 0.92), 1.0)[on_wall]
    colour[on_wall] = _front(along, y_wall[on_wall], noise) * shade[..., None]
    haze = np.where(open_gap & ~in_sky, np.clip((np.minimum(z_ground, z_wall) - FRONT_M) / 160, 0, 0.45), 0)
    return _mix(colour, (0.80, 0.84, 0.88), haze.astype(np.float32))


def backdrop(camera: Camera, rng: np.random.Generator) -> tuple[Real, Real, Real]:
    """Y [H, W] and U, V [H/2, W/2] of the empty street, as floats in the limited range."""
    noise = Noise(rng)
    k = SUPERSAMPLE
    rgb: Real = np.empty((camera.height, camera.width, 3), np.float32)
    columns = (np.arange(camera.width * k, dtype=np.float32) + 0.5) / k
    strip = 36
    for first in range(0, camera.height, strip):
        last = min(first + strip, camera.height)
        rows = (np.arange(first * k, last * k, dtype=np.float32) + 0.5) / k
        grid_x, grid_y = np.meshgrid(columns, rows)
        fine = np.clip(_rays(camera, grid_x, grid_y, noise), 0, 1)
        rgb[first:last] = fine.reshape(last - first, k, camera.width, k, 3).mean((1, 3))
    y, u, v = to_yuv(rgb)
    halved = [plane.reshape(camera.height // 2, 2, camera.width // 2, 2).mean((1, 3)) for plane in (u, v)]
    return y, halved[0], halved[1]
