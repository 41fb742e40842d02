"""How well base policies imitate the same demonstrations, before anything is refined (paper Tables 10 and 11).

    python -m policy_decorator.experiments.imitation adroit/door --data DATA --seeds 0 1 2 --jobs 2

`results/imitation/` holds summary.csv (a line per training), curves.csv (loss and success over gradient steps) and
provenance.json. What they hold is not trained again. A seed is the training's; the demonstrations are the same for all.
"""

import csv
import shlex
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from policy_decorator import machine
from policy_decorator.base_policies import POLICIES
from policy_decorator.base_policies.checkpoint import load_policy, save_policy
from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.disk import atomic_csv, atomic_json, read_json
from policy_decorator.envs import get_task
from policy_decorator.envs.vector import make_vector
from policy_decorator.errors import lookup, or_exit
from policy_decorator.evaluation import TEST, run_episodes
from policy_decorator.experiments.bases import (
    BOUNDED,
    DOOR,
    PEN,
    STACK_CUBE,
    BaseConfig,
    kept_demonstrations,
    train_base,
)
from policy_decorator.experiments.side_by_side import side_by_side, spawn
from policy_decorator.hardware import choose_device, name_of
from policy_decorator.progress import Bars
from policy_decorator.provenance import provenance
from policy_decorator.statistics import wilson

TEST_EPISODES, TEST_ENVS = 100, 10
TRAINED = "trained.json"
"""In a folder of `runs`: how its policy was trained."""


