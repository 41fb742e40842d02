"""A scripted expert that turns faucets: the closed gripper pushes the switch around its hinge.

It sees what the state does not tell, the shapes and where the hinge passes, so it is bound to one CPU environment.
A plan is a point on the switch and a direction of the hand; of many, the one that keeps the hand clear of the
faucet over the whole turn and has the longest arm about the hinge. Then: above the point, down behind it, and along
its circle. Where the switch stops moving, another plan is made from there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

PER_ACTION = 0.1
"""m, and rad, of a full action of `pd_ee_delta_pose`."""
PAD = np.array([0.0088, 0.0155, 0.0095])
"""m, half sizes of both closed finger pads about the tool's point: across, along the hand, along the fingers."""
HAND = np.array(
    [  # lower and upper corners about the tool's point, z along the fingers: pads, fingers, palm, wrist
        [-PAD, PAD],
        [(-0.011, -0.027, -0.037), (0.011, 0.027, -0.009)],
        [(-0.033, -0.105, -0.12), (0.033, 0.105, -0.037)],
        [(-0.07, -0.07, -0.25), (0.07, 0.07, -0.12)],
    ]
)
CLEAR, ABOVE = 0.02, 0.09  # m behind the switch and over it, where the hand comes down
LEAD = 0.06  # m that the hand is asked to be ahead of the contact: how hard it pushes
PATIENCE = 20  # steps without a degree of progress
DOWN = Rotation.from_matrix(np.diag([1.0, -1.0, -1.0]))  # fingers down, hand across the table


@dataclass(frozen=True)
class Shape:
    """The faucet in the frame it stands in, with the switch where it is now."""

    switch: np.ndarray
    """(N, 3) m, points on the surface of the switch."""
    normals: np.ndarray
    """(N, 3), outwards."""
    rest: np.ndarray
    """(M, 3) m, points on the other parts."""
    origin: np.ndarray
    """(3,) m, a point on the hinge."""
    axis: np.ndarray
    """(3,) unit vector."""
    left: float
    """rad, angle to turn."""


@dataclass(frozen=True)
class Plan:
    """Relative to the faucet, with the switch where it was when the plan was made."""

    contact: np.ndarray
    """(3,) m, the point to be pushed."""
    hand: Rotation

    def at(self, shape: Shape, turned: float, behind: float = 0.0) -> np.ndarray:
        """(3,) m, the tool's point that touches the switch once it has turned by so many rad."""
        return _tool(shape, self.contact[None], self.hand, np.array([turned]), behind)[0, 0]


# Differs from the paper: its demonstrations were found by model-predictive control, with ManiSkill2's dense reward.
def make_expert(env: Any) -> Callable[[np.ndarray], np.ndarray]:
    """(43,) -> (7,) for one episode of `env`, as `make_env` of a faucet's task gives it.

    It looks at the simulator, not at the observation, and plans when it is first called: after the reset.
    """
    simulator = env.unwrapped.simulator
    expert: list[_Turning] = []

    def act(obs: np.ndarray) -> np.ndarray:
        if not expert:
            expert.append(_Turning(simulator))
        return expert[0].act()

    return act


