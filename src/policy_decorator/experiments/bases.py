"""The base policies of the demo and of the published measurements: demonstrations and imitation, per seed."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock

from policy_decorator.base_policies import POLICIES, build
from policy_decorator.base_policies.bet import BeTConfig
from policy_decorator.base_policies.checkpoint import load_policy, save_policy
from policy_decorator.base_policies.imitate import ImitateConfig, ImitationResult, Imitator, imitate
from policy_decorator.demos.dapg import read_dapg
from policy_decorator.demos.dataset import Demonstrations, joined
from policy_decorator.demos.expert_npz import read_expert_npz
from policy_decorator.demos.motion_planning import record_planned
from policy_decorator.demos.record import record, record_expert, record_policy
from policy_decorator.demos.replayed import with_pictures
from policy_decorator.envs import get_task
from policy_decorator.envs.vector import make_vector
from policy_decorator.errors import UserError, lookup
from policy_decorator.evaluation import DEMOS, VALIDATION, run_episodes
from policy_decorator.experiments.strangers import sb3_model, served
from policy_decorator.progress import Display, Silent

DEMOS_PER_SEED = 10_000
"""Seeds that the demonstrations of one run may use up."""


@dataclass(frozen=True)
class BaseConfig:
    """Where the demonstrations come from and what is trained on them."""

    task: str
    source: Literal["scripted expert", "motion planning", "dapg", "expert npz"] = "scripted expert"
    file: str = ""
    """Of the demonstrations or of the expert, below the data folder."""
    episodes: int = 15
    noise: float = 0.3
    """Standard deviation added to the expert's actions, of actions in [-1, 1]."""
    same_for_all: bool = False
    """Whether all seeds have the demonstrations of seed 0 and its policy, as in the paper: where they take hours."""
    policy: Literal["bet", "mlp", "diffusion", "rnn", "vinn", "cnn", "sb3"] = "bet"
    """A kind of `POLICIES`, or sb3, a model of Stable-Baselines3."""
    net: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the policy's config that differ from its defaults."""
    training: ImitateConfig = field(default_factory=ImitateConfig)
    served: bool = False
    """Whether a process of its own answers for it, over a socket."""
    evaluate: bool = False
    """Keep the best checkpoint (paper App. B.1.3) instead of the last."""
    rollouts: int = 0
    """Episodes of the trained policy itself that are put beside the demonstrations, failures too (App. F.3)."""


# Small enough to train in minutes on one core: the paper has 4 layers of 128 and a context of 10 or 20 (Table 4).
SMALL_BET = {"context": 5, "layers": 2, "width": 64, "standardize_obs": True}
MLP_TRAINING = ImitateConfig(steps=2_000, batch_size=256, lr=1e-3, eval_every=2_000)
ADROIT_TRAINING = ImitateConfig(steps=3_000, batch_size=128, lr=1e-3, eval_every=1_000, eval_episodes=50)
# More steps unlearn what was learned, and without noise and a running mean even these do.
DOOR_TRAINING = replace(
    ADROIT_TRAINING, steps=1_500, schedule="cosine", warmup_steps=250, obs_noise=0.1, ema=0.99, eval_every=250
)
STACK_CUBE_TRAINING = ImitateConfig(
    steps=20_000,
    batch_size=128,
    lr=1e-3,
    schedule="cosine",
    warmup_steps=500,
    obs_noise=0.05,
    ema=0.999,
    eval_every=5_000,
    eval_episodes=50,
)

METAWORLD = {
    "peg-insert-side": 15,
    "stick-pull": 25,
    "assembly": 15,
    "shelf-place": 15,
    "push-wall": 15,
    "hand-insert": 10,
    "pick-place-wall": 25,
    "disassemble": 10,
}
"""Task -> demonstrations of its scripted expert, chosen so that the base half works."""

DOOR = BaseConfig(
    "adroit/door",
    source="dapg",
    file="adroit/door-v0_demos.pickle",
    net=SMALL_BET,
    training=DOOR_TRAINING,
    evaluate=True,
)
WEAK_DOOR = replace(DOOR, training=ADROIT_TRAINING)
"""Succeeds in a fifth of the episodes: the studies `adroit` and `recipes` decorate it."""
PEN = replace(
    DOOR,
    task="adroit/pen",
    source="expert npz",
    file="adroit/pen_expert.npz",
    episodes=5,
    noise=0.0,
    training=ADROIT_TRAINING,
)
PEG = BaseConfig(
    "metaworld/peg-insert-side", episodes=METAWORLD["peg-insert-side"], policy="mlp", training=MLP_TRAINING
)
STACK_CUBE = BaseConfig(
    "maniskill/stack-cube",
    source="motion planning",
    episodes=1_000,
    noise=0.0,
    same_for_all=True,
    net={"context": 5, "layers": 2, "standardize_obs": True},
    training=STACK_CUBE_TRAINING,
    evaluate=True,
)

