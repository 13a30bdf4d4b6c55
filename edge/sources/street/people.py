"""The walking people of the rendered street.

Capsules on a skeleton that walks in three dimensions and is then projected: one gait serves every direction. Joints are
(forward, side, up) in metres for a body of 1.75 m.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scene_edge.edge.sources.street.canvas import Canvas, Colour, Real, Sprite

GAIT_PHASES = 20
SKIN: tuple[Colour, ...] = ((0.86, 0.66, 0.54), (0.72, 0.52, 0.40), (0.48, 0.33, 0.25), (0.91, 0.73, 0.62))
HAIR: tuple[Colour, ...] = ((0.12, 0.09, 0.07), (0.30, 0.19, 0.11), (0.62, 0.48, 0.28), (0.20, 0.20, 0.21))
TOPS: tuple[Colour, ...] = (
    (0.70, 0.13, 0.13), (0.14, 0.25, 0.50), (0.16, 0.17, 0.19), (0.78, 0.76, 0.70),
    (0.20, 0.42, 0.28), (0.80, 0.55, 0.15), (0.42, 0.30, 0.50), (0.36, 0.52, 0.66),
)  # fmt: skip
TROUSERS: tuple[Colour, ...] = ((0.13, 0.17, 0.28), (0.10, 0.10, 0.11), (0.36, 0.33, 0.28), (0.24, 0.27, 0.32))


@dataclass(frozen=True, slots=True)
class Look:
    """What makes one person: body height, clothes, and how lively the walk is (0 stands, 1 walks, 1.6 runs)."""

    height_m: float
    skin: Colour
    hair: Colour
    top: Colour
    trousers: Colour
    coat: bool
    backpack: bool
    striped: bool
    vigour: float = 1.0

    @classmethod
    def draw(cls, rng: np.random.Generator, vigour: float = 1.0) -> Look:
        def choose(colours: tuple[Colour, ...]) -> Colour:
            return colours[int(rng.integers(len(colours)))]

        return cls(
            float(rng.uniform(1.58, 1.88)), choose(SKIN), choose(HAIR), choose(TOPS), choose(TROUSERS),
            bool(rng.random() < 0.3), bool(rng.random() < 0.35), bool(rng.random() < 0.25), vigour,
        )  # fmt: skip


def _leg(phase: float, vigour: float) -> tuple[float, float, float]:
    """(hip, knee, foot pitch) in radians for a leg at `phase`: the thigh swings, the knee bends as it comes forward."""
    hip = 0.06 + 0.38 * vigour * np.sin(phase)
    knee = 0.10 + 0.95 * vigour * max(0.0, float(np.cos(phase + 0.45))) ** 1.6
    return float(hip), float(knee), float(0.65 * (hip - knee) + 0.12)


def _joints(look: Look, phase: float) -> dict[str, Real]:
    """Joint name -> (forward, side, up) in metres for a person of 1.75 m; the lower foot stands on the ground."""
    joints: dict[str, Real] = {}

    def put(name: str, forward: float, side: float, up: float) -> Real:
        joints[name] = np.array([forward, side, up], np.float32)
        return joints[name]

    lean = 0.03 + 0.10 * max(0.0, look.vigour - 1)
    for side, turn in (("l", 0.0), ("r", np.pi)):
        sign = -1.0 if side == "l" else 1.0
        hip, knee, pitch = _leg(phase + turn, look.vigour)
        top = put("hip" + side, 0, sign * 0.095, 0.0)
        mid = put("knee" + side, 0.43 * np.sin(hip), sign * 0.085, top[2] - 0.43 * np.cos(hip))
        low = put("ankle" + side, mid[0] + 0.42 * np.sin(hip - knee), sign * 0.08, mid[2] - 0.42 * np.cos(hip - knee))
        put("heel" + side, low[0] - 0.05, sign * 0.08, low[2] - 0.05)
        put("toe" + side, low[0] + 0.19 * np.cos(pitch), sign * 0.095, low[2] - 0.055 + 0.17 * np.sin(pitch))
        swing = -0.5 * look.vigour * np.sin(phase + turn)
        bend = 0.25 + 0.9 * max(0.0, look.vigour - 0.9) + 0.2 * max(0.0, float(swing))
        shoulder = put("shoulder" + side, lean * 1.6, sign * 0.185, 0.53)
        elbow = put(
            "elbow" + side, shoulder[0] + 0.29 * np.sin(swing), sign * 0.225, shoulder[2] - 0.29 * np.cos(swing)
        )
        put("wrist" + side, elbow[0] + 0.25 * np.sin(swing + bend), sign * 0.21, elbow[2] - 0.25 * np.cos(swing + bend))
    put("pelvis", 0, 0, 0.02)
    put("chest", lean, 0, 0.42)
    put("collar", lean * 1.7, 0, 0.55)
    put("neck", lean * 1.9, 0, 0.60)
    put("head", lean * 2.1 + 0.02, 0, 0.735)
    put("face", lean * 2.1 + 0.045, 0, 0.71)
    put("crown", lean * 2.1 - 0.005, 0, 0.765)
    put("nape", lean * 2.0 - 0.04, 0, 0.70)
    put("hem", 0.0, 0, -0.30)
    put("packtop", lean - 0.19, 0, 0.40)
    put("packlow", lean - 0.19, 0, 0.16)
    ground = min(float(joints[name][2]) for name in ("heell", "heelr", "toel", "toer")) - 0.035
    for joint in joints.values():
        joint[2] -= ground
    return joints


@dataclass(frozen=True, slots=True)
class Part:
    """A capsule of a body between two joints; `shift` moves both ends by (right, up), `front` breaks ties of depth."""

    a: str
    b: str
    ra: float
    rb: float
    colour: Colour
    front: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    stripe_m: float = 0.0


def _parts(look: Look, breadth: float) -> list[Part]:
    """The capsules of one person; `breadth` is 0 seen from the side and 1 seen from the front or the back."""
    parts: list[Part] = []
    shoe = (0.10, 0.09, 0.08)
    stripe = 0.16 if look.striped else 0.0
    for side in "lr":
        parts += [
            Part("hip" + side, "knee" + side, 0.088, 0.062, look.trousers),
            Part("knee" + side, "ankle" + side, 0.062, 0.044, look.trousers),
            Part("heel" + side, "toe" + side, 0.042, 0.034, shoe, front=0.01),
            Part("shoulder" + side, "elbow" + side, 0.058, 0.047, look.top, stripe_m=stripe),
            Part("elbow" + side, "wrist" + side, 0.045, 0.036, look.top),
            Part("wrist" + side, "wrist" + side, 0.045, 0.045, look.skin, front=0.02),
        ]
    spread = 0.085 * breadth
    for sign in (-1.0, 1.0):
        parts.append(Part("pelvis", "chest", 0.125, 0.135, look.top, shift=(sign * spread, 0.02), stripe_m=stripe))
        parts.append(
            Part("pelvis", "pelvis", 0.118, 0.118, look.trousers, front=-0.02, shift=(sign * spread * 0.7, 0.0))
        )
        if look.coat:
            parts.append(Part("pelvis", "hem", 0.135, 0.165, look.top, front=0.03, shift=(sign * spread * 0.6, 0.0)))
    parts += [
        Part("shoulderl", "shoulderr", 0.062, 0.062, look.top, front=-0.03),
        Part("collar", "neck", 0.058, 0.052, look.skin, front=-0.01),
        Part("head", "face", 0.098, 0.092, look.skin, front=0.02),
        Part("crown", "nape", 0.104, 0.082, look.hair, front=0.0),
    ]
    if look.backpack:
        parts.append(Part("packtop", "packlow", 0.105, 0.125, (0.16, 0.20, 0.17)))
    return parts


def person(look: Look, phase: float, yaw: float, px_per_m: float) -> Sprite:
    """One pose of a walk. `yaw` 0 walks to the right, pi to the left, pi/2 away from the camera, -pi/2 towards it."""
    size = look.height_m / 1.75
    cos, sin = float(np.cos(yaw)), float(np.sin(yaw))
    depth: dict[str, float] = {}
    at: dict[str, Real] = {}
    for name, (forward, side, up) in _joints(look, phase).items():
        at[name] = np.array([forward * cos + side * sin, up], np.float32) * size
        depth[name] = float(forward * sin - side * cos)
    canvas = Canvas(-0.75 * size, 0.75 * size, 2.0 * size, px_per_m)
    parts = _parts(look, abs(sin))
    for part in sorted(parts, key=lambda part: part.front - (depth[part.a] + depth[part.b]) / 2):
        shift = np.array(part.shift, np.float32)
        hidden = (depth[part.a] + depth[part.b]) / 2 > 0.06
        canvas.capsule(
            at[part.a] + shift * size, at[part.b] + shift * size, part.ra * size, part.rb * size, part.colour,
            stripe_m=part.stripe_m, dim=0.8 if hidden else 1.0,
        )  # fmt: skip
    return canvas.sprite()


def walk(look: Look, yaw: float, px_per_m: float) -> tuple[Sprite, ...]:
    """A whole cycle of the gait in GAIT_PHASES poses."""
    return tuple(person(look, 2 * np.pi * step / GAIT_PHASES, yaw, px_per_m) for step in range(GAIT_PHASES))