class _Turning:
    """One episode: above, down, push; and again where it got stuck."""

    def __init__(self, simulator: Any) -> None:
        self.sim = simulator
        self.tried: list[np.ndarray] = []
        self.begin()

    def begin(self) -> None:
        self.shape = observe(self.sim)
        self.angle = float(self.sim.current_angle[0])
        self.plan = make_plan(self.shape, self.tried)
        self.best, self.waited, self.phase = self.angle, 0, "above"

    def act(self) -> np.ndarray:
        pose = self.sim.agent.tcp.pose
        root = self.sim._faucets[0].root.pose
        turn, at = _rotation(root), root.p[0].numpy()
        turned = float(self.sim.current_angle[0]) - self.angle
        position = turn.inv().apply(pose.p[0].numpy() - at)  # of the tool, relative to the faucet
        goal, speed = self.goal(position, turned)
        # The same hand turned by half a turn is the same tool: take the nearer one.
        hands = [turn * self.plan.hand * Rotation.from_euler("z", half) for half in (0.0, np.pi)]
        errors = [hand * _rotation(pose).inv() for hand in hands]
        rotation = min((e.as_rotvec() for e in errors), key=np.linalg.norm)
        move = turn.apply(goal - position) / PER_ACTION
        move *= min(1.0, speed / max(np.linalg.norm(move), 1e-9))
        spin = -rotation / PER_ACTION  # ManiSkill turns the other way round than its action says
        spin *= min(1.0, 0.5 / max(np.linalg.norm(spin), 1e-9))
        return np.concatenate([move, spin, [-1.0]]).astype(np.float32)

    def goal(self, position: np.ndarray, turned: float) -> tuple[np.ndarray, float]:
        """Where the tool should be (3,), relative to the faucet, and how fast in parts of a full action."""
        plan, shape = self.plan, self.shape
        behind = plan.at(shape, turned, CLEAR)
        above = behind - ABOVE * plan.hand.apply([0, 0, 1])
        if self.phase == "above":
            if np.linalg.norm(position - above) < 0.02:
                self.phase = "down"
            clear = max(above[2], shape.rest[:, 2].max() + 0.05, shape.switch[:, 2].max() + 0.05)
            far = np.linalg.norm((position - above)[:2]) > 0.05
            return np.array([*above[:2], clear if far else above[2]]), 0.8
        if self.phase == "down":
            if np.linalg.norm(position - behind) < 0.012:
                self.phase, self.waited = "push", 0
            self.wait(turned)
            return behind, 0.5
        self.wait(turned)
        arm = float(np.linalg.norm(np.cross(shape.axis, plan.contact - shape.origin)))
        return plan.at(shape, turned + min(LEAD / arm, 0.9)), 0.8

    def wait(self, turned: float) -> None:
        self.waited += 1
        if self.angle + turned > self.best + np.radians(1):
            self.best, self.waited = self.angle + turned, 0
        if self.waited > PATIENCE:
            self.tried.append(self.plan.contact)
            self.begin()


def observe(simulator: Any) -> Shape:
    """The shapes of the simulator's faucet, as they stand now."""
    from mani_skill.utils.geometry.trimesh_utils import get_component_meshes

    faucet, target = simulator._faucets[0], simulator._target_switch_links[0]
    root = _matrix(faucet.root.pose)
    switch, normals, rest = [], [], []
    for link in faucet.links:
        to_root = np.linalg.inv(root) @ _matrix(link.pose)
        for mesh in get_component_meshes(link._objs[0]):
            points, outwards = _surface(mesh.apply_transform(to_root))
            if link is target:
                switch.append(points)
                normals.append(outwards)
            else:
                rest.append(points)
    hinge = np.linalg.inv(root) @ _matrix(target.joint.get_global_pose())
    left = float((simulator.target_angle - simulator.current_angle)[0])
    stacked = [np.concatenate(parts) for parts in (switch, normals, rest)]
    return Shape(*stacked, origin=hinge[:3, 3], axis=hinge[:3, 0], left=left)


def make_plan(shape: Shape, avoid: list[np.ndarray], candidates: int = 32) -> Plan:
    """The best of `candidates` points and seven directions of the hand; points near those of `avoid` come last."""
    arm = shape.switch - shape.origin
    arm = arm - np.outer(arm @ shape.axis, shape.axis)
    length = np.linalg.norm(arm, axis=1)
    forward = np.cross(shape.axis, arm) / np.maximum(length, 1e-6)[:, None]
    facing = -(shape.normals * forward).sum(axis=1)  # 1: pushed squarely
    worth = np.minimum(length, 0.1) + 0.03 * facing - 0.3 * np.maximum(length - 0.9 * length.max(), 0)
    for point in avoid:
        worth -= 0.05 * (np.linalg.norm(shape.switch - point, axis=1) < 0.015)
    chosen = np.argsort(-np.where(facing > 0.7, worth, worth - 1))[:candidates]
    best, plan = -np.inf, None
    for yaw, tilt in ((0, 0), (0.6, 0), (-0.6, 0), (1.2, 0), (-1.2, 0), (0, 0.45), (0, -0.45)):
        hand = Rotation.from_euler("zx", [yaw, tilt]) * DOWN
        hits = _hits(shape, shape.switch[chosen], hand)
        value = worth[chosen] - 0.02 * hits - 0.004 * (abs(yaw) + 2 * abs(tilt))
        if value.max() > best:
            best = value.max()
            plan = Plan(shape.switch[chosen[value.argmax()]], hand)
    assert plan is not None
    return plan


