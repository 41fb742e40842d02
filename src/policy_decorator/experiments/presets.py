"""Named settings (`paper`, `quick`, `fast`, `ppo`), and the paper's bound and horizon per task (Table 8)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast

from policy_decorator.base_policies import POLICIES
from policy_decorator.config import RefineConfig
from policy_decorator.errors import UserError, lookup
from policy_decorator.methods import dapg, dipo, settings_of
from policy_decorator.methods.on_policy import OnPolicyConfig
from policy_decorator.methods.policy_decorator import Config, ResidualConfig
from policy_decorator.rl.nets import NetConfig
from policy_decorator.rl.sac import SACConfig
from policy_decorator.train import TrainConfig

TABLE_8: Mapping[tuple[str, str], tuple[float, int]] = {
    ("maniskill/stack-cube", "bet"): (0.03, 1_000_000),
    ("maniskill/peg-insertion-side", "bet"): (0.3, 8_000_000),
    ("maniskill/turn-faucet", "bet"): (0.2, 500_000),
    ("maniskill/push-chair", "bet"): (0.2, 4_000_000),
    ("adroit/door", "bet"): (0.3, 100_000),
    ("adroit/pen", "bet"): (0.3, 100_000),
    ("adroit/hammer", "bet"): (0.3, 100_000),
    ("adroit/relocate", "bet"): (0.2, 100_000),
    ("maniskill/peg-insertion-side", "diffusion"): (0.1, 30_000),
    ("maniskill/turn-faucet", "diffusion"): (0.1, 100_000),
    ("maniskill/push-chair", "diffusion"): (0.2, 300_000),
    ("adroit/pen", "diffusion"): (0.2, 100_000),
    ("adroit/hammer", "diffusion"): (0.1, 100_000),
    ("adroit/relocate", "diffusion"): (0.1, 300_000),
}
"""(task, base policy) -> (alpha, H), state observations; with a Diffusion Policy H counts decisions."""

TRAINED: Mapping[tuple[str, str], int] = {
    ("maniskill/peg-insertion-side", "bet"): 10_000_000,
    ("maniskill/push-chair", "bet"): 6_000_000,
    ("maniskill/peg-insertion-side", "diffusion"): 4_000_000,
    ("maniskill/turn-faucet", "diffusion"): 2_000_000,
    ("maniskill/push-chair", "diffusion"): 2_000_000,
}
"""(task, base policy) -> total steps of the released commands, where they are not 3 million; counted as H is."""

RELEASED_CHUNK = 4
"""Environment steps per decision of the released Diffusion Policy: what its script counts are decisions."""

SHORT_SIGHTED = {("maniskill/push-chair", "diffusion")}
"""Where gamma is 0.9: Table 9 gives "0.97/0.9" for ManiSkill without saying where, the released code 0.9 only here."""

QUICK_ADROIT: Mapping[str, tuple[float, int, int]] = {
    "adroit/door": (0.1, 50_000, 150_000),
    "adroit/pen": (0.4, 20_000, 200_000),
}
"""task -> (alpha, H, total steps) of `quick`; the careful one of the two where a task is not listed."""


@dataclass(frozen=True)
class Preset:
    name: str
    summary: str
    make: Callable[[str, str], RefineConfig]
    """(task, kind of base policy) -> settings."""
    alone_temperature_lr: float | None = None
    """Of methods whose actor acts alone; None: as the actor's. A residual's noise is held down by its penalty and its
    bound. Theirs is the temperature's affair, which with a low learning rate would not get anywhere in a short run."""


def _paper(task: str, kind: str) -> RefineConfig:
    bound, horizon = TABLE_8.get((task, kind), (Config.bound, Config.horizon))
    sac = SACConfig(gamma=0.9) if (task, kind) in SHORT_SIGHTED else SACConfig()
    train = TrainConfig(total_steps=TRAINED.get((task, kind), TrainConfig.total_steps))
    learn = Config(bound=bound, horizon=horizon, sac=sac)
    cfg = RefineConfig(task=task, decide="chunk", learn=learn, train=train, keep="learned")
    return _of_decisions(cfg) if kind == "diffusion" else cfg


def _of_decisions(cfg: RefineConfig) -> RefineConfig:
    """Settings that count decisions, counting environment steps instead; the replay holds as many decisions."""
    train, k = cfg.train, RELEASED_CHUNK
    steps = ("total_steps", "warmup_steps", "steps_per_round", "log_every", "eval_every", "save_every")
    longer = {name: k * getattr(train, name) for name in steps}
    learn = replace(cfg.learn, horizon=k * cast(Config, cfg.learn).horizon)
    train = replace(train, updates_per_step=train.updates_per_step / k, **longer)
    return replace(cfg, learn=learn, train=train, replay_capacity=cfg.train.total_steps)


def _quick(task: str, kind: str) -> RefineConfig:
    cfg = RefineConfig(
        task=task,
        envs=8,
        threads=1,
        eval_episodes=30,
        learn=Config(
            bound=0.6,
            horizon=10_000,
            base_only_warmup=True,
            standardize_obs=True,
            noise_hold=8,
            n_step=10,
            reward_shift=0.0,
            success_ends_value=True,
            demo_share=0.25,
            nets=NetConfig(depth=2, critic_layer_norm=True, log_std_min=-5.0),
            sac=SACConfig(
                gamma=0.99,
                tau=0.02,
                lr=3e-4,
                batch_size=256,
                actor_every=2,
                temperature=0.002,
                target_entropy=0.0,
                entropy_in_backup=False,
            ),
        ),
        train=TrainConfig(
            total_steps=60_000, warmup_steps=5_000, log_every=1_000, eval_every=10_000, save_every=10_000
        ),
    )
    return _quick_hand(cfg) if task.startswith("adroit/") else cfg


