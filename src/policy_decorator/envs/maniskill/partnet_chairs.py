"""The paper's chairs: PartNet-Mobility models that a user has downloaded for ManiSkill.

Facts (scale, density, friction, what is wheel, seat and support) from ManiSkill2 0.5.3.
"""

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from functools import cache
from typing import Any

from policy_decorator.disk import read_json
from policy_decorator.envs.maniskill import partnet
from policy_decorator.envs.maniskill.chairs import BODY_FRICTION, DENSITY, WHEEL_FRICTION, InScene
from policy_decorator.envs.maniskill.partnet import CHAIRS

SOURCE, TARGET = (tuple(int(model) for model in models) for models in (CHAIRS.source, CHAIRS.target))
SCALE = 0.8
IGNORE_BIT = 31
"""Collision bit that seat and support share: their hulls overlap."""


def build(scene: Any, model: int, scene_idx: int) -> InScene:
    """The model in one of the scene's environments. UserError where its files are missing."""
    import sapien
    from mani_skill.utils import sapien_utils

    path = partnet.find(CHAIRS, [str(model)])[str(model)]
    robot = ET.parse(path).getroot()
    loader = scene.create_urdf_loader()
    loader.fix_root_link, loader.scale, loader.name = False, SCALE, f"chair_{model}-{scene_idx}"
    loader.load_multiple_collisions_from_file = True
    material = {"static_friction": BODY_FRICTION, "dynamic_friction": BODY_FRICTION, "restitution": 0}
    config = sapien_utils.parse_urdf_config({"material": material, "density": DENSITY})
    sapien_utils.apply_urdf_config(loader, config)
    builder = loader.parse(str(path))["articulation_builders"][0]
    info = _resting(model)
    pose = (*info["position"], *info["rotation"])
    builder.initial_pose = sapien.Pose(pose[:3], pose[3:])
    builder.set_scene_idxs([scene_idx])
    articulation = builder.build()
    wheel = sapien.physx.PhysxMaterial(WHEEL_FRICTION, WHEEL_FRICTION, 0)
    for name in _links(robot, "wheel"):
        for shape in articulation.links_map[name]._objs[0].collision_shapes:
            shape.physical_material = wheel
    (seat,) = _links(robot, "seat")
    support = _links(robot, "leg", "foot")
    if support != [seat]:
        for name in (seat, *support):
            articulation.links_map[name].set_collision_group_bit(group=2, bit_idx=IGNORE_BIT, bit=1)
    joints = {j.get("name", ""): j for j in _depth_first(robot) if j.get("type") != "fixed"}
    on_helper = tuple(name for name, joint in joints.items() if "helper" in _end(joint, "parent"))
    return InScene(articulation, tuple(joints), tuple(info["initial_qpos"]), pose, seat, (0.0, 0.0, 1.0), on_helper)


@cache
def _all_resting() -> dict[str, Any]:
    from mani_skill import PACKAGE_ASSET_DIR

    return read_json(PACKAGE_ASSET_DIR / "partnet_mobility" / "meta" / "info_chair_train.json")


def _resting(model: int) -> dict[str, Any]:
    return _all_resting()[str(model)]


def _links(robot: ET.Element, *parts: str) -> list[str]:
    """The links whose visual shapes carry one of these words in their names ("wheel-12")."""
    return [
        link.get("name", "")
        for link in robot.findall("link")
        if any(part in visual.get("name", "") for visual in link.findall("visual") for part in parts)
    ]


def _depth_first(robot: ET.Element) -> Iterator[ET.Element]:
    """Joints from the root on, depth first, in the order of the file: SAPIEN 2's, in which resting states are given."""
    joints = robot.findall("joint")
    children = {_end(joint, "child") for joint in joints}
    (root,) = (name for link in robot.findall("link") if (name := link.get("name", "")) not in children)

    def below(link: str) -> Iterator[ET.Element]:
        for joint in joints:
            if _end(joint, "parent") == link:
                yield joint
                yield from below(_end(joint, "child"))

    return below(root)


def _end(joint: ET.Element, which: str) -> str:
    end = joint.find(which)
    return "" if end is None else end.get("link", "")
