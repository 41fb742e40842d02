"""Scripted experts of hammer and relocate, whose human demonstrations have to be downloaded.

A few postures of the hand at fixed times; the arm follows what the scene decides: where ball and target are, how
high the nail is. The numbers were found by the cross-entropy method in the simulator (docs/benchmarks/adroit.md).
"""

# Differs from the paper: its demonstrations of these two tasks are human, 25 each (DAPG).

from dataclasses import dataclass

import numpy as np

from policy_decorator.envs.task import Expert

_HOLD = 0.4
"""Control that holds a joint of the arm at 1 (m or rad): the actuators' bias 200 over their gain 500."""


@dataclass(frozen=True)
class Posture:
    """Wrist and fingers as actions in [-1, 1], clipped where they are beyond."""

    wrist: tuple[float, float]
    spread: float
    flexion: tuple[float, float, float]
    """Knuckle, middle joint and tip, the same for all four fingers."""
    palm: float
    """The little finger's joint within the palm."""
    thumb: tuple[float, float, float, float, float]

    def actions(self) -> np.ndarray:
        """(24,), in the order of the actuators."""
        first, middle, ring, little = ((k * self.spread, *self.flexion) for k in (1.0, 0.3, -0.3, -1.0))
        return np.array([*self.wrist, *first, *middle, *ring, self.palm, *little, *self.thumb])


