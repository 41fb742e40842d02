"""ManiSkill2's dual-arm mobile Panda as an agent of ManiSkill 3. Imports mani_skill: import it where it is used.

action (20,) in [-1, 1] = base forward, left (0.5 m/s), turn (3.14 rad/s), lift (0.5 m/s) |
    left arm (7, 3.14 rad/s), left gripper (a position: -1 closed, 1 open) | right arm (7), right gripper.
Facts (gains, limits, cameras, parts of the state) from ManiSkill2 0.5.3; the robot's URDF is in mani_skill's wheel.
"""

import hashlib
import re
from typing import Any

import numpy as np
import sapien
import torch
from mani_skill import PACKAGE_ASSET_DIR
from mani_skill.agents.base_agent import BaseAgent, Keyframe
from mani_skill.agents.controllers import (
    PDBaseVelControllerConfig,
    PDJointPosMimicControllerConfig,
    PDJointVelControllerConfig,
)
from mani_skill.agents.registration import register_agent
from mani_skill.sensors.base_sensor import BaseSensorConfig
from mani_skill.sensors.camera import CameraConfig
from mani_skill.utils.structs import Link, Pose

from policy_decorator.disk import atomic_bytes
from policy_decorator.envs.maniskill.cache import cache_folder

CONTROL_MODE = "base_pd_joint_vel_arm_pd_joint_vel"
BASE_JOINTS = ("root_x_axis_joint", "root_y_axis_joint", "root_z_rotation_joint", "linear_actuator_height")
SIDES = ("right", "left")
ARM_REST = (0.0, 0.0, 0.0, -1.5, 0.0, 3.0, 0.78, 0.02, 0.02)
TIP = (0.0, 0.0, 0.035)
"""Fingertip in the frame of its finger's link, metres."""
GROUND_BIT = 30
"""Collision bit of what passes through the ground: the lower part of the lift."""


def arm_joints(side: str) -> list[str]:
    return [f"{side}_panda_joint{i}" for i in range(1, 8)]


def finger_joints(side: str) -> list[str]:
    return [f"{side}_panda_finger_joint{i}" for i in (1, 2)]


JOINTS = (*BASE_JOINTS, *(j for side in SIDES for j in (*arm_joints(side), *finger_joints(side))))
"""The 22 joints in the order of ManiSkill2's state, arm after arm; ManiSkill 3 interleaves the arms."""


def urdf_file() -> str:
    """The wheel's URDF with absolute paths and today's names of its visual meshes, written once to the cache.

    The wheel replaced the .dae files that its URDF names by .glb.
    """
    source = PACKAGE_ASSET_DIR / "robots" / "panda" / "mobile_panda_dual_arm.urdf"

    def absolute(found: re.Match[str]) -> str:
        return f'filename="{source.parent / found[1].replace(".dae", ".glb")}"'

    text = re.sub(r'filename="([^"]*)"', absolute, source.read_text(encoding="utf-8")).encode()
    path = cache_folder("maniskill") / f"mobile_panda_dual_arm-{hashlib.sha256(text).hexdigest()[:12]}.urdf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_bytes(path, text)
    return str(path)


