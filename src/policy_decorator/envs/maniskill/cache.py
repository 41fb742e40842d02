"""Where files that are made for a simulator lie: nothing is written before one is needed."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """The folder `name` below $POLICY_DECORATOR_CACHE (or ~/.cache/policy_decorator), made where it is missing."""
    root = os.environ.get("POLICY_DECORATOR_CACHE") or Path.home() / ".cache" / "policy_decorator"
    folder = Path(root) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
