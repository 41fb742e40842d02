"""The studies that compare methods (paper Sec. 5.2, App. C, D.3): as many environment steps for each on every task.

Off-policy methods take batch, networks, update ratio, learning rates and the length of returns from `fast`, those that
learn with PPO from `ppo`. What makes a method what it is stays its own (`OffPolicyConfig.OWN`); what is of a residual,
such as the penalty that pulls it to the base, is Policy Decorator's and Residual RL's alone.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from policy_decorator.experiments.bases import BASES
from policy_decorator.experiments.entry import Entry
from policy_decorator.methods.cal_ql import LADDER
from policy_decorator.rl.cql import CQLConfig
from policy_decorator.rl.dipo import DIPOConfig
from policy_decorator.rl.dppo import DPPOConfig
from policy_decorator.rl.iql import IQLConfig
from policy_decorator.rl.ppo import PPOConfig

PEG = "metaworld/peg-insert-side"
STEPS = 30_000
"""Environment steps of every run: what some two hundred and fifty runs can have on a CPU."""
EPISODES: Mapping[str, Any] = {"eval_episodes": 20, "test_episodes": 50}
"""Of each evaluation and of the paired test, which would else take longer than the learning: seeds are averaged."""
OTHERS_ON = (PEG, "adroit/door", "maniskill/stack-cube")
DPPO_ON = ("robosuite/square", "robosuite/transport")
FINE_TUNING_ON = ("adroit/door", "adroit/pen")


def _entry(task: str, label: str, base: str = "", **settings: Any) -> Entry:
    run = {**EPISODES, "compile": "auto", **settings.pop("run", {})}
    train = {"log_every": 1_000, "eval_every": STEPS // 5, "save_every": 10_000, **settings.pop("train", {})}
    name = f"{task}-{base}" if base else task
    return Entry(name, label, total_steps=STEPS, run=run, train=train, **{"preset": "fast", **settings})


PPO: Mapping[str, Any] = {"preset": "ppo", "run": {"envs": 8}}
CONTROLLED: Mapping[str, Any] = {"bound": "auto", "horizon": "auto"}
"""Of Policy Decorator, as `fast` has it."""
OWN_EXPERIENCE: Mapping[str, Any] = {"demo_share": 0.0}
"""Of Policy Decorator in the paper: no demonstrations in its batches."""
UNCONTROLLED: Mapping[str, Any] = {"base_only_warmup": False, **OWN_EXPERIENCE}
"""Residual RL's warm-up is random, the first of two reasons for its collapse (App. G.1); all else is as Policy
Decorator without demonstrations has it."""
DPPO_ROUND = 1_600
"""Environment steps between its updates: eighteen rounds, of which two are the value function's. Its authors', for
whom millions of steps are few, are longer than a whole run here."""
DPPO_PPO = PPOConfig(epochs=10, minibatches=2, clip=0.01, target_kl=1.0)
"""Its authors', but for minibatches: theirs hold 10,000 denoising steps, these 1,000."""
DPPO_LR = 1e-5
"""Its authors' where a base acts by DDIM in five steps, as here; 1e-4 is for twenty of DDPM."""
OTHER_SPREADS = DPPOConfig(sampling_std=0.04, gamma_denoise=0.9)
"""Likewise. A floor of 0.1, which is for Square and Transport, takes most of the success of Door's base."""
SLOW: Mapping[str, Any] = {"eval_episodes": 15, "test_episodes": 30}
"""Episodes of robosuite's tasks, of which a step takes up to 50 ms and which last hundreds of steps."""


OFFLINE: Mapping[str, Any] = {"offline_updates": 5_000}
"""A quarter of Cal-QL's, in keeping with the environment steps."""
CRITIC_FIRST = 400
"""Updates of a warm start: of 6,250, as the paper's 0.2 of 3 million steps."""
HOT: Mapping[str, Any] = {"entropy_in_backup": True, "temperature": 0.03, "temperature_lr": 5 / CRITIC_FIRST}
"""The temperature as SAC has it, where it is what is asked about: the paper's 1 is for values of up to 33, 1 / (1 -
gamma), ours are at most 1. In a warm start it can move as far as the paper's: by a factor of e^5 (50,000 updates with a
rate of 1e-4)."""
CONSERVATIVE: Mapping[str, Any] = {**OFFLINE, "cql": CQLConfig(cql_samples=4)}
"""Fewer samples than the released code's: the actor is asked for each."""
SHARPER = IQLConfig(advantage_sharpness=30.0)
"""For advantages of rewards of 0 and 1, which are a hundredth of those of -1 and 0 (gamma 0.99)."""
STABLE_CRITICS: Mapping[str, Any] = {"critic_layer_norm": True}
"""Of whatever is fine-tuned, as Policy Decorator has it: without LayerNorm, as in the paper, those of DIPO diverged."""
TUNED: Mapping[str, Any] = {"lr": 1e-4}
"""Of whatever is fine-tuned: Table 9's learning rate."""
GENTLE: Mapping[str, Any] = {"dipo": DIPOConfig(action_lr=1e-4, action_steps=10)}
"""As DPPO's authors have DIPO on chunks of actions: its own 20 steps of 0.03 may move them by 0.6."""
FISH_OWN: Mapping[str, Any] = {"learner": "td3"}
"""With noise of 0.1 of its bound, as FISH's. Its rewards are a hundredth of success at a decision: SAC's entropy would
outweigh them."""


