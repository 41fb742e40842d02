"""Scripted experts of the robomimic tasks: they steer a gripper's pose by the observation alone.

Angles are yaws of a gripper that points straight down, 0 where a Panda's fingers open across its reach; `Rz(yaw) Rx(pi)`
is the orientation the observation gives. Half a turn more is the same grasp.
"""

from collections.abc import Callable

import numpy as np
from scipy.spatial.transform import Rotation

from policy_decorator.envs.robosuite import DISPLACEMENT, ROBOT_OBS, ROTATION

OPEN, CLOSE = -1.0, 1.0
TABLE = 0.82
"""Height of the table of Square, metres."""
PEG = np.array([0.23, 0.10])
"""Where the square peg stands, metres; its top is at 0.95."""
HANDLE = np.array([0.058, 0.0, 0.0])
"""Where to grasp the nut, in its own frame."""
GAIN = 0.6
"""Share of the error that one action asks for."""


class Gripper:
    """One robot's share of the observation, and actions that steer it."""

    def __init__(self, obs: np.ndarray, robot: int = 0) -> None:
        mine = obs[robot * ROBOT_OBS :]
        self.pos, self.orientation = mine[:3], Rotation.from_quat(mine[3:7])
        self.opening = mine[7] - mine[8]

    def to(self, pos: np.ndarray, yaw: float, fingers: float) -> np.ndarray:
        """(7,) towards a position and a yaw, pointing down."""
        down = Rotation.from_euler("zx", [yaw, np.pi])
        turn = (down * self.orientation.inv()).as_rotvec()
        action = np.concatenate([GAIN * (pos - self.pos) / DISPLACEMENT, GAIN * turn / ROTATION, [fingers]])
        return np.clip(action, -1, 1).astype(np.float32)

    @property
    def yaw(self) -> float:
        x, y, _ = self.orientation.apply([1, 0, 0])
        return float(np.arctan2(y, x))


def wrap(angle: float, period: float) -> float:
    """The same angle in [-period / 2, period / 2)."""
    return float((angle + period / 2) % period - period / 2)


def yaw_of(quat: np.ndarray) -> float:
    """Of an object that lies flat: the direction of its x axis."""
    x, y, _ = Rotation.from_quat(quat).apply([1, 0, 0])
    return float(np.arctan2(y, x))


class Square:
    """Grasps the nut by its handle, lifts it, turns it by at most 45 degrees and lowers it over the peg.

    Begins again where the nut was lost.
    """

    def __init__(self) -> None:
        self.closing = 0

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        gripper, nut, turned = Gripper(obs), obs[9:12], yaw_of(obs[12:16])
        handle = nut + Rotation.from_quat(obs[12:16]).apply(HANDLE)
        if np.linalg.norm(handle - gripper.pos) > 0.03:
            self.closing = 0
        grasp = wrap(turned, np.pi)
        if self.closing == 0:
            return self.reach(gripper, handle, grasp)
        self.closing += 1
        if self.closing < 10:
            return gripper.to(gripper.pos, grasp, CLOSE)
        return self.carry(gripper, nut, turned)

    def reach(self, gripper: Gripper, handle: np.ndarray, grasp: float) -> np.ndarray:
        ahead = np.linalg.norm(handle[:2] - gripper.pos[:2])
        askew = abs(wrap(gripper.yaw - grasp, np.pi))
        above = handle + [0, 0, 0.003]
        if ahead > 0.01 or askew > 0.1:
            above[2] += 0.07
        elif abs(gripper.pos[2] - above[2]) < 0.006:
            self.closing = 1
        return gripper.to(above, grasp, OPEN)

    def carry(self, gripper: Gripper, nut: np.ndarray, turned: float) -> np.ndarray:
        off, askew = PEG - nut[:2], wrap(-turned, np.pi / 2)
        threaded = np.linalg.norm(off) < 0.006 and abs(askew) < 0.08
        low = nut[2] < 0.955 and np.linalg.norm(off) < 0.02
        up = 0.0
        if low or threaded:
            up = -0.05
        else:
            up = 1.0 - nut[2]
            if up > 0.03:
                off = off * 0
        return gripper.to(gripper.pos + [*off, up], gripper.yaw + askew, CLOSE)


EXPERTS: dict[str, Callable[[], Callable[[np.ndarray], np.ndarray]]] = {"square": Square}
