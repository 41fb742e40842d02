"""PushChair of ManiSkill2 on ManiSkill 3: two arms on a mobile base push a swivel chair to a place on the floor.

state (131,) = robot (44) | chair: root position and quaternion (7), velocities (6), joint positions (25, padded with
    zeros), joint velocities (25) | fingertips (12), their velocities (12). The place is the origin of the floor.
Facts (ranges, thresholds, parts of the state) from ManiSkill2 0.5.3. Imports mani_skill: import it where it is used.
"""

from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import sapien
import torch
from mani_skill.envs.sapien_env import BaseEnv
from mani_skill.sensors.camera import CameraConfig
from mani_skill.utils import sapien_utils
from mani_skill.utils.building import actors
from mani_skill.utils.building.ground import build_ground
from mani_skill.utils.geometry.rotation_conversions import (
    axis_angle_to_quaternion,
    quaternion_apply,
    quaternion_invert,
    quaternion_multiply,
)
from mani_skill.utils.registration import register_env
from mani_skill.utils.structs import Articulation, Link, Pose
from mani_skill.utils.structs.types import DefaultMaterialsConfig, GPUMemoryConfig, SimConfig
from torch import Tensor

from policy_decorator.envs.maniskill import chairs, partnet, partnet_chairs
from policy_decorator.envs.maniskill.mobile_panda import GROUND_BIT, MobilePandaDualArm
from policy_decorator.envs.maniskill.rebuilt import Rebuilt

NEAR, TILT = 0.15, 0.05 * np.pi
"""Success: distance of the chair's root from the target (metres) and of its axis from the vertical (radians)."""
SPEED, TURN_SPEED = 0.1, 0.2 * np.pi
"""Success: the root moved less than this over the last control step (m/s, rad/s)."""
MAX_JOINTS = 25
UP = (0.0, 0.0, 1.0)
FAMILIES = MappingProxyType(
    {
        ("partnet", "source"): (partnet_chairs.build, partnet_chairs.SOURCE),
        ("partnet", "target"): (partnet_chairs.build, partnet_chairs.TARGET),
        ("procedural", "source"): (chairs.build, chairs.SOURCE),
        ("procedural", "target"): (chairs.build, chairs.TARGET),
    }
)


