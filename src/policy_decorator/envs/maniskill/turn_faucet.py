"""ManiSkill's TurnFaucet with the faucets and the state of the paper, and with procedural faucets.

state (43,) = qpos 9, qvel 9, pose of the robot's base 7, pose of the tool 7, angle to turn in all 1, axis of the
hinge 3, centre of mass of the switch at reset 3 and now 3, angle left 1. Poses are xyz and quaternion wxyz; the axis
is a direction, where it passes is not in the state.
Source: ManiSkill2 0.5.3, TurnFaucet-v0 (40 numbers); the paper's TurnFaucet-v2 adds where the switch is now.

Importing this module imports ManiSkill and registers the environments with it.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import sapien
import torch
from mani_skill import PACKAGE_ASSET_DIR
from mani_skill.envs.sapien_env import BaseEnv
from mani_skill.envs.tasks.tabletop.turn_faucet import TurnFaucetEnv
from mani_skill.envs.utils.randomization import random_quaternions
from mani_skill.sensors.camera import CameraConfig
from mani_skill.utils.building.articulations import partnet_mobility
from mani_skill.utils.geometry.rotation_conversions import axis_angle_to_matrix
from mani_skill.utils.registration import register_env
from mani_skill.utils.sapien_utils import look_at
from mani_skill.utils.structs.pose import Pose

from policy_decorator.envs.maniskill import faucets, partnet
from policy_decorator.envs.maniskill.rebuilt import Rebuilt
from policy_decorator.errors import lookup

FAMILIES = {
    "partnet-source": "TurnFaucetSource-v1",
    "partnet-target": "TurnFaucetTarget-v1",
    "procedural-source": "TurnProceduralFaucetSource-v1",
    "procedural-target": "TurnProceduralFaucetTarget-v1",
}
"""The environments registered here: family of faucets -> id."""
# Not as in ManiSkill 3, where the hand starts where faucets stand, and inside tall ones.
START = (0.0, -0.785, 0.0, -2.356, 0.0, 1.57, 0.785, 0.0, 0.0)
"""rad, and m for the fingers: the arm in ManiSkill2."""
BASE_X = -0.56
"""m, where the robot stands in ManiSkill2."""


class Faucets(Rebuilt, TurnFaucetEnv):
    """One of `FAMILIES`. Each reset draws a faucet, one of its switches, and where it stands, from the seed.

    On GPU simulation, and with more than one environment, the faucets are drawn at the first reset and stay, as
    ManiSkill does it; a later reset moves them only. Where images are asked for, the robot carries a camera.
    """

    def __init__(
        self,
        *args: Any,
        family: str,
        robot_uids: str | None = None,
        robot_init_qpos_noise: float = 0.02,
        reconfiguration_freq: int | None = None,
        num_envs: int = 1,
        **kwargs: Any,
    ) -> None:
        self.robot_init_qpos_noise = robot_init_qpos_noise
        self.train_info = load_faucets(family)
        self.all_model_ids = np.array(list(self.train_info))
        if robot_uids is None:
            robot_uids = "panda" if kwargs.get("obs_mode") == "state" else "panda_wristcam"
        if reconfiguration_freq is None:
            reconfiguration_freq = 1 if num_envs == 1 else 0
        # Past TurnFaucetEnv, whose constructor only reads its own list of faucets.
        BaseEnv.__init__(
            self,
            *args,
            robot_uids=robot_uids,  # pyright: ignore[reportArgumentType]
            reconfiguration_freq=reconfiguration_freq,
            num_envs=num_envs,
            **kwargs,
        )

    @property
    def _default_human_render_camera_configs(self) -> CameraConfig:
        """Nearer than ManiSkill's, which looks over the faucet at the arm."""
        pose = look_at([-0.32, 0.36, 0.36], [-0.05, 0.0, 0.13])
        return CameraConfig("render_camera", pose=pose, width=512, height=512, fov=0.75, near=0.01, far=10)

    def _load_scene(self, options: dict[str, Any]) -> None:
        super()._load_scene(options)
        self.start_qpos = torch.zeros(self.num_envs, self.faucet.max_dof, device=self.device)
        rows = torch.arange(self.num_envs, device=self.device)
        self.start_qpos[rows, self.target_switch_link.joint.active_index.long()] = self.init_angle
        self.target_link_pos = torch.zeros(self.num_envs, 3, device=self.device)
        self.stand_at: Any = self.model_offsets  # (num_envs, 3), of which only z counts

    def _initialize_episode(self, env_idx: torch.Tensor, options: dict[str, Any]) -> None:
        """Like ManiSkill's, but right for resets of some environments only, and the switch starts closed."""
        with torch.device(self.device):
            self.scene_builder.initialize(env_idx)
            b = len(env_idx)
            noise = torch.randn(b, len(START)) * self.robot_init_qpos_noise
            noise[:, -2:] = 0
            self.agent.reset(torch.tensor(START) + noise)
            self.agent.robot.set_pose(sapien.Pose([BASE_X, 0, 0]))
            p = self.stand_at[env_idx].clone()
            p[:, :2] = torch.rand(b, 2) * 0.1 - 0.05
            q = random_quaternions(b, lock_x=True, lock_y=True, bounds=(-torch.pi / 12, torch.pi / 12))
            self.faucet.set_pose(Pose.create_from_pq(p, q))  # pyright: ignore[reportArgumentType]
            self.faucet.set_qpos(self.start_qpos[env_idx])
        if self.gpu_sim_enabled:  # no step: other environments are in the middle of their episodes
            self.scene._gpu_apply_all()
            self.scene.px.gpu_update_articulation_kinematics()  # pyright: ignore[reportAttributeAccessIssue]
            self.scene._gpu_fetch_all()
        self._note_layout(env_idx)

    def set_state_dict(self, state: dict[str, Any], env_idx: Any = None) -> None:
        super().set_state_dict(state, env_idx)
        self._note_layout(slice(None) if env_idx is None else env_idx)

    def _note_layout(self, rows: Any) -> None:
        """The facts of an episode that are in every observation of it, from where its faucet is now."""
        hinge = self.target_switch_link.joint.get_global_pose().to_transformation_matrix()
        axis, origin = hinge[:, :3, 0], hinge[:, :3, 3]
        back = axis_angle_to_matrix(axis * (self.init_angle - self.current_angle)[:, None])
        start = origin + (back @ (self.switch_pos() - origin)[:, :, None])[:, :, 0]
        self.target_joint_axis[rows], self.target_link_pos[rows] = axis[rows], start[rows]

    def switch_pos(self) -> torch.Tensor:
        """(num_envs, 3) m, centre of mass of the switch to be turned."""
        return (self.target_switch_link.pose * self.target_switch_link.cmass_local_pose).p

    def _get_obs_agent(self) -> dict[str, Any]:
        return {**super()._get_obs_agent(), "base_pose": self.agent.robot.pose.raw_pose}

    def _get_obs_extra(self, info: dict[str, Any]) -> dict[str, Any]:
        theirs = super()._get_obs_extra(info)
        left = {k: theirs.pop(k) for k in ("angle_dist",) if k in theirs}  # last, and in state mode only
        return {**theirs, "curr_target_link_pos": self.switch_pos(), **left}