def _quick_hand(cfg: RefineConfig) -> RefineConfig:
    """24 to 30 joints, in which noise adds up: less of it, a bound per task, and the base's answer as an input."""
    bound, horizon, total = QUICK_ADROIT.get(cfg.task, QUICK_ADROIT["adroit/door"])
    sac = replace(cfg.learn.sac, target_entropy=-0.5)
    learn = replace(cfg.learn, bound=bound, horizon=horizon, noise_hold=1, actor_sees="obs+base", sac=sac)
    return replace(cfg, learn=learn, train=replace(cfg.train, total_steps=total))


def _ppo(task: str, kind: str) -> RefineConfig:
    """Where environment steps cost little: many environments, no replay."""
    cfg = _quick(task, kind)
    quick = cast(Config, cfg.learn)
    learn = Config(
        bound=quick.bound,
        horizon=quick.horizon,
        base_only_warmup=True,
        actor_sees="obs+base",
        standardize_obs=True,
        reward_shift=0.0,
        learner="ppo",
        nets=replace(quick.nets, critic_layer_norm=False),
        sac=SACConfig(gamma=0.99, lr=3e-4, max_grad_norm=0.5),
    )
    train = replace(cfg.train, total_steps=1_000_000, eval_every=100_000, save_every=100_000, log_every=10_000)
    return replace(cfg, envs=64, learn=learn, train=train)


def _fast(task: str, kind: str) -> RefineConfig:
    """`quick` with nothing left to choose: alpha from the demonstrations, epsilon from measured success."""
    cfg = _quick(task, kind)
    sac = replace(cfg.learn.sac, target_entropy=SACConfig.target_entropy, residual_penalty=0.01)
    return replace(cfg, learn=replace(cfg.learn, bound="auto", horizon="auto", actor_sees="obs+base", sac=sac))


ALONE = 3e-3
"""By which a temperature can move by a factor of e^9 in 25,000 steps: 3,125 updates of it."""

PRESETS: Mapping[str, Preset] = {
    p.name: p
    for p in (
        Preset("quick", "a laptop's budget: small batches, n-step returns, low temperature, LayerNorm", _quick, ALONE),
        Preset("fast", "nothing to choose: alpha and epsilon are measured; needs demonstrations", _fast, ALONE),
        Preset("ppo", "PPO instead of SAC: for simulators that give thousands of steps a second", _ppo),
        Preset("paper", "Table 8, Table 9 and the released code: millions of steps", _paper),
    )
}


def settings(
    preset: str,
    task: str,
    *,
    kind: str = "",
    method: str = RefineConfig.method,
    bound: float | Literal["auto", "tolerance"] | None = None,
    horizon: int | Literal["auto"] | None = None,
    total_steps: int | None = None,
) -> RefineConfig:
    """A preset's settings for `task` and a base policy of `kind` ("bet", ...), with what is given put in its place.

    Presets are written for Policy Decorator; another `method` takes from them what it has in common with that. One that
    tunes the base by PPO or DIPO decides on whole chunks, as the base does; PPO's, and DAPG's policy, has no warm-up.

    Raises:
        UserError: an unknown preset or method; a bound or a horizon for a method that has none.
    """
    chosen = lookup("preset", preset, PRESETS)
    cfg = chosen.make(task, kind)
    learn = settings_of(method, cfg.learn)
    if not isinstance(learn, ResidualConfig | OnPolicyConfig):
        learn = replace(learn, sac=replace(learn.sac, temperature_lr=chosen.alone_temperature_lr))
    if isinstance(learn, OnPolicyConfig | dapg.Config):
        cfg = replace(cfg, train=replace(cfg.train, warmup_steps=0))
    if isinstance(learn, OnPolicyConfig | dipo.Config):
        cfg = replace(cfg, decide="chunk")
    own = {name: value for name, value in (("bound", bound), ("horizon", horizon)) if value is not None}
    for name in own:
        if not hasattr(learn, name):
            raise UserError(f"{method} has no {name}.")
    steps = cfg.train.total_steps if total_steps is None else total_steps
    return replace(cfg, method=method, learn=replace(learn, **own), train=replace(cfg.train, total_steps=steps))


def unlisted(preset: str, cfg: RefineConfig, kind: str) -> str | None:
    """A warning, where `paper` has to stand for numbers that Table 8 does not give for `cfg.task` and this base."""
    if preset != "paper" or (cfg.task, kind) in TABLE_8:
        return None
    usual = cast(Config, _paper(cfg.task, kind).learn)
    numbers = {"bound": usual.bound, "horizon": usual.horizon}
    taken = [f"{name} {value:,}" for name, value in numbers.items() if getattr(cfg.learn, name, None) == value]
    if not taken:
        return None
    whom = f"a base policy {kind}" if kind in POLICIES else "a base policy of your own"
    return f"Table 8 of the paper has no numbers for {cfg.task} and {whom}: taking {' and '.join(taken)}."
