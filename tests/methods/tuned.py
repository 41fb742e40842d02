"""Poor base policies of toy/reach, trained in seconds, an expert's demonstrations, and an interrupted run."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from interrupted import Interrupted
from safetensors.torch import load_file
from torch import Tensor

from policy_decorator import api, snapshot
from policy_decorator.base_policies.bet import BehaviorTransformer, BeTConfig
from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.envs.toy import TASKS
from policy_decorator.methods import off_policy


def demonstrated(n: int, chunk: int) -> tuple[Tensor, Tensor]:
    """Observations (n, 4) and the actions (n, chunk, 2) of somebody who steers past the goal."""
    obs = torch.rand(n, 4) * 2 - 1
    near = torch.rand(n) < 0.5
    obs[near, :2] = obs[near, 2:] + 0.2 * torch.randn(int(near.sum()), 2)
    pos, goal = obs.chunk(2, dim=1)
    actions = []
    for _ in range(chunk):
        actions.append((2 * (goal - pos) + torch.tensor([0.24, 0.08])).clamp(-1, 1))
        pos = pos + 0.2 * actions[-1]
    return obs, torch.stack(actions, dim=1)


def imitated(policy: Any, steps: int, rows: int, lr: float) -> Any:
    """The policy, of a window of any length, after as many steps on `rows` demonstrated actions each."""
    optimizer = torch.optim.Adam(policy.parameters(), lr)
    for _ in range(steps):
        obs, actions = demonstrated(rows, getattr(policy, "horizon", policy.context))
        window = torch.stack([obs] * policy.context, dim=1)
        optimizer.zero_grad()
        policy.loss(window, actions).backward()
        optimizer.step()
    return policy.eval().requires_grad_(False)


def untrained_bet(**changes: Any) -> BehaviorTransformer:
    """A small Behavior Transformer whose offsets are bounded; it knows its clusters."""
    sizes: dict[str, Any] = {"context": 2, "clusters": 4, "layers": 1, "heads": 2, "width": 16, "gpt_output": 16}
    policy = BehaviorTransformer(BeTConfig(**sizes | {"dropout": 0.05, "bounded_offset": True} | changes), 4, 2)
    actions = demonstrated(500, 1)[1][:, 0].numpy()
    demos: Any = SimpleNamespace(actions=actions, observations=None)
    policy.fit_statistics(demos)
    return policy


def poor_bet(**changes: Any) -> Any:
    """The same after some imitation: it succeeds in a fifth of the episodes."""
    return imitated(untrained_bet(**changes), steps=300, rows=128, lr=3e-3)


class Faster:
    """Stands for compiled updates, and for those that are replayed."""

    def __init__(self, learner: Any, step: Any = None) -> None:
        self.learner, self.step = learner, step


def faster_by(build: Any, problem: Any, monkeypatch: Any) -> set[str]:
    """The ways, `compiled` and `cuda_graphs`, in which `build(problem)` makes its updates where the machine would."""
    for name in ("Compiled", "Captured"):
        monkeypatch.setattr(off_policy, name, Faster)
    ways: set[str] = set()
    for way in ("compiled", "cuda_graphs"):
        run = build(replace(problem, **{way: True}))
        updates = [run.update, *([run.offline.update] if run.offline else [])]
        assert all(x is None for x in updates) or all(isinstance(x, Faster) for x in updates)
        ways |= {way} if updates[0] else set()
    return ways


def left_behind(run: Path) -> dict[str, Any]:
    """What two runs must have in common that are one: their metrics, states and parameters."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    state = snapshot.read(run / "checkpoints" / "last.pt", torch.device("cpu"))
    saved = sorted((run / "refined").rglob("*.safetensors"))
    assert saved
    return {
        "metrics": [{key: value for key, value in line.items() if key != "wall_seconds"} for line in lines],
        "state": _plain(state),
        "policy": {str(path.relative_to(run)): _plain(load_file(path)) for path in saved},
    }


def _plain(x: Any) -> Any:
    if isinstance(x, Tensor):
        return str(x.dtype), tuple(x.shape), x.tolist()
    if isinstance(x, dict):
        return {key: _plain(value) for key, value in x.items()}
    return [_plain(value) for value in x] if isinstance(x, list | tuple) else x


def assert_resumed_is_as_uninterrupted(
    config: Any, base: Any, folder: Path, at: int, demos: Demonstrations | None = None
) -> dict[str, Any]:
    """And what is left behind. Raises AssertionError."""
    api.run(config, base, demos=demos, out=folder / "whole")
    try:
        api.run(config, base, demos=demos, out=folder / "cut", display=Interrupted(at))
    except KeyboardInterrupt:
        stopped = True
    else:
        stopped = False
    assert stopped
    torch.rand(7)  # whatever the new process has drawn
    api.run(replace(config), base, demos=demos, out=folder / "cut", resume=True)
    whole, cut = left_behind(folder / "whole"), left_behind(folder / "cut")
    for part, value in whole.items():
        assert value == cut[part], part
    return whole


def reaching(episodes: int, steps: int) -> Demonstrations:
    """The expert goes to the goal and stays."""
    task = TASKS["toy/reach"]
    assert task.make_expert is not None
    expert, env, rows = task.make_expert(), task.make_env(None), []
    for seed in range(500_000, 500_000 + episodes):
        obs, _ = env.reset(seed=seed)
        for _ in range(steps):
            action = expert(obs).astype(np.float32)
            following, *_, info = env.step(action)
            rows.append((obs, action, info["success"]))
            obs = following
    obs, actions, success = (np.array(column) for column in zip(*rows, strict=True))
    lengths, seeds = np.full(episodes, steps), np.arange(episodes)
    return Demonstrations("toy/reach", obs.astype(np.float32), actions, success, lengths, seeds, "expert", {})
