"""Base policies as users bring them: a model of Stable-Baselines3, a policy in another process."""

import atexit
import re
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.envs.task import Task
from policy_decorator.errors import MissingExtra, UserError

STEPS, BATCH, LR = 4_000, 256, 1e-3


def sb3_model(task: Task, demos: Demonstrations, seed: int) -> Any:
    """A PPO of Stable-Baselines3 whose actor imitates the demonstrations. Raises MissingExtra without the library."""
    try:
        from stable_baselines3 import PPO
    except ImportError:
        raise MissingExtra("stable_baselines3", "bench") from None
    env = task.make_env(None)
    shape = {"net_arch": [256, 256], "activation_fn": nn.ReLU}
    model = PPO("MlpPolicy", env, policy_kwargs=shape, seed=seed, device="cpu")
    env.close()
    policy: Any = model.policy
    optimizer = torch.optim.Adam(policy.parameters(), lr=LR)
    obs, actions = torch.from_numpy(demos.observations), torch.from_numpy(demos.actions)
    for _ in range(STEPS):
        rows = torch.randint(len(obs), (BATCH,))
        loss = (policy.get_distribution(obs[rows]).mode() - actions[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def served(folder: Path) -> str:
    """The address of a process that answers for the policy in `folder`, and ends with this one.

    Raises UserError where it does not begin to.
    """
    command = [sys.executable, "-m", "policy_decorator.cli", "serve", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    atexit.register(process.terminate)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"ws://[\w.]+:\d+", line):
            threading.Thread(target=_passed_on, args=(process.stderr,), daemon=True).start()
            return found[0]
    raise UserError(f"`{' '.join(command)}` ended: {''.join(said)[-500:]}")


def _passed_on(lines: Iterable[str]) -> None:
    """What a process says goes to stderr: one that nobody listens to would wait when its pipe is full."""
    for line in lines:
        print(line, end="", file=sys.stderr)
