"""Scripted experts of the robomimic tasks: they steer a gripper's pose by the observation alone.

Angles are yaws of a gripper that points straight down, 0 where a Panda's fingers open across its reach: then the
orientation in the observation is `Rz(yaw) Rx(pi)`. Half a turn more is the same grasp.
"""

import numpy as np
from scipy.spatial.transform import Rotation

ROBOT_OBS = 9
"""A robot's share of the observation."""
DISPLACEMENT, ROTATION = 0.05, 0.5
"""Metres and radians of one unit of action: the controller's limits in every robomimic dataset."""
OPEN, CLOSE = -1.0, 1.0
UP = np.array([0.0, 0.0, 1.0])
TURN = 2 * np.pi
PEG = np.array([0.23, 0.10])
"""Where the square peg stands, metres; its top is at 0.95."""
HANDLE = np.array([0.058, 0.0, 0.0])
"""Where to grasp the nut, in its own frame."""
CARRY = 1.05
"""Height of the gripper above the walls of Can's bins, metres."""
GAIN = 1.0
"""Share of the error that one action asks for."""


class Gripper:
    """One robot's share of the observation, and actions that steer it."""

    def __init__(self, obs: np.ndarray, robot: int = 0) -> None:
        mine = obs[robot * ROBOT_OBS :]
        self.pos, self.orientation = mine[:3], Rotation.from_quat(mine[3:7])
        self.opening = float(mine[7] - mine[8])  # metres

    def to(self, pos: np.ndarray, yaw: float, fingers: float, gain: float = GAIN, lean: float = 0.0) -> np.ndarray:
        """(7,) towards a position and a yaw, pointing down, or `lean` radians back to the robot."""
        wanted = Rotation.from_euler("ZXY", [yaw, np.pi, -lean])
        turn = (wanted * self.orientation.inv()).as_rotvec()
        action = np.concatenate([gain * (pos - self.pos) / DISPLACEMENT, gain * turn / ROTATION, [fingers]])
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
        return gripper.to(handle + (0.003 if self.descending else 0.06) * UP, grasp, OPEN)

    def carry(self, gripper: Gripper, nut: np.ndarray, turned: float) -> np.ndarray:
        askew = min((wrap(goal - turned, TURN) for goal in (-TURN / 4, TURN / 4, TURN / 2)), key=abs)
        off = PEG - nut[:2]
        below_top = nut[2] < 0.955 and distance(nut[:2], PEG) < 0.02
        if below_top or (np.abs(off).max() < 0.005 and abs(askew) < 0.1):
            up = -0.05
        else:
            up = 1.0 - nut[2]
            off = off * (up < 0.03)
        return gripper.to(gripper.pos + np.array([*off, up]), gripper.yaw + askew, CLOSE)


class PickUp:
    """Grasps an object from above and carries it to a place, or just up."""

    def __init__(self, depth: float = 0.0, place: tuple[float, float, float] | None = None) -> None:
        """`depth` is added to the object's height where it is grasped, metres."""
        self.depth, self.place = depth, None if place is None else np.array(place)
        self.descending, self.closing = False, 0

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        gripper, thing = Gripper(obs), obs[9:12] + self.depth * UP
        self.closing = self.closing + 1 if self.closing and distance(thing, gripper.pos) < 0.03 else 0
        if self.closing > 10:
            return self.carry(gripper)
        grasp = wrap(yaw_of(obs[12:16]), np.pi / 2)
        if self.closing:
            return gripper.to(gripper.pos, grasp, CLOSE)
        self.descending = distance(thing[:2], gripper.pos[:2]) < (0.02 if self.descending else 0.01)
        if self.descending and gripper.pos[2] - thing[2] < 0.01:
            self.closing = 1
        return gripper.to(thing + (0.0 if self.descending else 0.08) * UP, grasp, OPEN)

    def carry(self, gripper: Gripper) -> np.ndarray:
        up = gripper.pos + 0.05 * UP
        if self.place is None:
            return gripper.to(up, 0.0, CLOSE)
        if distance(self.place[:2], gripper.pos[:2]) < 0.02:
            return gripper.to(self.place, 0.0, CLOSE if gripper.pos[2] > self.place[2] + 0.02 else OPEN)
        over = np.array([*self.place[:2], CARRY])
        return gripper.to(over if gripper.pos[2] > CARRY - 0.05 else up, 0.0, CLOSE)
