"""The one training loop of all base policies: minimise a policy's own loss on windows of demonstrations.

    windows of length To end at frame t of an episode of length L and hold frames t-To+1 ... t:
        released code   start in range(L - To)        (no padding; the last full window is left out)
        pad_start       t in range(L), frames before the first repeat the first, as a rollout sees them
    a policy that predicts ahead has a `horizon` Th: its targets are the actions t-To+1 ... t-To+Th, of which those
    before the first repeat the first, and those behind the last are what `Task.held_actions` says
        released code   t in range(L - 1), with frames before the first
    a policy with a memory has a `sequence` T instead: T steps from frame t on, t in range(L), those behind the last
    repeat the last (robomimic)

The checkpoint with the highest evaluation success is kept (paper, App. B.1.3).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from policy_decorator import machine
from policy_decorator.base_policies.processes import processes_of
from policy_decorator.base_policies.training import Training, begin_or_resume
from policy_decorator.envs import get_task
from policy_decorator.envs.images import together
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


def horizon_of(policy: Imitator) -> int:
    """Th, actions it is trained on per window: those of its frames, unless it says otherwise."""
    return getattr(policy, "horizon", frames_of(policy))


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
    """Episodes per evaluation (App. B.1.3); read by whoever builds `evaluate`."""
    seed: int = 0
    """Of the clusters, the batches and the dropout. The network's initialisation is the caller's."""
    pad_start: bool = True
    """Also train on windows that reach before the episode, and on every episode's last; False is the released code."""
    obs_noise: float = 0.0
    """Noise in the states it is trained on, in standard deviations of the demonstrations (not in the paper). A policy
    that sees its own last action in the state, a half-closed gripper, else runs away with its errors."""
    keep_success: float | None = None
    """Keep the checkpoint whose success rate is nearest to this one instead of the best (App. D.2: a poor base)."""
    save_every: int = 1000
    """Gradient steps between checkpoints to resume from, where a file is given for them."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """In which layers compute the loss; the parameters are float32. auto: bfloat16 on a GPU."""
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


def window_bounds(lengths: Tensor, context: int, pad_start: bool, ahead: bool = False) -> tuple[Tensor, Tensor]:
    """For each window, the row of its episode's first frame and the row of its newest frame.

    Episodes of `lengths` (E,) lie one after the other; `ahead` says that the policy predicts beyond its window.
    Returns two (W,) integer tensors.
    """
    skipped = 0 if pad_start or ahead else context - 1  # frames at the start where no window ends
    # Differs from the released code where pad_start: it never trains on the repeated first frames that the
    # first To - 1 decisions of every rollout see (a Diffusion Policy does), and leaves out each episode's last window.
    counts = lengths if pad_start else (lengths - skipped - 1).clamp(min=0)  # (E,)
    first = (lengths.cumsum(0) - lengths).repeat_interleave(counts)  # (W,)
    before = (counts.cumsum(0) - counts).repeat_interleave(counts)  # (W,) windows of earlier episodes
    return first, first + skipped + torch.arange(len(first), device=lengths.device) - before


def sequence_bounds(lengths: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """The same for sequences of `frames` steps that begin at every frame; the newest may be behind the episode."""
    first = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)  # (W,)
    return first, torch.arange(len(first), device=lengths.device) + frames - 1


def frames_of(policy: Imitator) -> int:
    """Frames of a training window."""
    return int(getattr(policy, "sequence", policy.context))


def window_rows(first: Tensor, newest: Tensor, context: int) -> Tensor:
    """(B,), (B,) -> (B, To) rows of frames; the first is repeated where a window begins before it."""
    back = torch.arange(1 - context, 1, device=newest.device)  # (To,)
    return torch.maximum(newest[:, None] + back, first[:, None])


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
    caller's random state is left as it was.

    `task` says how actions go on behind an episode's end; it is the one that the demonstrations name. Every
    `save_every` steps all that the training needs to go on is written to `checkpoint`; with `resume` it goes on from
    there, on a CPU as if it had never stopped. Started by `torchrun` or `accelerate launch`, the processes share each
    batch; only the first one calls `evaluate` and `progress` and keeps the checkpoint, and only its result counts.

    Raises:
        UserError: demonstrations that do not fit, a loss or success rate that is not finite, or a checkpoint that is
            missing or of another training.
    """
    machine.use_cpu_well()
    processes = processes_of(torch.device(device))
    device = processes.device
    if not getattr(policy, "learns", True):  # its database is made at the first step
        cfg = replace(cfg, steps=1)
    windows = _load_windows(policy, demos, cfg, device, task)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
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


