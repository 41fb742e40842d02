"""The scripted expert of Transport: two arms, each with a script of its own, that meet to hand over the hammer."""

from collections.abc import Callable, Iterator

import numpy as np
from scipy.spatial.transform import Rotation

from policy_decorator.envs.robosuite_experts import CLOSE, OPEN, UP, Gripper, distance, wrap, yaw_of

ACROSS = np.array([0.0, 1.0, 0.0])
"""From the first robot to the second."""
FACING = (np.pi / 2, -np.pi / 2)
"""Yaws of the two grippers as they look at one another."""
ASIDE = np.array([-0.2, -0.45, 0.84])
"""Where the lid is put, metres."""
MEETING = np.array([0.0, 0.0, 1.1])
WAITING = (np.array([0.0, -0.35, 1.2]), np.array([0.0, 0.25, 1.2]))
LIFTED = 1.0
"""Height of a thing that was really picked up."""
HIGH = 1.1
"""Above the bins, whose walls end at 0.95, and above what hangs from a gripper."""
ALONG = 0.06
"""From the middle of the handle to where either gripper holds it."""
HELD = 0.02
"""Metres between the fingers: the handle is 0.03 wide."""
LEAN = 0.3
"""Radians: a gripper that points straight down so near to its robot is at the edge of what the wrist can do."""
STIFF = 3.0
"""Gain: the arms are folded or stretched here, and would drift."""

Script = Iterator[np.ndarray]
Place = tuple[np.ndarray, float]
"""Position and yaw."""


class Transport:
    """The first robot opens the bin and takes the hammer out; the second clears the target bin and takes it over."""

    def __init__(self) -> None:
        self.obs = np.zeros(0)
        self.offered = self.taken = self.free = False
        self.scripts = (self.first(), self.second())

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        self.obs = obs
        return np.concatenate([next(script) for script in self.scripts])

    def first(self) -> Script:
        here = MEETING - ALONG * ACROSS
        while self.obs[34] < LIFTED:
            yield from self.pick(0, self.lid)
        yield from self.put(0, ASIDE)
        while self.obs[20] < LIFTED:
            yield from self.pick(0, lambda: self.handle(-ALONG))
        yield from self.go(0, here, FACING[0], CLOSE)
        self.offered = True
        while not self.taken:
            yield self.at(0).to(here, FACING[0], CLOSE)
        yield from self.stay(0, here, FACING[0], OPEN)
        yield from self.go(0, here + 0.12 * UP, FACING[0], OPEN)
        self.free = True
        while True:
            yield self.at(0).to(WAITING[0], FACING[0], OPEN)

    def second(self) -> Script:
        while not self.obs[46]:  # not in its bin yet
            yield from self.pick(1, self.trash)
            if self.obs[27] > LIFTED:
                yield from self.put(1, self.obs[42:45] + 0.1 * UP)
        while not self.offered:
            yield self.at(1).to(WAITING[1], FACING[1], OPEN)
        while not self.taken:
            yield from self.pick(1, lambda: self.handle(ALONG), lift=False)
            self.taken = self.at(1).opening > HELD
        held = self.at(1).pos
        while not self.free:
            yield self.at(1).to(held, FACING[1], CLOSE)
        yield from self.go(1, held + 0.1 * ACROSS + 0.08 * UP, FACING[1], CLOSE)
        yield from self.put(1, self.obs[39:42] + ALONG * ACROSS + 0.05 * UP)
        while True:
            yield self.at(1).to(WAITING[1], FACING[1], OPEN)

    def lid(self) -> Place:
        return self.obs[32:35], yaw_of(self.obs[35:39]) + np.pi / 2

    def trash(self) -> Place:
        return self.obs[25:28], FACING[1] + wrap(yaw_of(self.obs[28:32]), np.pi / 2)

    def handle(self, along: float) -> Place:
        """A point of the hammer's handle, in the second robot's half where positive."""
        axis = Rotation.from_quat(self.obs[21:25]).apply([0, 0, 1])
        axis = axis if axis[1] > 0 else -axis
        return self.obs[18:21] + along * axis, float(np.arctan2(axis[1], axis[0]))

    def at(self, robot: int) -> Gripper:
        return Gripper(self.obs, robot)

    def pick(self, robot: int, what: Callable[[], Place], lift: bool = True) -> Script:
        """What is not lifted is held by the other gripper: then pointing straight down, out of its way."""
        pos, yaw = what()
        yaw, lean = FACING[robot] + wrap(yaw - FACING[robot], np.pi), LEAN if lift else 0.0
        yield from self.go(robot, np.array([*pos[:2], max(HIGH, pos[2] + 0.1)]), yaw, OPEN, lean)
        for _ in range(2):  # it may have moved meanwhile
            pos = what()[0]
            yield from self.go(robot, pos, yaw, OPEN, lean, near=0.01)
        yield from self.stay(robot, pos, yaw, CLOSE, lean)
        if lift:
            yield from self.go(robot, np.array([*pos[:2], HIGH + 0.05]), yaw, CLOSE, lean)

    def put(self, robot: int, where: np.ndarray) -> Script:
        yaw = FACING[robot]
        yield from self.go(robot, np.array([*where[:2], HIGH + 0.05]), yaw, CLOSE, LEAN)
        yield from self.go(robot, where, yaw, CLOSE, LEAN)
        yield from self.stay(robot, where, yaw, OPEN, LEAN)
        yield from self.go(robot, np.array([*where[:2], HIGH]), yaw, OPEN, LEAN, near=0.04)

    def go(
        self, robot: int, pos: np.ndarray, yaw: float, fingers: float, lean: float = 0.0, near: float = 0.02
    ) -> Script:
        """Until it is there, but no longer than four seconds: something may be in the way."""
        for _ in range(80):
            gripper = self.at(robot)
            if distance(gripper.pos, pos) < near and abs(wrap(gripper.yaw - yaw, np.pi)) < 0.1:
                return
            yield gripper.to(pos, yaw, fingers, STIFF, lean)

    def stay(self, robot: int, pos: np.ndarray, yaw: float, fingers: float, lean: float = 0.0) -> Script:
        """While the fingers move."""
        for _ in range(12):
            yield self.at(robot).to(pos, yaw, fingers, STIFF, lean)
