"""Where numbers come from: code revision, package versions, machine and command line."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PACKAGES = ("policy-decorator", "torch", "numpy", "scipy", "gymnasium", "mujoco", "metaworld", "scikit-learn")
PACKAGES += ("gymnasium-robotics", "minari", "h5py", "safetensors", "tensorboard", "matplotlib", "stable-baselines3")
PACKAGES += ("mani_skill", "sapien", "mplib", "robosuite", "tensordict", "diffusers", "peft", "POT", "accelerate")
PACKAGES += ("onnxruntime", "websockets", "msgpack", "lerobot", "robomimic")


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def git_state() -> dict[str, Any]:
    """Revision of the checkout this file is tracked in; nulls for an installed package, wherever it lies."""
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return {"revision": None, "dirty": None}
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {"revision": _git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """Its name as the system gives it; empty where it gives none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def gpus() -> dict[str, Any]:
    """The CUDA devices by name and CUDA's version; nulls where torch, which who computes has loaded, has none of it."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return {"gpus": None, "cuda": None}
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"gpus": names, "cuda": torch.version.cuda}


def versions_and_machine() -> dict[str, Any]:
    """What may be another one where a run is resumed."""
    return {
        "packages": _versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpu_count": os.cpu_count(),
        **gpus(),
    }


def now() -> str:
    """UTC, to the second (ISO 8601)."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def provenance(seed: int | None) -> dict[str, Any]:
    """What one needs to know to get the same numbers again."""
    return {
        "git": git_state(),
        **versions_and_machine(),
        "argv": sys.argv,
        "seed": seed,
        "started": now(),
    }
