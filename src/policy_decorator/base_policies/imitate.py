"""The one training loop of all base policies: minimise a policy's own loss on windows of demonstrations.

The checkpoint with the highest evaluation success is kept (paper, App. B.1.3).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from policy_decorator import machine
from policy_decorator.base_policies.precision import Precision
from policy_decorator.base_policies.processes import processes_of
from policy_decorator.base_policies.training import Training, begin_or_resume, cuda
from policy_decorator.base_policies.windows import load_windows
from policy_decorator.envs.task import Task
from policy_decorator.errors import UserError

if TYPE_CHECKING:
    from policy_decorator.demos.dataset import Demonstrations


class Imitator(Protocol):
    """A base policy that can be trained from demonstrations; every entry of `POLICIES` is one.

    One with a `horizon` (Th) beyond its context gets that many actions in `loss`, from the window's first frame on.
    One that remembers is a `StatefulPolicy` too, whose `rows` may be left out, and has a `sequence`: the frames that
    `loss` is given, where they are not the `context` that `act` is given.
    """

    cfg: Any
    obs_size: int
    action_size: int

    @property
    def context(self) -> int: ...
    @property
    def chunk(self) -> int: ...
    def act(self, window: Tensor) -> Tensor: ...
    def loss(self, window: Tensor, actions: Tensor) -> Tensor: ...
    def fit_statistics(self, demos: "Demonstrations", seed: int = 0) -> None: ...
    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...
    def train(self, mode: bool = True) -> Any: ...
    def to(self, device: torch.device, /) -> Any: ...


@dataclass(frozen=True)
class ImitateConfig:
    """Training a base policy; the defaults are the paper's (Table 5, ManiSkill) and the released code's."""

    steps: int = 200_000
    """Gradient steps (Table 5: 200k ManiSkill, 5k Adroit)."""
    batch_size: int = 2048
    """Windows per step (Table 5); may exceed the number of windows."""
    lr: float = 1e-4
    """Learning rate (Table 5), at its highest."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls to 0 at the last step, if it does (Table 5: constant)."""
    warmup_steps: int = 0
    """Gradient steps in which the learning rate rises from 0."""
    weight_decay: float = 2e-4
    """Of AdamW, for the parameters that the policy lets decay (released code)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW (released code)."""
    ema: float = 0.0
    """Largest decay of the running mean of the parameters that is evaluated and kept; 0: the parameters themselves."""
    eval_every: int = 5000
    """Gradient steps between evaluations (released code; App. B.1.3 says "50k environment steps")."""
    eval_episodes: int = 50
    """Episodes per evaluation (App. B.1.3)."""
    seed: int = 0
    """Of the network, the clusters, the batches and the dropout."""
    pad_start: bool = True
    """Also train on windows that reach before the episode, and on every episode's last; False is the released code."""
    pad_end: bool = True
    """Also train a policy that predicts ahead on actions behind an episode's end, where it holds still. To be left out
    where episodes end before the task is done: it is learned, too."""
    obs_noise: float = 0.0
    """Noise in the states it is trained on, in standard deviations of the demonstrations (not in the paper). A policy
    that sees its own last action in the state, a half-closed gripper, else runs away with its errors."""
    keep_success: float | None = None
    """Keep the checkpoint whose success rate is nearest to this one instead of the best (App. D.2: a poor base)."""
    save_every: int = 1000
    """Gradient steps between checkpoints to resume from, where a file is given for them."""
    precision: Precision = "auto"
    """In which layers compute the loss; the parameters are float32. auto: bfloat16 on a GPU, where the policy
    standardises what it sees; one that sees raw observations needs their digits."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether the loss is compiled, which takes a minute; auto: for long trainings on a GPU."""

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.eval_every, self.save_every) < 1:
            raise UserError("steps, batch_size, eval_every and save_every of imitation must be at least 1.")
        if self.lr <= 0:
            raise UserError(f"The learning rate must be positive, got {self.lr}.")
        if not 0 <= self.warmup_steps < self.steps:
            raise UserError(
                f"warmup_steps {self.warmup_steps} must be fewer than the {self.steps} steps: lower warmup_steps."
            )
        if not 0 <= self.ema < 1:
            raise UserError(f"ema must be in [0, 1), got {self.ema}.")
        if self.obs_noise < 0:
            raise UserError(f"obs_noise must be at least 0, got {self.obs_noise}.")
        if self.keep_success is not None and not 0 <= self.keep_success <= 1:
            raise UserError(f"keep_success is a rate between 0 and 1, got {self.keep_success}.")


@dataclass(frozen=True)
class ImitationResult:
    """A trained policy and how it came about."""

    policy: Imitator
    """The object that was passed in, holding the kept parameters, in evaluation mode."""
    best_step: int
    """Gradient step of the kept parameters: the last one where nothing was evaluated."""
    best_success: float | None
    """Its evaluation success, None where nothing was evaluated."""
    history: list[dict[str, float]]
    """Rows of step, loss (mean since the row before) and, where evaluated, success."""


Evaluate = Callable[[Imitator, int], float]
Progress = Callable[[int, int, dict[str, float]], None]


@machine.as_it_was()
def imitate(
    policy: Imitator,
    demos: "Demonstrations",
    cfg: ImitateConfig,
    *,
    evaluate: Evaluate | None = None,
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
    task: Task | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
) -> ImitationResult:
    """Train `policy` on `demos` in place and keep its best checkpoint.

    `evaluate(policy, step)` answers with a success rate every `eval_every` steps and after the last; of equal
    rates the later step is kept, as it has trained for longer. `progress(step, steps, row)` sees each row of
    the history. The same policy parameters, demonstrations, config and device give the same result, and the
    caller's random state, and what `machine.use_cpu_well` sets, are left as they were.

    `task` says how actions go on behind an episode's end; it is the one that the demonstrations name. Every
    `save_every` steps all that the training needs to go on is written to `checkpoint`; with `resume` it goes on from
    there, on a CPU as if it had never stopped. Started by `torchrun` or `accelerate launch`, the processes share each
    batch; only the first one calls `evaluate` and `progress` and keeps the checkpoint, and only its result counts.

    Raises:
        UserError: demonstrations that do not fit, a loss or success rate that is not finite, or a checkpoint that is
            missing or of another training.
    """
    processes = processes_of(torch.device(device))
    device = processes.device
    machine.use_cpu_well(device)
    if not getattr(policy, "learns", True):  # its database is made at the first step
        cfg = replace(cfg, steps=1, warmup_steps=0, ema=0.0)
    windows = load_windows(policy, demos, cfg, device, task)
    with torch.random.fork_rng(devices=cuda(device)):
        torch.manual_seed(cfg.seed + processes.rank)
        policy.fit_statistics(demos, seed=cfg.seed)
        policy.to(device)
        training = Training(policy, windows, cfg, processes)
        begin_or_resume(training, demos, checkpoint, resume, evaluated=evaluate is not None)
        training.run(evaluate, progress)
    training.keep()
    policy.train(False)
    best = training.best
    return ImitationResult(policy, best.step or cfg.steps, best.success, training.history)