BOUNDED = {"bounded_offset": True, "action_scale": 0.5}
"""What SAC with LoRA asks of a Behavior Transformer (paper B.4.1)."""

# DPPO's network, which costs less than a U-Net where there is no GPU.
SMALL_DIFFUSION = {
    "context": 1,
    "horizon": 4,
    "chunk": 4,
    "network": "mlp",
    "mlp_width": 512,
    "step_size": 32,
    "diffusion_steps": 20,
    "prediction": "sample",
    "ddim_steps": 5,
    "standardize_obs": True,
}
DIFFUSION_TRAINING = ImitateConfig(
    steps=8_000, batch_size=256, lr=1e-3, schedule="cosine", weight_decay=1e-6, ema=0.995
)
SQUARE = BaseConfig(
    "robosuite/square", episodes=30, noise=0.1, policy="diffusion", net=SMALL_DIFFUSION, training=DIFFUSION_TRAINING
)
TRANSPORT = replace(SQUARE, task="robosuite/transport", episodes=100, net={**SMALL_DIFFUSION, "horizon": 8, "chunk": 8})
VINN_EPISODES = 100
"""At most: for every answer it searches through all frames."""
OTHER_KINDS: Mapping[str, Mapping[str, Any]] = {
    "bet": {"policy": "bet", "net": SMALL_BET, "training": ADROIT_TRAINING},
    "rnn": {"policy": "rnn", "training": ImitateConfig(steps=1_500, batch_size=64, lr=1e-3)},
    "sb3": {"policy": "sb3"},
    "served": {"served": True},
}
"""Of base policies on peg-insert-side, beside its MLP."""
SEEN = replace(PEG, task=f"{PEG.task}:rgb", episodes=50, policy="cnn", training=replace(MLP_TRAINING, batch_size=64))
SEEN_DIFFUSION_TRAINING = replace(DIFFUSION_TRAINING, steps=2_000, batch_size=64)
"""A picture costs five milliseconds of a core to learn from."""


def _others(base: BaseConfig) -> Mapping[str, BaseConfig]:
    """Other policies of the same demonstrations, for methods that need their kind: FISH, DPPO, and DIPO, which keeps
    what is predicted and not executed."""
    few = min(base.episodes, VINN_EPISODES)
    vinn = replace(base, policy="vinn", episodes=few, net={"bet": BeTConfig(**SMALL_BET)}, training=ADROIT_TRAINING)
    # Most of Door's human demonstrations end before it is wide open.
    training = replace(DIFFUSION_TRAINING, obs_noise=base.training.obs_noise, pad_end=base is not DOOR)
    denoising = replace(base, policy="diffusion", net=SMALL_DIFFUSION, training=training)
    ahead = replace(denoising, net={**SMALL_DIFFUSION, "horizon": 8})
    kinds = {"vinn": vinn, "diffusion": denoising, "diffusion-ahead": ahead}
    return {f"{base.task}-{kind}": replace(cfg, evaluate=False) for kind, cfg in kinds.items()}


BASES: Mapping[str, BaseConfig] = {
    **{f"metaworld/{name}": replace(PEG, task=f"metaworld/{name}", episodes=n) for name, n in METAWORLD.items()},
    "adroit/door": DOOR,
    "adroit/door-weak": WEAK_DOOR,
    "adroit/pen": PEN,
    "maniskill/stack-cube": STACK_CUBE,
    **{f"{PEG.task}-{name}": replace(PEG, **changes) for name, changes in OTHER_KINDS.items()},
    f"{PEG.task}:rgb": SEEN,
    f"{PEG.task}:rgb-diffusion": replace(
        SEEN, policy="diffusion", net=SMALL_DIFFUSION, training=SEEN_DIFFUSION_TRAINING
    ),
    **{name: other for base in (PEG, DOOR, PEN, STACK_CUBE) for name, other in _others(base).items()},
    **{f"{base.task}-bounded": replace(base, net={**SMALL_BET, **BOUNDED}) for base in (DOOR, PEN)},
    **{f"{base.task}-diffusion": base for base in (SQUARE, TRANSPORT)},
    f"{PEN.task}-mixed": replace(PEN, rollouts=25),
}