JUMP_STARTS = 20
"""Evaluations of a run of JSRL: at each the base may hand over earlier. The paper has sixty, of 10 steps each."""


def _jsrl(task: str) -> Entry:
    """Evaluated often, and first when it learns: `step_back` follows from how many evaluations there are."""
    every = STEPS // JUMP_STARTS
    return _entry(task, "JSRL", method="jsrl", train={"eval_every": every, "warmup_steps": every})


def _dppo(task: str, label: str = "DPPO", **run: Any) -> Entry:
    settings = {**PPO, "run": {**PPO["run"], **run}}
    chunk = BASES[f"{task}-diffusion"].net["chunk"]
    spreads = OTHER_SPREADS if task in OTHERS_ON else replace(OTHER_SPREADS, sampling_std=DPPOConfig.sampling_std)
    rollout = DPPO_ROUND // (PPO["run"]["envs"] * chunk)
    learn = {"ppo": replace(DPPO_PPO, rollout=rollout), "dppo": spreads}
    return _entry(task, label, base="diffusion", method="dppo", learn=learn, sac={"lr": DPPO_LR}, **settings)


def _others(task: str) -> tuple[Entry, ...]:
    """The comparison set of Sec. 5.2.2 and of App. C and D.3."""
    return (
        _entry(task, "Policy Decorator"),
        _entry(task, "Policy Decorator, no demonstrations", learn=OWN_EXPERIENCE),
        _entry(task, "Residual RL", method="residual-rl", learn=UNCONTROLLED),
        _jsrl(task),
        _entry(task, "GAIL", method="gail"),
        _entry(task, "FISH", base="vinn", method="fish", learn=FISH_OWN),
        _entry(task, "Policy Decorator, PPO", **CONTROLLED, **PPO),
        _entry(task, "Residual RL, PPO", method="residual-rl", learn=UNCONTROLLED, train={"warmup_steps": 0}, **PPO),
        _entry(task, "PPO fine-tuning", method="ppo-finetuning", **PPO),
        _entry(task, "Policy Decorator on Diffusion", base="diffusion"),
        _dppo(task),
    )