@dataclass(frozen=True)
class Windows:
    """All windows of the demonstrations, as rows of two tensors on the device."""

    observations: Tensor  # (N, Do), or a TensorDict (N,) where there are pictures, as uint8
    actions: Tensor  # (N, Da)
    first: Tensor  # (W,) rows of frames
    newest: Tensor  # (W,)
    last: Tensor  # (W,) of the episode's last frame
    context: int
    horizon: int
    held: Tensor  # (Da,) bool, entries of an episode's last action that go on behind it
    noise: Tensor | None = None  # (Do,) standard deviation of what is added to the states

    def draw(self, batch_size: int, generator: torch.Generator, share: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Of a batch of B, the `share` of this process: (B, To, Do) and (B, Th, Da)."""
        # Differs from the released code: drawn with replacement, where it deals out epochs and drops their
        # remainder, and so trains on nothing when the batch is larger than the data.
        device = self.newest.device
        drawn = torch.randint(len(self.newest), (batch_size,), generator=generator, device=device)[share]
        rows = window_rows(self.first[drawn], self.newest[drawn], self.context)  # (B, To)
        rows = rows.minimum(self.last[drawn, None])
        return self._noisy(self.observations[rows], generator), self.targets(drawn)

    def _noisy(self, seen: Any, generator: torch.Generator) -> Any:
        if self.noise is None:
            return seen
        state = seen if isinstance(seen, Tensor) else seen["state"]
        state = state + self.noise * torch.randn(state.shape, generator=generator, device=state.device)
        return state if isinstance(seen, Tensor) else seen.set("state", state)

    def targets(self, windows: Tensor) -> Tensor:
        """(B,) -> (B, Th, Da): the actions from the window's first frame on, padded where there are none."""
        ahead = torch.arange(1 - self.context, 1 - self.context + self.horizon, device=windows.device)  # (Th,)
        wanted, last = self.newest[windows, None] + ahead, self.last[windows, None]  # (B, Th), (B, 1)
        actions = self.actions[torch.maximum(wanted, self.first[windows, None]).minimum(last)]
        return actions.masked_fill((wanted > last).unsqueeze(-1) & ~self.held, 0.0)


def _load_windows(
    policy: Imitator, demos: "Demonstrations", cfg: ImitateConfig, device: Any, task: Task | None
) -> Windows:
    ours, theirs = (policy.obs_size, policy.action_size), (demos.obs_size, demos.action_size)
    if ours != theirs:
        raise UserError(
            f"The demonstrations have sizes {theirs[0]} (observation) and {theirs[1]} (action), the policy "
            f"{ours[0]} and {ours[1]}: build the policy with the demonstrations' sizes."
        )
    lengths = torch.as_tensor(np.asarray(demos.lengths), dtype=torch.int64, device=device)  # (E,)
    frames, horizon = frames_of(policy), horizon_of(policy)
    ahead = horizon > frames
    if hasattr(policy, "sequence"):
        first, newest = sequence_bounds(lengths, frames)
    else:
        first, newest = window_bounds(lengths, frames, cfg.pad_start, ahead)
    if len(newest) == 0:
        longest = int(lengths.max()) if len(lengths) else 0
        raise UserError(
            f"No training window of {frames} frames fits into these demonstrations: the longest episode "
            f"has {longest} and needs {2 if ahead else frames + 1}. Set pad_start or a shorter context."
        )
    observations, actions = (
        torch.as_tensor(np.asarray(array), dtype=torch.float32, device=device)
        for array in (demos.observations, demos.actions)
    )
    if not (observations.isfinite().all() and actions.isfinite().all()):
        raise UserError("The demonstrations hold values that are not finite: record them again without.")
    ends = lengths.cumsum(0) - 1  # (E,)
    last = ends[torch.searchsorted(ends, first)]
    # Differs from the released code: the task says what is repeated, not always the last entry alone, so that joints
    # under absolute control and a second gripper stay where they are.
    held = torch.ones(demos.action_size, dtype=torch.bool)
    if ahead and (entries := (task or get_task(demos.task)).held_actions) is not None:
        held = torch.zeros_like(held).index_fill(0, torch.tensor(entries, dtype=torch.long) % len(held), True)
    seen = _with_pictures(observations, policy, demos)
    noise = cfg.obs_noise * observations.std(dim=0) if cfg.obs_noise else None
    return Windows(seen, actions, first, newest, last, frames, horizon, held.to(device), noise)


def _with_pictures(states: Tensor, policy: Imitator, demos: "Demonstrations") -> Tensor:
    """Frames (N,) as the policy sees them. UserError where it looks at other pictures than there are."""
    seen, shown = getattr(policy, "shapes", {}), {name: x.shape[1:] for name, x in demos.pictures.items()}
    if seen != shown:
        raise UserError(
            f"The demonstrations show {shown or 'no pictures'}, the policy looks at {seen or 'none'}: build the policy "
            "with the shapes of the demonstrations' pictures."
        )
    pictures = {name: torch.as_tensor(x, device=states.device) for name, x in demos.pictures.items()}
    return together({"state": states, **pictures}, ndim=1) if pictures else states