@register_agent()
class MobilePandaDualArm(BaseAgent):
    """Holonomic base, lift, two Panda arms with grippers: 22 joints, 20 actions."""

    uid = "mobile_panda_dual_arm"
    urdf_config = dict(  # noqa: RUF012, C408 (as mani_skill declares it)
        _materials={"gripper": {"static_friction": 2.0, "dynamic_friction": 2.0, "restitution": 0.0}},
        link={
            f"{side}_panda_{finger}finger": {"material": "gripper", "patch_radius": 0.1, "min_patch_radius": 0.1}
            for side in SIDES
            for finger in ("left", "right")
        },
    )
    # Differs from the paper: in ManiSkill2 the robot's links collide with one another; their hulls overlap at rest.
    disable_self_collisions = True
    keyframes = {"rest": Keyframe(sapien.Pose(), np.array([0, 0, 0, 0.9, *ARM_REST, *ARM_REST]))}  # noqa: RUF012
    """Joint positions in the order of `JOINTS`."""

    @property
    def urdf_path(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return urdf_file()

    @property
    def _controller_configs(self) -> dict[str, Any]:
        parts: dict[str, Any] = {
            "base": PDBaseVelControllerConfig(
                list(BASE_JOINTS), [-0.5, -0.5, -3.14, -0.5], [0.5, 0.5, 3.14, 0.5], damping=1000, force_limit=500
            )
        }
        for side in ("left", "right"):  # the order of the actions, not that of the state
            joint1, joint2 = finger_joints(side)
            follows: Any = {joint2: {"joint": joint1}}
            parts[f"{side}_arm"] = PDJointVelControllerConfig(
                arm_joints(side), -3.14, 3.14, damping=100, force_limit=100
            )
            parts[f"{side}_gripper"] = PDJointPosMimicControllerConfig(
                [joint1, joint2], -0.01, 0.04, 1000, 100, 100, mimic=follows
            )
        return {CONTROL_MODE: parts}

    @property
    def _sensor_configs(self) -> list[BaseSensorConfig]:
        """Three cameras two metres above the base, 120 degrees apart, looking down by 45 degrees."""
        turns = (
            [0.9238795, 0.0, 0.3826834, 0.0],
            [0.46193977, 0.33141357, 0.19134172, -0.80010315],
            [-0.46193977, 0.33141357, -0.19134172, -0.80010315],
        )
        return [
            CameraConfig(
                uid=f"overhead_camera_{i}",
                pose=Pose.create(sapien.Pose([0, 0, 2], q)),
                width=125,
                height=50,
                fov=np.pi / 3,
                near=0.1,
                far=10,
                entity_uid="mobile_base",
            )
            for i, q in enumerate(turns)
        ]

    def _after_init(self) -> None:
        links = self.robot.links_map
        links["adjustable_body"].set_collision_group_bit(group=2, bit_idx=GROUND_BIT, bit=1)
        self.tcp = {side: links[f"{side}_panda_hand_tcp"] for side in SIDES}
        self._fingers: list[Link] = [links[f"{side}_panda_{f}finger"] for side in SIDES for f in ("left", "right")]
        here = [j.name for j in self.robot.active_joints]
        self._to_state = torch.tensor([here.index(name) for name in JOINTS], device=self.device)
        self._from_state = torch.argsort(self._to_state)

    def set_joints(self, qpos: torch.Tensor) -> None:
        """Joint positions (B, 22) in the order of `JOINTS`, for the environments that are being reset."""
        self.robot.set_qpos(qpos[:, self._from_state])

    def get_proprioception(self) -> dict[str, torch.Tensor]:
        """44 numbers: lift and arms (19), their velocities (19), base x y, its angle, and the velocities of both."""
        qpos, qvel = self.robot.get_qpos()[:, self._to_state], self.robot.get_qvel()[:, self._to_state]
        return {
            "qpos": qpos[:, 3:],
            "qvel": qvel[:, 3:],
            "base_pos": qpos[:, :2],
            "base_orientation": qpos[:, 2:3],
            "base_vel": qvel[:, :2],
            "base_ang_vel": qvel[:, 2:3],
        }

    def base_pose(self) -> torch.Tensor:
        """(B, 7): position on the ground and quaternion."""
        x, y, angle = self.robot.get_qpos()[:, self._to_state[:3]].unbind(dim=1)
        zero = torch.zeros_like(x)
        return torch.stack([x, y, zero, torch.cos(angle / 2), zero, zero, torch.sin(angle / 2)], dim=1)

    def fingertips(self) -> torch.Tensor:
        """Positions (B, 12) in ManiSkill2's order: right arm's right and left finger, left arm's right and left."""
        tip = Pose.create_from_pq(torch.tensor([TIP], device=self.device))
        tips = [(finger.pose * tip).p for finger in self._fingers]
        return torch.cat([tips[1], tips[0], tips[3], tips[2]], dim=1)

    def fingertip_velocities(self) -> torch.Tensor:
        """Velocities (B, 12) of the fingers' links, in ManiSkill2's other order: left before right in each arm."""
        return torch.cat([finger.linear_velocity for finger in self._fingers], dim=1)
