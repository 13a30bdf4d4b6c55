"""Drawing for the rendered street: capsules and polygons, in metres, onto a float picture that becomes a YUV sprite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Real: TypeAlias = NDArray[np.floating[Any]]
U16: TypeAlias = NDArray[np.uint16]
Colour: TypeAlias = tuple[float, float, float]

LIGHT: Real = np.array([-0.42, 0.62, 0.66], np.float32)


@dataclass(frozen=True, slots=True)
class Sprite:
    """A picture with coverage: y, u, v premultiplied by alpha in 0..255, `inverse` = 256 - alpha, all u16 [h, w].

    (`left`, `top`) is where its corner lies, in pixels, from the point on the ground that the figure stands on.
    """

    y: U16
    u: U16
    v: U16
    inverse: U16
    left: int
    top: int

    @property
    def solid(self) -> NDArray[np.bool_]:
        """Where the figure covers at least half of a pixel."""
        covered: NDArray[np.bool_] = self.inverse <= 128
        return covered


def to_yuv(rgb: Real) -> tuple[Real, Real, Real]:
    """RGB in 0..1 [..., 3] -> Y, U, V in the limited range of BT.601, as floats."""
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    y = 16 + 65.481 * r + 128.553 * g + 24.966 * b
    u = 128 - 37.797 * r - 74.203 * g + 112.0 * b
    v = 128 + 112.0 * r - 93.786 * g - 18.214 * b
    return y.astype(np.float32), u.astype(np.float32), v.astype(np.float32)


class Canvas:
    """A float picture with coverage, in metres: the point (0, 0) is where the figure touches the ground."""

    def __init__(self, left: float, right: float, height: float, px_per_m: float, below: float = 0.12) -> None:
        self.scale = px_per_m
        self.columns = (int(np.floor(left * px_per_m)) // 2 * 2, int(np.ceil(right * px_per_m)))
        self.rows = (int(np.floor(-height * px_per_m)) // 2 * 2, int(np.ceil(below * px_per_m)))
        shape = (self.rows[1] - self.rows[0], self.columns[1] - self.columns[0])
        self.rgb: Real = np.zeros((*shape, 3), np.float32)
        self.alpha: Real = np.zeros(shape, np.float32)

    def _window(self, x0: float, x1: float, y0: float, y1: float) -> tuple[slice, slice, Real, Real] | None:
        """The pixels over [x0, x1] x [y0, y1] metres, and the metres of their centres."""
        c0 = max(int(np.floor(x0 * self.scale)) - self.columns[0] - 1, 0)
        c1 = min(int(np.ceil(x1 * self.scale)) - self.columns[0] + 1, self.alpha.shape[1])
        r0 = max(int(np.floor(-y1 * self.scale)) - self.rows[0] - 1, 0)
        r1 = min(int(np.ceil(-y0 * self.scale)) - self.rows[0] + 1, self.alpha.shape[0])
        if c0 >= c1 or r0 >= r1:
            return None
        xs = (np.arange(c0, c1, dtype=np.float32) + (self.columns[0] + 0.5)) / self.scale
        ys = -(np.arange(r0, r1, dtype=np.float32) + (self.rows[0] + 0.5)) / self.scale
        return slice(r0, r1), slice(c0, c1), xs[None, :], ys[:, None]

    def _paint(self, rows: slice, columns: slice, cover: Real, colour: Real) -> None:
        self.rgb[rows, columns] += cover[..., None] * (colour - self.rgb[rows, columns])
        self.alpha[rows, columns] += cover * (1 - self.alpha[rows, columns])

    def capsule(
        self, a: Real, b: Real, ra: float, rb: float, colour: Colour, *, stripe_m: float = 0.0, dim: float = 1.0
    ) -> None:
        """A limb from `a` to `b` with radii `ra` and `rb`, lit as a cylinder; `stripe_m` draws bands across it."""
        reach = max(ra, rb)
        window = self._window(
            min(a[0], b[0]) - reach, max(a[0], b[0]) + reach, min(a[1], b[1]) - reach, max(a[1], b[1]) + reach
        )
        if window is None:
            return
        rows, columns, xs, ys = window
        dx, dy = float(b[0] - a[0]), float(b[1] - a[1])
        length2 = dx * dx + dy * dy + 1e-9
        t = np.clip(((xs - a[0]) * dx + (ys - a[1]) * dy) / length2, 0, 1)
        ox, oy = xs - (a[0] + t * dx), ys - (a[1] + t * dy)
        radius = ra + (rb - ra) * t
        distance = np.hypot(ox, oy)
        cover = np.clip((radius - distance) * self.scale + 0.5, 0, 1)
        nx, ny = ox / radius, oy / radius
        nz = np.sqrt(np.clip(1 - nx * nx - ny * ny, 0, 1))
        light = dim * (0.50 + 0.62 * np.clip(nx * LIGHT[0] + ny * LIGHT[1] + nz * LIGHT[2], 0, 1))
        if stripe_m:
            light = light * np.where((ys / stripe_m) % 1 < 0.5, 1.0, 0.55)
        folds = 1 + 0.05 * np.sin(ys * 61 + xs * 23) * np.sin(xs * 47 - ys * 19)
        self._paint(rows, columns, cover, (light * folds)[..., None] * np.array(colour, np.float32))

    def polygon(self, outline: Real, colour: Colour, *, top: float = 1.0, bottom: float = 1.0) -> None:
        """A filled outline [n, 2], antialiased 3x3, its light running from `top` to `bottom` down the shape."""
        x0, y0 = outline.min(0)
        x1, y1 = outline.max(0)
        window = self._window(float(x0), float(x1), float(y0), float(y1))
        if window is None:
            return
        rows, columns, xs, ys = window
        cover: Real = np.zeros((ys.shape[0], xs.shape[1]), np.float32)
        for sub_x in (-1 / 3, 0.0, 1 / 3):
            for sub_y in (-1 / 3, 0.0, 1 / 3):
                cover += _inside(outline, xs + sub_x / self.scale, ys + sub_y / self.scale)
        along = np.clip((y1 - ys) / max(float(y1 - y0), 1e-6), 0, 1)
        light = np.broadcast_to(top + (bottom - top) * along, cover.shape)
        self._paint(rows, columns, cover / 9, light[..., None] * np.array(colour, np.float32))

    def sprite(self) -> Sprite:
        """The drawing as premultiplied YUV."""
        alpha = self.alpha
        y, u, v = to_yuv(np.clip(self.rgb / np.maximum(alpha, 1e-6)[..., None], 0, 1))
        y, u, v = (np.rint(plane * alpha) for plane in (y, u, v))
        inverse = np.rint(256 * (1 - alpha))
        return Sprite(
            y.astype(np.uint16),
            u.astype(np.uint16),
            v.astype(np.uint16),
            inverse.astype(np.uint16),
            self.columns[0],
            self.rows[0],
        )


def _inside(outline: Real, xs: Real, ys: Real) -> Real:
    """Even-odd rule for every (y, x): 1.0 inside the outline."""
    crossings = np.zeros((ys.shape[0], xs.shape[1]), np.bool_)
    for (xa, ya), (xb, yb) in zip(outline, np.roll(outline, -1, 0), strict=True):
        if ya == yb:
            continue
        spans = (ya > ys) != (yb > ys)
        crossings ^= spans & (xs < (xb - xa) * (ys - ya) / (yb - ya) + xa)
    return crossings.astype(np.float32)


def smooth(points: list[tuple[float, float]], rounds: int = 2) -> Real:
    """Chaikin's corner cutting: a soft outline from a few points."""
    outline = np.array(points, np.float32)
    for _ in range(rounds):
        following = np.roll(outline, -1, 0)
        outline = np.stack([0.8 * outline + 0.2 * following, 0.2 * outline + 0.8 * following], 1).reshape(-1, 2)
    return outline