def demonstrations(cfg: BaseConfig, seed: int, data: Path, display: Display, processes: int = 1) -> Demonstrations:
    """Record or read them. Raises UserError where the file is missing."""
    task, path = get_task(cfg.task), data / cfg.file
    if cfg.file and not path.exists():
        raise UserError(f"{path} is missing: give the folder that holds {cfg.file}.")
    if cfg.source == "dapg":
        return read_dapg(path, task)
    with display.stage("recording demonstrations", cfg.episodes) as update:
        options: dict[str, Any] = {"seed": DEMOS + seed * DEMOS_PER_SEED, "noise": cfg.noise, "progress": update}
        if cfg.source == "scripted expert":
            return record_expert(task, cfg.episodes, **options)
        if cfg.source == "motion planning":
            return record_planned(task, cfg.episodes, seed=options["seed"], processes=processes, progress=update)
        return record(task, lambda: read_expert_npz(path), cfg.episodes, source=f"expert {path.name}", **options)


def kept_demonstrations(
    cfg: BaseConfig, seed: int, data: Path, cache: Path, display: Display, processes: int = 1
) -> Demonstrations:
    """Those that a seed's policies imitate, made once for all of them. Raises UserError as `demonstrations`."""
    seed = 0 if cfg.same_for_all else seed
    name = f"{cfg.task}-{cfg.source}-{cfg.episodes}-{cfg.noise}-{seed}".replace("/", "-").replace(":", "-")
    kept = cache / "demonstrations" / f"{name.replace(' ', '-')}.h5"
    with _one_at_a_time(kept):
        if kept.exists():
            return Demonstrations.load(kept)
        state = get_task(cfg.task).flat
        if state is None:
            made = demonstrations(cfg, seed, data, display, processes)
        else:  # experts act on the state
            flat = kept_demonstrations(replace(cfg, task=state.name), seed, data, cache, display, processes)
            with display.stage("playing again, before the cameras", flat.episodes) as update:
                made = with_pictures(flat, get_task(cfg.task), update)
        made.save(kept)
        return made


def _one_at_a_time(made: Path) -> FileLock:
    """Of several runs that want it, one makes it, and the others wait."""
    made.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(made.with_name(f"{made.name}.lock"))


def train_base(
    cfg: BaseConfig,
    demos: Demonstrations,
    seed: int,
    display: Display,
    checkpoint: Path | None = None,
    device: torch.device | str = "cpu",
) -> ImitationResult:
    """Imitate the demonstrations; a training that was interrupted goes on from its `checkpoint`."""
    task = get_task(cfg.task)
    torch.manual_seed(seed)
    settings = POLICIES[cfg.policy].config(**cfg.net)
    policy = build(cfg.policy, task.obs_size, task.action_size, settings, shapes=task.shapes)
    how = replace(cfg.training, seed=seed)
    env = make_vector(task, 10, context=policy.context, chunk=policy.chunk, device=device, simulation="cpu")

    def evaluate(trained: Imitator, step: int) -> float:
        return run_episodes(env, trained, how.eval_episodes, VALIDATION).rate

    with display.stage(f"imitating ({cfg.policy})", how.steps) as update:
        result = imitate(
            policy,
            demos,
            how,
            evaluate=evaluate if cfg.evaluate else None,
            device=device,
            progress=lambda step, steps, row: update(step, note=f"loss {row['loss']:.3f}"),
            checkpoint=checkpoint,
            resume=checkpoint is not None and checkpoint.exists(),
        )
    env.close()
    return result


def make_base(
    name: str, seed: int, data: Path, cache: Path, display: Display | None = None
) -> tuple[Any, Demonstrations]:
    """A base of `BASES`, as a run takes it, and its demonstrations: made once per seed and kept in `cache`."""
    cfg, display = lookup("base policy of the studies", name, BASES), display or Silent()
    seed = 0 if cfg.same_for_all else seed
    out = cache / f"{name.replace('/', '-').replace(':', '-')}-{seed}"
    demos = kept_demonstrations(cfg, seed, data, cache, display)
    if cfg.policy == "sb3":
        return sb3_model(get_task(cfg.task), demos, seed), demos
    with _one_at_a_time(out):
        if not (out / "policy.json").exists():
            policy = train_base(cfg, demos, seed, display).policy
            save_policy(policy, out, details={"task": cfg.task, "demonstrations": demos.describe(), "seed": seed})
        if cfg.rollouts:
            demos = joined([demos, _rollouts(cfg, out, seed, display)])
    return served(out) if cfg.served else load_policy(out), demos


def _rollouts(cfg: BaseConfig, out: Path, seed: int, display: Display) -> Demonstrations:
    """Episodes of the policy in `out`, recorded once and kept there, on seeds of their own."""
    file = out / "rollouts.h5"
    if not file.exists():
        first, policy = DEMOS + seed * DEMOS_PER_SEED + DEMOS_PER_SEED // 2, load_policy(out)
        with display.stage("recording the policy", cfg.rollouts) as update:
            options: dict[str, Any] = {"seed": first, "only_successes": False, "progress": update}
            record_policy(get_task(cfg.task), policy, cfg.rollouts, **options).save(file)
    return Demonstrations.load(file)