def _with_and_without_end(task: str) -> tuple[Entry, ...]:
    """Figs. 13 and 14: episodes end at success, or are of a fixed length.

    They last hundreds of steps. So Policy Decorator's H does not wait for measured success, and its gamma looks 500
    steps ahead (DPPO's: 1,000 chunks); its batches hold no demonstrations, as DPPO's do not. On Square its authors have
    an alpha of 0.05 (issue 3 of their repository), a third of what `auto` is.
    """
    fixed = {**SLOW, "ends_at_success": False}

    def ours(label: str, run: Mapping[str, Any], **bound: float) -> Entry:
        sac = {"gamma": 0.998}
        return _entry(task, label, base="diffusion", horizon=10_000, learn=OWN_EXPERIENCE, sac=sac, run=run, **bound)

    made = [
        ours("Policy Decorator", SLOW),
        _dppo(task, **SLOW),
        ours("Policy Decorator, fixed length", fixed),
        _dppo(task, "DPPO, fixed length", **fixed),
    ]
    if task == DPPO_ON[0]:
        made.append(ours("Policy Decorator, bound 0.05", SLOW, bound=0.05))
        made.append(ours("Policy Decorator, bound 0.05, fixed length", fixed, bound=0.05))
    return tuple(replace(entry, train={**entry.train, "eval_every": STEPS // 3}) for entry in made)


def _fine_tuning(task: str) -> tuple[Entry, ...]:
    """The methods of Sec. 5.2.1, on the base as the paper has them, and of Table 1, from scratch as their originals."""
    itself = {"actor": "base"}
    tuned: dict[str, Any] = {"base": "bounded", "nets": STABLE_CRITICS, "sac": TUNED}
    return (
        _entry(task, "Policy Decorator"),
        _entry(task, "Policy Decorator, no demonstrations", learn=OWN_EXPERIENCE),
        _entry(task, "SAC with LoRA", method="sac-lora", **tuned),
        _entry(task, "RLPD", method="rlpd", learn=itself, **tuned),
        _entry(task, "Cal-QL", method="cal-ql", learn={**CONSERVATIVE, **itself}, **tuned),
        _entry(task, "ROT", method="rot", **tuned),
        _entry(task, "ROT by LoRA", method="rot", learn={"learns": "lora"}, **tuned),
        _entry(task, "DIPO", method="dipo", learn=GENTLE, **{**tuned, "base": "diffusion-ahead"}),
        _entry(task, "RLPD from scratch", method="rlpd"),
        _entry(task, "Cal-QL from scratch", method="cal-ql", learn=CONSERVATIVE),
        _entry(task, "CQL", method="cql", learn=CONSERVATIVE),
        _entry(task, "SACfd", method="sacfd", learn={"mix": "share", "demo_share": 0.25}),
        _entry(task, "IQL", method="iql", learn={**OFFLINE, "iql": SHARPER}),
        _entry(task, "AWAC", method="awac", learn=OFFLINE),
        _entry(task, "DAPG", method="dapg", nets={"initial_std": 0.3}),  # as demonstrated actions of the hand vary
        _entry(task, "DAC", method="dac"),
    )


def _appendix_f(task: str, recorded: str) -> tuple[Entry, ...]:
    """Why fine-tuning fails: after few updates (F.2), by the critics' data (F.3), the horizon (F.4) and what critics
    are and learn first (F.5).

    In all but F.3 the actor learns at every update. F.3 is on a task whose demonstrations all succeed, so that only A's
    data hold failures: episodes of the base. All its rungs have single-decision returns, which A and B need. F.4 has
    the paper's 40, 100 and 120 steps, and 160: Door's base succeeds after 172 to 245. F.5.2 is about what the
    temperature does to the critics' targets, so it is in them, and begins as high as the paper's, with a warm start and
    without.
    """

    def sac(label: str, *, sac: Mapping[str, Any] = MappingProxyType({}), **learn: Any) -> Entry:
        every = {**TUNED, "actor_every": 1, **sac}
        return _entry(task, label, base="bounded", method="sac-lora", nets=STABLE_CRITICS, learn=learn, sac=every)

    def cal_ql(rung: str) -> Entry:
        learn, base = {**CONSERVATIVE, **LADDER[rung], "n_step": 1}, "mixed" if rung == "A" else "bounded"
        how: dict[str, Any] = {"nets": STABLE_CRITICS, "sac": TUNED if LADDER[rung].get("actor") == "base" else {}}
        return _entry(recorded, f"F.3: {rung}", base=base, method="cal-ql", learn=learn, **how)

    return (
        sac("SAC with LoRA", evaluate_after=(100, 200)),
        *(cal_ql(rung) for rung in LADDER),
        *(sac(f"F.4: after {steps} steps of the base", base_steps=steps) for steps in (40, 100, 120, 160)),
        *(sac(f"F.5.1: {critic}", critic=critic) for critic in ("gpt", "pretrained")),
        sac("F.5.2: no warm start", sac=HOT),
        *(
            sac(f"F.5.2: {how}", sac=HOT, critic_first=CRITIC_FIRST, entropy=how)
            for how in ("learned", "waits", "fixed")
        ),
    )


def _decorated(label: str, base: str, *, sees: bool = False) -> Entry:
    """Where pictures are seen, residual and critics see what the base makes of them: to a CNN of their own each of an
    update's pictures costs milliseconds of a core."""
    run = {"compile": "auto", **(EPISODES if sees else {"eval_episodes": 40})}
    learn = {"sees": "embedding"} if sees else {}
    return Entry(base, label, preset="fast", total_steps=25_000, train={"eval_every": 5_000}, run=run, learn=learn)


INTRODUCED_ON = (
    (PEG, 30_000),
    ("metaworld/assembly", 30_000),
    ("adroit/door", 60_000),
    ("adroit/pen", 60_000),
    ("maniskill/stack-cube", 30_000),
)
"""Tasks and environment steps."""
WAYS: Mapping[str, Mapping[str, Any]] = {
    "by chance": {"introduced_by": "chance"},
    "by scale": {"introduced_by": "scale"},
    "by scale, twice the bound": {"introduced_by": "scale", "bound_share": 1.4},
    "by chance, tolerance": {"bound": "tolerance"},
    "by scale, tolerance": {"introduced_by": "scale", "bound": "tolerance"},
}
"""What epsilon is: the probability with which the residual speaks, or its scale; and whose bound is not from the
demonstrations, but what noise the base bears. All else is as `fast` has it."""
INTRODUCED_BY = tuple(
    replace(_entry(task, label, learn=learn), total_steps=steps)
    for task, steps in INTRODUCED_ON
    for label, learn in WAYS.items()
)
BASE_POLICIES = (
    _decorated("MLP", PEG),
    _decorated("BeT", f"{PEG}-bet"),
    _decorated("BC-RNN", f"{PEG}-rnn"),
    _decorated("VINN", f"{PEG}-vinn"),
    _decorated("Diffusion", f"{PEG}-diffusion"),
    _decorated("Stable-Baselines3", f"{PEG}-sb3"),
    _decorated("served", f"{PEG}-served"),
    _decorated("CNN", f"{PEG}:rgb", sees=True),
    _decorated("Diffusion that sees", f"{PEG}:rgb-diffusion", sees=True),
)
"""Policy Decorator on every kind of base policy, of demonstrations of one task."""
OTHER_METHODS = tuple(entry for task in OTHERS_ON for entry in _others(task))
DPPO = tuple(entry for task in DPPO_ON for entry in _with_and_without_end(task))
FINE_TUNING = tuple(entry for task in FINE_TUNING_ON for entry in _fine_tuning(task))
APPENDIX_F = _appendix_f(*FINE_TUNING_ON)
