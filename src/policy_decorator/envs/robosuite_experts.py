"""Scripted experts of the robomimic tasks: they steer a gripper's pose by the observation alone.

Angles are yaws of a gripper that points straight down, 0 where a Panda's fingers open across its reach; `Rz(yaw) Rx(pi)`
is the orientation the observation gives. Half a turn more is the same grasp.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from scipy.spatial.transform import Rotation

ROBOT_OBS = 9
"""A robot's share of the observation."""
DISPLACEMENT, ROTATION = 0.05, 0.5
"""Metres and radians of one unit of action: the controller's limits in every robomimic dataset."""
OPEN, CLOSE = -1.0, 1.0
TURN = 2 * np.pi
TABLE = 0.82
"""Height of the table of Square, metres."""
PEG = np.array([0.23, 0.10])
"""Where the square peg stands, metres; its top is at 0.95."""
HANDLE = np.array([0.058, 0.0, 0.0])
"""Where to grasp the nut, in its own frame."""
GAIN = 1.0
"""Share of the error that one action asks for."""


class Gripper:
    """One robot's share of the observation, and actions that steer it."""

    def __init__(self, obs: np.ndarray, robot: int = 0) -> None:
        mine = obs[robot * ROBOT_OBS :]
        self.pos, self.orientation = mine[:3], Rotation.from_quat(mine[3:7])
        self.opening = mine[7] - mine[8]

    def to(self, pos: np.ndarray, yaw: float, fingers: float) -> np.ndarray:
        """(7,) towards a position and a yaw, pointing down."""
        down = Rotation.from_euler("ZX", [yaw, np.pi])
        turn = (down * self.orientation.inv()).as_rotvec()
        action = np.concatenate([GAIN * (pos - self.pos) / DISPLACEMENT, GAIN * turn / ROTATION, [fingers]])
        return np.clip(action, -1, 1).astype(np.float32)

    @property
    def yaw(self) -> float:
        x, y, _ = self.orientation.apply([1, 0, 0])
        return float(np.arctan2(y, x))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b))


def wrap(angle: float, period: float) -> float:
    """The same angle in [-period / 2, period / 2)."""
    return float((angle + period / 2) % period - period / 2)


def yaw_of(quat: np.ndarray) -> float:
    """Of an object that lies flat: the direction of its x axis."""
    x, y, _ = Rotation.from_quat(quat).apply([1, 0, 0])
    return float(np.arctan2(y, x))


class Square:
    """Grasps the nut by its handle, lifts it, turns it and lowers it over the peg; begins again where it was lost.

    The handle must not point away from the robot on the peg: the gripper that holds it would be out of reach.
    """

    def __init__(self) -> None:
        self.descending, self.closing = False, 0

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        gripper, nut, turned = Gripper(obs), obs[9:12], yaw_of(obs[12:16])
        handle = nut + Rotation.from_quat(obs[12:16]).apply(HANDLE)
        grasp = wrap(turned, np.pi)
        self.closing = self.closing + 1 if self.closing and distance(handle, gripper.pos) < 0.03 else 0
        if self.closing > 10:
            return self.carry(gripper, nut, turned)
        if self.closing:
            return gripper.to(gripper.pos, grasp, CLOSE)
        return self.reach(gripper, handle, grasp)

    def reach(self, gripper: Gripper, handle: np.ndarray, grasp: float) -> np.ndarray:
        beside, askew = distance(handle[:2], gripper.pos[:2]), abs(wrap(gripper.yaw - grasp, np.pi))
        slack = 2.0 if self.descending else 1.0
        self.descending = beside < 0.01 * slack and askew < 0.12 * slack
        if self.descending and gripper.pos[2] - handle[2] < 0.01:
            self.closing = 1
        return gripper.to(handle + [0, 0, 0.003 if self.descending else 0.06], grasp, OPEN)

    def carry(self, gripper: Gripper, nut: np.ndarray, turned: float) -> np.ndarray:
        off, askew = PEG - nut[:2], min((wrap(goal - turned, TURN) for goal in (-TURN / 4, TURN / 4, TURN / 2)), key=abs)
        below_top = nut[2] < 0.955 and distance(nut[:2], PEG) < 0.02
        if below_top or (np.abs(off).max() < 0.005 and abs(askew) < 0.1):
            up = -0.05
        else:
            up = 1.0 - nut[2]
            off = off * (up < 0.03)
        return gripper.to(gripper.pos + [*off, up], gripper.yaw + askew, CLOSE)


class PickUp:
    """Grasps an object from above and carries it to a place, or just up."""

    def __init__(self, depth: float, place: np.ndarray | None) -> None:
        self.depth, self.place = depth, place
        self.descending, self.closing = False, 0

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        gripper, thing = Gripper(obs), obs[9:12] + [0, 0, self.depth]
        self.closing = self.closing + 1 if self.closing and distance(thing, gripper.pos) < 0.03 else 0
        if self.closing > 10:
            return self.carry(gripper)
        grasp = wrap(yaw_of(obs[12:16]), np.pi / 2)
        if self.closing:
            return gripper.to(gripper.pos, grasp, CLOSE)
        self.descending = distance(thing[:2], gripper.pos[:2]) < (0.02 if self.descending else 0.01)
        if self.descending and gripper.pos[2] - thing[2] < 0.01:
            self.closing = 1
        return gripper.to(thing + [0, 0, 0 if self.descending else 0.08], grasp, OPEN)

    def carry(self, gripper: Gripper) -> np.ndarray:
        if self.place is None:
            return gripper.to(gripper.pos + [0, 0, 0.05], 0.0, CLOSE)
        beside = distance(self.place[:2], gripper.pos[:2])
        if beside < 0.02:
            return gripper.to(self.place, 0.0, CLOSE if gripper.pos[2] > self.place[2] + 0.02 else OPEN)
        over = np.array([*self.place[:2], 1.05])
        return gripper.to(over if gripper.pos[2] > 1.0 else np.array([*gripper.pos[:2], 1.05]), 0.0, CLOSE)


EXPERTS: dict[str, Callable[[], Callable[[np.ndarray], np.ndarray]]] = {
    "lift": partial(PickUp, 0.0, None),
    "can": partial(PickUp, 0.02, np.array([0.15, 0.34, 0.92])),
    "square": Square,
}