def _arm(joints: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Actions that hold the arm's joints (m, rad), given the actuators' control ranges."""
    return (2 * _HOLD * joints - low - high) / (high - low)


# ---- hammer -------------------------------------------------------------------------------------------------------

_HAMMER_LOW, _HAMMER_HIGH = np.array([-0.4, -0.3]), np.array([0.25, 0.3])
_MIDDLE = 0.185  # height of the nail, m, for which the arm's pitch below is given
_NAIL_Z = 44  # observation: height of the nail, m


@dataclass(frozen=True)
class Swing:
    """A posture of the arm with the hammer in hand."""

    pitch: float
    """rad, negative is up."""
    pitch_per_height: float
    """rad per metre that the nail is higher."""
    yaw: float
    wrist: tuple[float, float]


_REACH = Posture((0.48, 0.55), 0.17, (-0.9, -1.18, -1.16), -1.17, (0.2, 0.68, 0.02, 0.47, 1.33))
_GRIP = Posture((0.37, 0.41), 0.12, (0.86, 0.12, 0.44), -0.41, (1.12, 0.92, 0.14, -0.63, -0.33))
_BACK = Swing(-0.265, -1.39, 0.013, (0.14, 0.01))
_STRIKE = Swing(-0.065, -1.76, -0.489, (-1.17, -0.11))
_HAMMER_STEPS = (11, 8, 6, 14, 15)
"""Open above the handle, lower, grip, swing back, strike; then back and strike by turns."""


def hammer() -> Expert:
    """Lifts the hammer and drives the nail in with one blow; a new one for every episode."""
    keys: list[np.ndarray] = []
    time = 0

    def act(obs: np.ndarray) -> np.ndarray:
        nonlocal time
        if not keys:
            keys.extend(_hammer_keys(float(obs[_NAIL_Z])))
        time += 1
        return _between(keys, _HAMMER_STEPS, time - 1)

    return act


def _hammer_keys(nail_z: float) -> list[np.ndarray]:
    reach, grip = _REACH.actions(), _GRIP.actions()  # (24,)

    def key(pitch: float, yaw: float, hand: np.ndarray) -> np.ndarray:
        return np.concatenate([_arm(np.array([pitch, yaw]), _HAMMER_LOW, _HAMMER_HIGH), hand])  # (26,)

    keys = [key(-0.051, 0.015, reach), key(0.187, 0.012, reach), key(0.187, 0.012, grip)]
    for swing in (_BACK, _STRIKE):
        pitch = swing.pitch + swing.pitch_per_height * (nail_z - _MIDDLE)
        keys.append(key(pitch, swing.yaw, np.concatenate([swing.wrist, grip[2:]])))
    return keys


def _between(keys: list[np.ndarray], steps: tuple[int, ...], time: int) -> np.ndarray:
    """The action at `time`: each key is gone to in 0.7 of its steps and then held; the last two repeat."""
    blow, approach = sum(steps[-2:]), sum(steps[:-2])
    if time >= approach + blow:
        again = approach + (time - approach) % blow
        cycle = [*keys[:-3], keys[-1], *keys[-2:]]  # each swing back begins where the last blow ended
        return _between(cycle, steps, again)
    i = int(np.searchsorted(np.cumsum(steps), time, side="right"))
    start = keys[max(i - 1, 0)]
    share = min(1.0, (time - sum(steps[:i]) + 1) / (0.7 * steps[i]))
    return np.clip(start + (keys[i] - start) * share, -1, 1).astype(np.float32)


# ---- relocate -----------------------------------------------------------------------------------------------------

_RELOCATE_LOW = np.array([-0.25, 0.0, -0.3, -0.75, -0.75, -0.75])
_RELOCATE_HIGH = np.array([0.25, 0.2, 0.5, 0.75, 0.75, 0.75])
_SLIDES_LOW, _SLIDES_HIGH = np.array([-0.25, 0.0, -0.3]), np.array([0.25, 0.2, 0.5])  # joint limits, m
_SLIDES = np.array([-1.0, 1.0, 1.0]), [0, 2, 1]  # the arm's three slides move the hand along -x, z and y

_OPEN = Posture((0.28, -0.08), -0.13, (-1.12, -0.87, -0.82), -0.97, (0.08, 0.29, -0.1, 0.08, 1.33))
_CLOSED = Posture((0.38, -0.09), 0.09, (0.71, 0.27, 0.64), 0.1, (0.52, 0.97, 0.32, -0.5, -0.38))
_ABOVE, _LOW, _LIFTED = 0.048, 0.284, -0.246  # pitch of the arm, rad
_ROLL, _YAW = 0.013, 0.036
_OFFSET = np.array([0.008, -0.047])  # palm from ball, x and y, while it is gone to, m
_LOWER, _CLOSE, _CARRY = 48, 87, 90  # steps
_LIFT_STEPS = 25
_REACH_PER_STEP, _CARRY_PER_STEP = 0.08, 0.025  # m


def relocate() -> Expert:
    """Goes over the ball, lowers the palm on it, closes the hand and carries it; a new one for every episode."""
    slides, time = np.zeros(3), 0

    def act(obs: np.ndarray) -> np.ndarray:
        nonlocal slides, time
        here, palm_from_ball, ball_from_target = obs[:3], obs[30:33], obs[36:39]  # (3,) each, m
        signs, axes = _SLIDES
        if time < _CLOSE:
            error = np.array([*(palm_from_ball[:2] - _OFFSET), 0.0])  # xyz; the height is the pitch's
            wanted = here - signs * error[axes]
            wanted[1] = 0.0
            slides = here + np.clip(wanted - here, -_REACH_PER_STEP, _REACH_PER_STEP)
        elif time >= _CARRY:
            wanted = here - signs * ball_from_target[axes]
            slides = np.clip(
                slides + np.clip(wanted - slides, -_CARRY_PER_STEP, _CARRY_PER_STEP), _SLIDES_LOW, _SLIDES_HIGH
            )
        pitch = float(np.interp(time, *_PITCH))
        hand = (_OPEN if time < _CLOSE else _CLOSED).actions()
        time += 1
        arm = _arm(np.array([*slides, pitch, _ROLL, _YAW]), _RELOCATE_LOW, _RELOCATE_HIGH)
        return np.clip(np.concatenate([arm, hand]), -1, 1).astype(np.float32)  # (30,)

    return act


_PITCH = (_LOWER, _CLOSE, _CARRY, _CARRY + _LIFT_STEPS), (_ABOVE, _LOW, _LOW, _LIFTED)
"""Steps, and the arm's pitch at them."""

EXPERTS = {"hammer": hammer, "relocate": relocate}
