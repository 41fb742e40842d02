"""The studies that compare methods (paper Sec. 5.2, App. C, D.3): as many environment steps for each on every task.

Off-policy methods take batch, networks, update ratio and learning rates from `fast`; those that learn with PPO from
`ppo`. What makes a method what it is stays its own (`OffPolicyConfig.taking`).
"""

from collections.abc import Mapping
from typing import Any

from policy_decorator.experiments.entry import Entry
from policy_decorator.rl.cql import CQLConfig
from policy_decorator.rl.ppo import PPOConfig

PEG = "metaworld/peg-insert-side"
STEPS: Mapping[str, int] = {
    PEG: 40_000,
    "adroit/door": 80_000,
    "adroit/pen": 80_000,
    "maniskill/stack-cube": 80_000,
    "robosuite/square": 100_000,
    "robosuite/transport": 100_000,
}
"""Environment steps of every run."""
OTHERS_ON = (PEG, "adroit/door", "maniskill/stack-cube")
DPPO_ON = ("robosuite/square", "robosuite/transport")
FINE_TUNING_ON = ("adroit/door", "adroit/pen")


def _entry(task: str, label: str, base: str = "", **settings: Any) -> Entry:
    steps = STEPS[task]
    run = {"eval_episodes": 40, "compile": "auto", **settings.pop("run", {})}
    train = {"eval_every": steps // 8, **settings.pop("train", {})}
    name = f"{task}-{base}" if base else task
    return Entry(name, label, total_steps=steps, run=run, train=train, **{"preset": "fast", **settings})


PPO: Mapping[str, Any] = {"preset": "ppo", "run": {"envs": 8}}
SHORT_ROLLOUTS = PPOConfig(rollout=100, epochs=10, minibatches=20, clip=0.01, target_kl=1.0)
"""DPPO's own settings but for rollouts of a quarter of the length: its authors' steps are millions."""


OFFLINE: Mapping[str, Any] = {"offline_updates": 5_000}
"""A quarter of the originals', in keeping with the environment steps."""
CONSERVATIVE: Mapping[str, Any] = {**OFFLINE, "cql": CQLConfig(cql_weight=1.0, cql_samples=4)}
"""The released code's weight on Adroit, and fewer samples: the actor is asked for each."""


def _dppo(task: str, label: str = "DPPO", **run: Any) -> Entry:
    settings = {**PPO, "run": {**PPO["run"], **run}}
    return _entry(task, label, base="diffusion", method="dppo", learn={"ppo": SHORT_ROLLOUTS}, **settings)


def _others(task: str) -> tuple[Entry, ...]:
    """The comparison set of Sec. 5.2.2 and of App. C and D.3."""
    return (
        _entry(task, "Policy Decorator"),
        _entry(task, "Residual RL", method="residual-rl"),
        _entry(task, "JSRL", method="jsrl"),
        _entry(task, "GAIL", method="gail"),
        _entry(task, "FISH", base="vinn", method="fish"),
        _entry(task, "Policy Decorator, PPO", **PPO),
        _entry(task, "Residual RL, PPO", method="residual-rl", **PPO),
        _entry(task, "PPO fine-tuning", method="ppo-finetuning", **PPO),
        _entry(task, "Policy Decorator on Diffusion", base="diffusion"),
        _dppo(task),
    )


def _with_and_without_end(task: str) -> tuple[Entry, ...]:
    """Figs. 13 and 14: episodes end at success, or are of a fixed length."""
    fixed = "fixed length"
    return (
        _entry(task, "Policy Decorator", base="diffusion"),
        _dppo(task),
        _entry(task, f"Policy Decorator, {fixed}", base="diffusion", run={"ends_at_success": False}),
        _dppo(task, f"DPPO, {fixed}", ends_at_success=False),
    )


def _fine_tuning(task: str) -> tuple[Entry, ...]:
    """The methods of Sec. 5.2.1, on the base as the paper has them, and of Table 1, from scratch as their originals."""
    itself = {"actor": "base"}
    return (
        _entry(task, "Policy Decorator"),
        _entry(task, "SAC with LoRA", base="bounded", method="sac-lora"),
        _entry(task, "RLPD", base="bounded", method="rlpd", learn=itself),
        _entry(task, "Cal-QL", base="bounded", method="cal-ql", learn={**CONSERVATIVE, **itself}),
        _entry(task, "ROT", method="rot"),
        _entry(task, "DIPO", base="diffusion", method="dipo"),
        _entry(task, "RLPD from scratch", method="rlpd"),
        _entry(task, "Cal-QL from scratch", method="cal-ql", learn=CONSERVATIVE),
        _entry(task, "CQL", method="cql", learn=CONSERVATIVE),
        _entry(task, "SACfd", method="sacfd"),
        _entry(task, "IQL", method="iql", learn=OFFLINE),
        _entry(task, "AWAC", method="awac", learn=OFFLINE),
        _entry(task, "DAPG", method="dapg"),
        _entry(task, "DAC", method="dac"),
    )


BASE_POLICIES = tuple(
    Entry(
        base,
        label,
        preset="fast",
        total_steps=25_000,
        train={"eval_every": 5_000},
        run={"eval_episodes": 40, "compile": "auto"},
    )
    for label, base in {
        "MLP": PEG,
        "BeT": f"{PEG}-bet",
        "BC-RNN": f"{PEG}-rnn",
        "VINN": f"{PEG}-vinn",
        "Diffusion": f"{PEG}-diffusion",
        "Stable-Baselines3": f"{PEG}-sb3",
        "served": f"{PEG}-served",
        "CNN": f"{PEG}:rgb",
        "Diffusion that sees": f"{PEG}:rgb-diffusion",
    }.items()
)
"""Policy Decorator on every kind of base policy, of demonstrations of one task."""
OTHER_METHODS = tuple(entry for task in OTHERS_ON for entry in _others(task))
DPPO = tuple(entry for task in DPPO_ON for entry in _with_and_without_end(task))
FINE_TUNING = tuple(entry for task in FINE_TUNING_ON for entry in _fine_tuning(task))