def _hits(shape: Shape, contacts: np.ndarray, hand: Rotation) -> np.ndarray:
    """(C,) how many of the moments of approach and turn have the hand inside the faucet or the table, weighed."""
    turns = np.linspace(0, shape.left, 6)
    down = np.linspace(1, 0, 4)
    push = _tool(shape, contacts, hand, turns, 0.003)  # (C, 6, 3)
    start = _tool(shape, contacts, hand, np.zeros(1), CLEAR)  # (C, 1, 3)
    come = start - ABOVE * down[:, None] * hand.apply([0, 0, 1])  # (C, 4, 3)
    hits = np.zeros(len(contacts))
    for k in range(len(turns)):
        moved = shape.origin + Rotation.from_rotvec(turns[k] * shape.axis).apply(shape.switch - shape.origin)
        for points, slack in ((shape.rest, -0.003), (moved, 0.002)):
            hits += np.minimum(_inside(points, push[:, k], hand, slack), 10) / 10
        hits += push[:, k, 2] < PAD[2] + 0.004
    for k in range(len(down)):
        hits += np.minimum(_inside(shape.rest, come[:, k], hand, -0.003), 10) / 10
        hits += np.minimum(_inside(shape.switch, come[:, k], hand, -0.001), 10) / 10
        hits += come[:, k, 2] < PAD[2] + 0.004
    return hits


def _inside(points: np.ndarray, tools: np.ndarray, hand: Rotation, slack: float) -> np.ndarray:
    """(C,) how many of the points (N, 3) lie in the hand, shrunk by `slack` m, with its tool at `tools` (C, 3)."""
    turn = hand.as_matrix()
    local = (points @ turn).T[:, None] - (tools @ turn).T[:, :, None]  # (3, C, N)
    inside = np.zeros(local.shape[1:], dtype=bool)
    for low, high in HAND:
        middle, half = (low + high) / 2, (high - low) / 2 - slack
        x, y, z = np.abs(local - middle[:, None, None]) < half[:, None, None]
        inside |= x & y & z
    return inside.sum(axis=1)


def _tool(shape: Shape, contacts: np.ndarray, hand: Rotation, turns: np.ndarray, behind: float) -> np.ndarray:
    """(C, T, 3) tool points that touch `contacts` (C, 3) from behind after turns (T,), and `behind` m farther back."""
    arm = contacts - shape.origin
    moved = np.stack([Rotation.from_rotvec(a * shape.axis).apply(arm) for a in turns], axis=1)  # (C, T, 3)
    forward = np.cross(shape.axis, moved)
    forward /= np.maximum(np.linalg.norm(forward, axis=2, keepdims=True), 1e-6)
    reach = (np.abs(forward @ hand.as_matrix()) * PAD).sum(axis=2, keepdims=True)  # of the pads, towards the switch
    return shape.origin + moved - forward * (reach + behind)


def _surface(mesh: Any, spacing: float = 0.008) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) about `spacing` apart on the mesh and their outward normals (N, 3), the same at every call."""
    import trimesh

    count = int(np.clip(mesh.area / spacing**2, 20, 200))
    sampled: Any = trimesh.sample.sample_surface(mesh, count, seed=0)
    points, faces = sampled
    return np.asarray(points), np.asarray(mesh.face_normals[faces])


def _matrix(pose: Any) -> np.ndarray:
    return pose.to_transformation_matrix()[0].numpy().astype(float)


def _rotation(pose: Any) -> Rotation:
    return Rotation.from_matrix(_matrix(pose)[:3, :3])
