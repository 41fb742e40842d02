"""Faucets and chairs of PartNet-Mobility (Xiang et al. 2020), which nobody may hand on: a user downloads them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from policy_decorator.errors import UserError

FILES = ("mobility_cvx.urdf", "mobility_fixed.urdf")


@dataclass(frozen=True)
class Collection:
    """What of it a task uses: demonstrations are of the source, online learning is on the target (paper App. A.1)."""

    what: str
    source: tuple[str, ...]
    target: tuple[str, ...]
    how: str
    """How to get them."""
    instead: str
    """The task that needs no download."""


FAUCETS = Collection(
    what="faucets",
    source=("5002", "5021", "5023", "5028", "5029", "5045", "5047", "5051", "5056", "5063"),
    target=("5014", "5037", "5053", "5062"),
    how="with `python -m mani_skill.utils.download_asset partnet_mobility_faucet`",
    instead="maniskill/turn-procedural-faucet",
)
CHAIRS = Collection(
    what="chairs",
    source=("3022", "3027", "3030", "3070", "3076"),
    target=("3003", "3013", "3020"),
    how="from ManiSkill2's asset group partnet_mobility_chair",
    instead="maniskill/push-procedural-chair",
)


def folder() -> Path:
    """Where ManiSkill keeps PartNet-Mobility: data/partnet_mobility/dataset below $MS_ASSET_DIR (~/.maniskill)."""
    root = os.environ.get("MS_ASSET_DIR") or Path.home() / ".maniskill"
    return Path(root) / "data" / "partnet_mobility" / "dataset"


def find(collection: Collection, models: Sequence[str]) -> dict[str, Path]:
    """The URDF of each model. UserError, naming what is missing and where it belongs, unless all are there."""
    found = {}
    for model in models:
        if path := next((file for name in FILES if (file := folder() / model / name).is_file()), None):
            found[model] = path
    if missing := [model for model in models if model not in found]:
        raise UserError(
            f"The {collection.what} {' '.join(missing)} of PartNet-Mobility are not in {folder()}: each needs a folder "
            f"of its number there, with {FILES[0]} (or {FILES[1]}) and its meshes. Get them {collection.how}, or set "
            f"MS_ASSET_DIR to the folder that holds data/partnet_mobility. {collection.instead} needs no download."
        )
    return found


def missing(collection: Collection, models: Sequence[str]) -> str | None:
    """What `find` would raise, as a text; None where all models are there."""
    try:
        find(collection, models)
    except UserError as error:
        return str(error)
    return None