for _family, _env_id in FAMILIES.items():
    register_env(_env_id, max_episode_steps=200, family=_family)(Faucets)


def load_faucets(family: str) -> dict[str, dict[str, Any]]:
    """What ManiSkill wants to know of each faucet of a family, by id; from now on its loader finds them all.

    Raises:
        UserError: there is no such family, a faucet of PartNet-Mobility is missing, or the procedural ones cannot be
            written.
    """
    lookup("family of faucets", family, FAMILIES)
    kind, split = family.split("-")
    if kind == "partnet":
        paths = partnet.find(partnet.FAUCETS, getattr(partnet.FAUCETS, split))
        info = {name: partnet_info()[name] for name in paths}
    else:
        written = faucets.write_all(faucets.SPLITS[split])
        paths = {name: path / "mobility_cvx.urdf" for name, path in written.items()}
        info = {name: json.loads((path / "info.json").read_text("utf-8")) for name, path in written.items()}
    _tell_loader(info, paths)
    return info


def partnet_info() -> dict[str, dict[str, Any]]:
    """ManiSkill's own list of the faucets of PartNet-Mobility."""
    return json.loads((PACKAGE_ASSET_DIR / "partnet_mobility/meta/info_faucet_train.json").read_text("utf-8"))


def _tell_loader(info: Mapping[str, Any], paths: Mapping[str, Path]) -> None:
    if partnet_mobility.PARTNET_MOBILITY is None:
        with contextlib.suppress(RuntimeError):  # nothing is downloaded; what it knows without is loaded all the same
            partnet_mobility._load_partnet_mobility_dataset()
    known: Any = partnet_mobility.PARTNET_MOBILITY
    known["model_data"].update(info)
    known["model_urdf_paths"].update(paths)