@register_env("PushChairSource-v2", max_episode_steps=200, family="partnet", split="source")
@register_env("PushChair-v2", max_episode_steps=200, family="partnet", split="target")
@register_env("PushProceduralChairSource-v1", max_episode_steps=200, family="procedural", split="source")
@register_env("PushProceduralChair-v1", max_episode_steps=200, family="procedural", split="target")
class PushChairEnv(Rebuilt, BaseEnv):
    """One chair of the split per environment; without a GPU it is drawn anew, from the seed, at every reset."""

    SUPPORTED_ROBOTS = ["mobile_panda_dual_arm"]  # noqa: RUF012 (ManiSkill's own attributes)
    SUPPORTED_REWARD_MODES = ["sparse", "none"]  # noqa: RUF012
    agent: MobilePandaDualArm  # pyright: ignore[reportIncompatibleVariableOverride]
    chair: Any
    """One `Articulation` for all environments, though their chairs differ."""

    def __init__(
        self,
        *args: Any,
        family: str = "procedural",
        split: str = "source",
        robot_uids: str = "mobile_panda_dual_arm",
        num_envs: int = 1,
        reconfiguration_freq: int | None = None,
        **options: Any,
    ) -> None:
        self.build_chair, self.models = FAMILIES[family, split]
        if family == "partnet":
            partnet.find(partnet.CHAIRS, [str(model) for model in self.models])
        freq = int(num_envs == 1) if reconfiguration_freq is None else reconfiguration_freq
        super().__init__(*args, robot_uids=robot_uids, num_envs=num_envs, reconfiguration_freq=freq, **options)

    @property
    def _default_sim_config(self) -> SimConfig:
        # Differs from the paper: 100 simulation steps a second (ManiSkill 3), not 500 (ManiSkill 2); 20 actions both.
        memory = GPUMemoryConfig(max_rigid_contact_count=2**21, max_rigid_patch_count=2**19)
        floor = DefaultMaterialsConfig(static_friction=0.5, dynamic_friction=0.5, restitution=0)
        return SimConfig(spacing=10, gpu_memory_config=memory, default_materials_config=floor)

    @property
    def _default_human_render_camera_configs(self) -> CameraConfig:
        pose = sapien_utils.look_at([2.9, 2.9, 2.8], [0, 0, 0.3])
        return CameraConfig("render_camera", pose, 512, 512, 0.85, 0.01, 100)

    def _load_agent(
        self, options: dict[str, Any], initial_agent_poses: Any = None, build_separate: bool = False
    ) -> None:
        super()._load_agent(options, initial_agent_poses or sapien.Pose(), build_separate)

    def _load_scene(self, options: dict[str, Any]) -> None:
        ground = build_ground(self.scene, floor_width=40)
        ground.set_collision_group_bit(group=2, bit_idx=GROUND_BIT, bit=1)
        actors.build_sphere(
            self.scene, 0.15, [1, 0, 0, 1], "target", "static", add_collision=False, initial_pose=sapien.Pose()
        )
        # numpy's generators of the episodes: the same on every device.
        drawn = [int(model) for model in self._batched_episode_rng.choice(self.models)]
        loaded = [self.build_chair(self.scene, model, i) for i, model in enumerate(drawn)]
        for i, one in enumerate(loaded):
            self.remove_from_state_dict_registry(one.articulation)
            _resist(one, self._batched_episode_rng[i])
        self.chair = Articulation.merge([one.articulation for one in loaded], name="chair")
        self.add_to_state_dict_registry(self.chair)
        self.seat = Link.merge([one.articulation.links_map[one.seat] for one in loaded], name="seat")
        tensor = partial(torch.tensor, device=self.device)
        self._forward = tensor([one.forward for one in loaded])
        self._rest_pose = tensor([one.pose for one in loaded])
        self._order_joints(loaded)
        self._before = self._rest_pose.clone()

    def _order_joints(self, loaded: list[chairs.InScene]) -> None:
        """Where each entry of the padded state is in the simulator's order, and the resting positions in the latter."""
        order = torch.zeros(len(loaded), MAX_JOINTS, dtype=torch.long)
        there = torch.zeros(len(loaded), MAX_JOINTS, dtype=torch.bool)
        rest = torch.zeros(len(loaded), self.chair.max_dof)
        for i, one in enumerate(loaded):
            names = [joint.name for joint in one.articulation.active_joints]
            index = torch.tensor([names.index(joint) for joint in one.joints])
            order[i, : len(index)], there[i, : len(index)] = index, True
            rest[i, index] = torch.tensor(one.rest)
        self._order, self._there, self._rest = (x.to(self.device) for x in (order, there, rest))

    def _initialize_episode(self, env_idx: Tensor, options: dict[str, Any]) -> None:
        with torch.device(self.device):
            b = len(env_idx)
            angle = _uniform(b, -np.pi, np.pi)
            facing = angle - np.pi + _uniform(b, -0.4 * np.pi, 0.4 * np.pi)
            place = _uniform(b, 0.8, 1.2)[:, None] * _direction(angle)
            self._place_chair(env_idx, place, facing)
            behind = facing + np.pi + _uniform(b, -0.2 * np.pi, 0.2 * np.pi)
            base = place + _uniform(b, 0.8, 1.2)[:, None] * _direction(behind)
            turn = behind - np.pi + _uniform(b, -0.05 * np.pi, 0.05 * np.pi)
            qpos = torch.tensor(self.agent.keyframes["rest"].qpos, dtype=torch.float32).repeat(b, 1)
            qpos[:, :3] = torch.cat([base, turn[:, None]], dim=1)
            self.agent.robot.set_pose(sapien.Pose())
            self.agent.set_joints(qpos)

    def _place_chair(self, env_idx: Tensor, place: Tensor, facing: Tensor) -> None:
        """At rest on the floor, the seat facing that way (the root may be turned against the seat)."""
        rest = self._rest_pose[env_idx]
        self.chair.set_qpos(self._rest[env_idx])
        self.chair.set_pose(Pose.create(rest))
        if self.gpu_sim_enabled:  # the links follow the joints only then
            scene: Any = self.scene
            scene._gpu_apply_all()
            scene.px.gpu_update_articulation_kinematics()
            scene._gpu_fetch_all()
        x, y, _ = quaternion_apply(self.seat.pose.q[env_idx], self._forward[env_idx]).unbind(dim=1)
        turn = axis_angle_to_quaternion((facing - torch.atan2(y, x))[:, None] * torch.tensor(UP))
        position = torch.cat([place, rest[:, 2:3]], dim=1)
        pose = Pose.create_from_pq(position, quaternion_multiply(turn, rest[:, 3:]))
        self.chair.set_pose(pose)
        self._before[env_idx] = pose.raw_pose

    def _before_control_step(self) -> None:
        self._before = self.chair.pose.raw_pose.clone()

    def set_state_dict(self, state: dict[str, Any], env_idx: Any = None) -> None:
        super().set_state_dict(state, env_idx)
        rows = slice(None) if env_idx is None else env_idx
        self._before[rows] = self.chair.pose.raw_pose[rows]

    def evaluate(self) -> dict[str, Tensor]:
        """Movement is measured against the pose before the control step: asking twice changes nothing.

        In ManiSkill2's PushChair-v1 it does, which the paper's PushChair-v2 corrects; v2 is what is meant here.
        """
        pose = self.chair.pose
        distance = pose.p[:, :2].norm(dim=1)
        up = quaternion_apply(pose.q, torch.tensor(UP, device=self.device).expand_as(pose.p))
        tilt = torch.acos(up[:, 2].clamp(-1, 1))
        speed = (pose.p - self._before[:, :3]).norm(dim=1) * self.control_freq
        turn_speed = _angle(quaternion_multiply(quaternion_invert(self._before[:, 3:]), pose.q)) * self.control_freq
        near, upright = distance < NEAR, tilt < TILT
        static = (speed <= SPEED) & (turn_speed <= TURN_SPEED)
        return {
            "success": near & upright & static,
            "chair_near": near,
            "chair_upright": upright,
            "chair_static": static,
            "distance": distance,
            "tilt": tilt,
        }

    def _get_obs_agent(self) -> dict[str, Tensor]:
        obs = super()._get_obs_agent()
        return obs if self.obs_mode_struct.use_state else {**obs, "base_pose": self.agent.base_pose()}

    def _get_obs_extra(self, info: dict[str, Any]) -> dict[str, Tensor]:
        if not self.obs_mode_struct.use_state:
            return {f"{side}_tcp_pose": self.agent.tcp[side].pose.raw_pose for side in ("left", "right")}
        root = self.chair.root
        qpos, qvel = (
            torch.where(self._there, torch.gather(x, 1, self._order), 0.0)
            for x in (self.chair.get_qpos(), self.chair.get_qvel())
        )
        return {
            "chair": torch.cat([root.pose.raw_pose, root.linear_velocity, root.angular_velocity, qpos, qvel], dim=1),
            "fingers_pos": self.agent.fingertips(),
            "fingers_vel": self.agent.fingertip_velocities(),
        }


def _resist(chair: chairs.InScene, rng: Any) -> None:
    """Friction (a coefficient) and damping (N m s/rad) of every joint, drawn from ManiSkill2's ranges."""
    for joint in chair.articulation.active_joints:
        on_seat = joint.name in chair.seat_joints
        joint.set_friction(rng.uniform(*((0.05, 0.15) if on_seat else (0.0, 0.1))))
        joint.set_drive_properties(0, rng.uniform(*((5, 15) if on_seat else (0.0, 0.5))))


def _uniform(n: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(n)


def _direction(angle: Tensor) -> Tensor:
    return torch.stack([torch.cos(angle), torch.sin(angle)], dim=1)


def _angle(q: Tensor) -> Tensor:
    """Of the rotation (B, 4), in [0, pi]."""
    return 2 * torch.atan2(q[:, 1:].norm(dim=1), q[:, 0].abs())
