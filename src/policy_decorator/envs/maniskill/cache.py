"""Where files that are made for a simulator lie: nothing is written before one is needed."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """The folder `name`, which may be missing, below $POLICY_DECORATOR_CACHE, or else the user's cache folder."""
    own = os.environ.get("POLICY_DECORATOR_CACHE")
    shared = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(own) if own else shared / "policy_decorator") / name