def _trained(base: BaseConfig, policy: str, net: Mapping[str, Any], steps: int, **training: Any) -> BaseConfig:
    """A policy with its own settings but for what is given, evaluated on 50 episodes."""
    how = {"schedule": "cosine", "eval_every": steps // 4, "eval_episodes": 50, **training}
    net = {"standardize_obs": True, **net} if policy != "mlp" else net
    training_of = replace(POLICIES[policy].training, steps=steps, **how)
    return replace(base, policy=policy, net=net, training=training_of, evaluate=True)


# What half an hour of one core can do. Tables 5 and 7 have batches of 1024 and 2048 and up to 200,000 steps. Here the
# learning rate falls, states are standardised and noisy, and networks are smaller (but for Door's BeT), so that more
# windows are seen. Door's BeT forgets again what it had learned in 1,000 steps, but for noise and a running mean. Most
# of its demonstrations end before the door is wide open: what is behind their end is left out.
PAPER_BET: Mapping[str, Any] = {
    "batch_size": 128, "lr": 5e-4, "warmup_steps": 250, "obs_noise": 0.2, "ema": 0.99, "eval_every": 250
}  # fmt: skip
LARGE_BATCHES = {**PAPER_BET, "batch_size": 2_048, "eval_every": 1_000}
"""Table 5's, for a GPU."""
DENOISING = {
    "context": 2,
    "horizon": 16,
    "chunk": 4,
    "network": "mlp",
    "mlp_width": 512,
    "step_size": 32,
    "diffusion_steps": 100,
    "prediction": "sample",
    "ddim_steps": 10,
}
"""DPPO's network, of which a step costs far less than the U-Net's. It predicts the actions: one that predicts noise has
hardly learned to make precise actions of it when time is up."""
U_NET: Mapping[str, Any] = {**DENOISING, "network": "unet", "step_size": 64}
"""The paper's network, of the released code's 4 million parameters; for a GPU."""
LONG: Mapping[str, Any] = {"lr": 1e-3, "warmup_steps": 500, "ema": 0.999}
DIFFUSION: Mapping[str, Any] = {
    "lr": 1e-3, "warmup_steps": 100, "ema": 0.995, "batch_size": 256, "betas": (0.95, 0.999), "weight_decay": 1e-6
}  # fmt: skip
DOOR_DIFFUSION: Mapping[str, Any] = {**DIFFUSION, "obs_noise": 0.1, "pad_end": False, "eval_every": 750}

IMITATIONS: Mapping[str, Mapping[str, BaseConfig]] = {
    "adroit/door": {
        "BeT": _trained(DOOR, "bet", {}, 1_500, **PAPER_BET),
        "BeT, bounded": _trained(DOOR, "bet", BOUNDED, 1_500, **PAPER_BET),
        "BeT, batch 2048": _trained(DOOR, "bet", {}, 3_000, **LARGE_BATCHES),
        "BeT, Table 5": _trained(DOOR, "bet", {"standardize_obs": False}, 5_000, schedule="constant", eval_every=1_000),
        "Diffusion": _trained(DOOR, "diffusion", DENOISING, 6_000, **DOOR_DIFFUSION),
        "Diffusion, U-Net": _trained(DOOR, "diffusion", U_NET, 6_000, **DOOR_DIFFUSION),
    },
    "adroit/pen": {"BeT": PEN, "BeT, bounded": replace(PEN, net={**PEN.net, **BOUNDED})},
    "maniskill/stack-cube": {
        "MLP": _trained(STACK_CUBE, "mlp", {}, 20_000, **LONG, batch_size=256, obs_noise=0.05),
        "BeT": STACK_CUBE,
        "Diffusion": _trained(STACK_CUBE, "diffusion", DENOISING, 40_000, **DIFFUSION, obs_noise=0.05),
    },
}
"""Task -> name -> what is trained."""

KEY = ("task", "policy", "seed")
MEASURED = (
    "demonstrations", "parameters", "steps", "batch_size", "best_step", "validation_success", "test_success",
    "test_low", "test_high", "test_episodes", "wall_seconds", "device", "git_revision", "git_dirty",
)  # fmt: skip
CURVES = (*KEY, "step", "metric", "value")
Key = tuple[str, ...]


@dataclass(frozen=True)
class ImitationConfig:
    tasks: tyro.conf.Positional[tuple[str, ...]] = tuple(IMITATIONS)
    """adroit/door, adroit/pen, maniskill/stack-cube; none given: all."""
    policies: tuple[str, ...] = ()
    """The trainings of these names; none given: all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    jobs: int = 1
    """Trainings side by side; give each its own core with OMP_NUM_THREADS=1."""
    data: Path = Path("data")
    """Where `adroit/door-v0_demos.pickle` and `adroit/pen_expert.npz` are."""
    runs: Path = Path("runs")
    """Where demonstrations and policies go."""
    results: Path = Path("results")
    """Where the tables go."""
    device: str = "cpu"
    """cpu, cuda, or auto: where policies are trained."""
    test: bool = True
    """With --no-test policies are trained only, as on a GPU whose time is dear; the same command without it tests."""
    only: tuple[str, str, int] | None = None
    """Make this one (task, policy, seed) and nothing else; used for the processes of `jobs`."""


def main(cfg: ImitationConfig) -> None:
    """Raises UserError: an unknown task, a missing file; SystemExit: trainings that failed."""
    if cfg.only is not None:
        train_one(cfg, *cfg.only)
        return
    trainings = {task: lookup("task of the imitation study", task, IMITATIONS) for task in cfg.tasks}
    for policy in cfg.policies:
        lookup("policy of these tasks", policy, {name: it for of in trainings.values() for name, it in of.items()})
    wanted = [
        (task, policy, seed)
        for seed in cfg.seeds
        for task, policies in trainings.items()
        for policy in policies
        if not cfg.policies or policy in cfg.policies
    ]
    for task in cfg.tasks:  # once, before several processes want them
        _demonstrations(cfg, next(iter(IMITATIONS[task].values())))
    known = _read(cfg.results / "imitation" / "summary.csv")
    todo = [w for w in wanted if tuple(map(str, w)) not in known and not (_folder(cfg, *w) / "result.json").exists()]
    side_by_side(todo, cfg.jobs, lambda one: _spawn(cfg, one), lambda: collect(cfg))


def train_one(cfg: ImitationConfig, task: str, policy: str, seed: int) -> None:
    """Train, keep the best checkpoint on validation episodes, and test that one.

    Raises UserError: a device that is not there.
    """
    base, display, out = IMITATIONS[task][policy], Bars(), _folder(cfg, task, policy, seed)
    if not (out / TRAINED).exists():
        _train(cfg, base, seed, out, display)
    if not cfg.test:
        return
    trained, started, network = read_json(out / TRAINED), time.monotonic(), load_policy(out)
    machine.use_cpu_well(torch.device("cpu"))
    env = make_vector(get_task(task), TEST_ENVS, context=network.context, chunk=network.chunk)
    with display.stage("testing", TEST_EPISODES) as update:
        tested = run_episodes(env, network, TEST_EPISODES, TEST, update)
    env.close()
    low, high = wilson(int(tested.success.sum()), TEST_EPISODES)
    measured = trained["measured"]
    if measured["wall_seconds"] is not None:
        measured["wall_seconds"] = round(measured["wall_seconds"] + time.monotonic() - started, 1)
    measured |= {"test_success": tested.rate, "test_low": low, "test_high": high, "test_episodes": TEST_EPISODES}
    atomic_json(out / "result.json", trained)


def _train(cfg: ImitationConfig, base: BaseConfig, seed: int, out: Path, display: Bars) -> None:
    """A policy's folder, with how it came about."""
    device, started, checkpoint = choose_device(cfg.device), time.monotonic(), out / "checkpoint.pt"
    demos, resumed = _demonstrations(cfg, base), checkpoint.exists()
    result = train_base(base, demos, seed, display, checkpoint=checkpoint, device=device)
    git, network = provenance(seed)["git"], result.policy
    measured = {
        "demonstrations": demos.episodes,
        "parameters": sum(p.numel() for p in network.parameters()),  # pyright: ignore[reportAttributeAccessIssue]
        "steps": base.training.steps,
        "batch_size": base.training.batch_size,
        "best_step": result.best_step,
        "validation_success": result.best_success,
        "wall_seconds": None if resumed else round(time.monotonic() - started, 1),
        "device": name_of(device),
        "git_revision": git.get("revision"),
        "git_dirty": git.get("dirty"),
    }
    save_policy(result.policy, out, details={"task": base.task, "demonstrations": demos.describe(), "seed": seed})
    atomic_json(out / TRAINED, {"measured": measured, "history": result.history})
    checkpoint.unlink(missing_ok=True)


def collect(cfg: ImitationConfig) -> None:
    """Tables of all that was trained, here or before."""
    out = cfg.results / "imitation"
    summary, curves = _read(out / "summary.csv"), _read(out / "curves.csv")
    for folder in sorted((cfg.runs / "imitation").glob("*/*/result.json")):
        task, policy, seed = _key(folder.parent)
        made = read_json(folder)
        summary[task, policy, seed] = [[task, policy, seed, *(made["measured"][name] for name in MEASURED)]]
        curves[task, policy, seed] = [
            [task, policy, seed, int(row["step"]), name, row[name]]
            for row in made["history"]
            for name in ("loss", "success")
            if name in row
        ]
    if not summary:
        return
    out.mkdir(parents=True, exist_ok=True)
    order = sorted(summary)
    atomic_csv(out / "summary.csv", (*KEY, *MEASURED), [row for key in order for row in summary[key]])
    atomic_csv(out / "curves.csv", CURVES, [row for key in order for row in curves[key]])
    seeds = " ".join(sorted({key[2] for key in order}, key=int))
    tasks = " ".join(dict.fromkeys(key[0] for key in order))
    policies = shlex.join(dict.fromkeys(key[1] for key in order))
    record = {name: x for name, x in provenance(None).items() if name not in ("argv", "git", "seed")}
    command = (
        f"python -m policy_decorator.experiments.imitation {tasks} --policies {policies} --data DATA --seeds {seeds}"
    )
    revisions = sorted({str(summary[key][0][-2]) for key in order})
    atomic_json(out / "provenance.json", {"command": command, "git_revisions": revisions} | record)


def _read(path: Path) -> dict[Key, list[list[Any]]]:
    """The lines of a table by the training they are of."""
    found: dict[Key, list[list[Any]]] = {}
    if path.exists():
        with path.open(newline="") as file:
            for row in list(csv.reader(file))[1:]:
                found.setdefault(tuple(row[: len(KEY)]), []).append(row)
    return found


def _demonstrations(cfg: ImitationConfig, base: BaseConfig) -> Demonstrations:
    return kept_demonstrations(base, 0, cfg.data, cfg.runs / "bases", Bars(), processes=cfg.jobs)


def _folder(cfg: ImitationConfig, task: str, policy: str, seed: int) -> Path:
    return cfg.runs / "imitation" / task.replace("/", "-") / f"{policy}-{seed}"


def _key(folder: Path) -> Key:
    policy, _, seed = folder.name.rpartition("-")
    (task,) = [task for task in IMITATIONS if task.replace("/", "-") == folder.parent.name]
    return task, policy, seed


def _spawn(cfg: ImitationConfig, one: Iterable[Any]) -> int:
    how = ("--data", cfg.data, "--runs", cfg.runs, "--device", cfg.device, "--test" if cfg.test else "--no-test")
    return spawn("policy_decorator.experiments.imitation", *how, "--only", *one)


if __name__ == "__main__":
    torch.set_num_threads(1)
    or_exit(lambda: main(tyro.cli(ImitationConfig)))
