"""A controller that pushes chairs to the target: (131,) -> (20,), a function of the state alone.

It drives around the chair to the side that is far from the target, holds both hands before itself at the height of
a seat, and pushes along the line to the target, the slower the nearer. It needs no simulator.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from policy_decorator.envs.task import Expert

LIFT, BASE, ANGLE, CHAIR = 0, slice(38, 40), 40, slice(44, 46)
ARMS = {"left": slice(10, 17), "right": slice(1, 8)}
"""Places in the state; the hands' order is that of the action."""
BASE_SPEED, TURN_SPEED, ARM_SPEED = 0.5, 3.14, 3.14
"""What an action of 1 means: m/s (the lift too), rad/s, rad/s."""

REST = np.array([0.0, 0.0, 0.0, -1.5, 0.0, 3.0, 0.78])
READY = np.array([1.418, 1.574, -1.049, -1.707, 1.073, 3.732, 1.281])
"""Left arm: hand 0.75 m before the base's axis, 0.14 m beside it, 0.1 m above the lift, pointing forward."""
MIRROR = np.array([-1, 1, -1, 1, -1, 1, -1])
"""The right arm does the same with these signs and its last joint turned by 90 degrees."""
HIGH, LOW = 0.9, 0.4
"""Heights of the lift: on the way, hands above the chair; while pushing, hands at its seat."""
AROUND = 1.25
"""Distance of base and chair on the way around it, metres: the lowered hands clear the chair."""
TOUCHING = 1.05
"""Distance of base and chair below which hands may touch it."""


@dataclass(frozen=True)
class Scene:
    """What the controller goes by, in the plane; angles in radians, lengths in metres."""

    ahead: np.ndarray
    """(2,) unit vector from the chair to the target."""
    distance: float
    """From the chair to the target."""
    out: np.ndarray
    """(2,) unit vector from the chair to the base."""
    gap: float
    """From the chair to the base."""
    off: float
    """Angle by which the base stands off the line through target and chair, on the far side."""
    lift: float


def make_expert() -> Expert:
    return act


def act(state: np.ndarray) -> np.ndarray:
    """One action (20,) in [-1, 1] for one state (131,)."""
    scene = _see(state)
    if abs(scene.off) > (0.15 if scene.gap > TOUCHING else 0.5):
        velocity, heading, lowered = _drive_around(scene)
    else:
        velocity, heading, lowered = _push(scene)
    base = _base(state, velocity, heading, LOW if lowered else HIGH)
    return np.concatenate([base, *_arms(state, lowered)]).astype(np.float32)


def _see(state: np.ndarray) -> Scene:
    chair = state[CHAIR].astype(np.float64)
    away = state[BASE] - chair
    distance, gap = np.linalg.norm(chair), np.linalg.norm(away)
    ahead = -chair / max(distance, 1e-6)
    off = _wrap(np.arctan2(away[1], away[0]) - np.arctan2(-ahead[1], -ahead[0]))
    return Scene(ahead, float(distance), away / max(gap, 1e-6), float(gap), float(off), float(state[LIFT]))


def _drive_around(s: Scene) -> tuple[np.ndarray, float, bool]:
    """Velocity (2,) in the world, heading, whether the hands are low: on a circle around the chair, facing it."""
    along = np.array([s.out[1], -s.out[0]]) * np.sign(s.off)
    velocity = 3.0 * (AROUND - s.gap) * s.out + min(BASE_SPEED, 2.0 * abs(s.off) * s.gap) * along
    lowered = s.gap > AROUND - 0.15 or s.lift < HIGH - 0.1
    return velocity, float(np.arctan2(-s.out[1], -s.out[0])), lowered


def _push(s: Scene) -> tuple[np.ndarray, float, bool]:
    """The same on the line through chair and target; it waits at the circle until the hands are low."""
    left = np.array([-s.ahead[1], s.ahead[0]])
    if s.lift > LOW + 0.05:
        speed = 2.0 * (-s.gap * s.out @ s.ahead - AROUND)
    elif s.gap > TOUCHING:
        speed = BASE_SPEED
    else:
        speed = np.clip(1.2 * (s.distance - 0.08), 0.05, 0.45)
    velocity = speed * s.ahead - 2.0 * (s.gap * s.out @ left) * left
    return velocity, float(np.arctan2(s.ahead[1], s.ahead[0])), True


def _base(state: np.ndarray, velocity: np.ndarray, heading: float, lift: float) -> np.ndarray:
    c, s = np.cos(state[ANGLE]), np.sin(state[ANGLE])
    forward = np.array([[c, s], [-s, c]]) @ velocity / BASE_SPEED
    forward /= max(1.0, np.abs(forward).max())  # the direction stays where a wheel cannot follow
    turn = 4.0 * _wrap(heading - state[ANGLE]) / TURN_SPEED
    return np.clip([*forward, turn, 6.0 * (lift - state[LIFT]) / BASE_SPEED], -1, 1)


def _arms(state: np.ndarray, lowered: bool) -> Iterator[np.ndarray]:
    for side, joints in ARMS.items():
        goal = READY if lowered else REST
        if side == "right" and lowered:
            goal = MIRROR * READY + np.array([0, 0, 0, 0, 0, 0, np.pi / 2])
        yield np.clip(6.0 * (goal - state[joints]) / ARM_SPEED, -1, 1)
        yield np.array([-1.0])  # closed


def _wrap(angle: float) -> float:
    return (angle + np.pi) % (2 * np.pi) - np.pi
