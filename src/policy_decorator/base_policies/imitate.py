"""The one training loop of all base policies: minimise a policy's own loss on windows of demonstrations.

    windows of length To end at frame t of an episode of length L and hold frames t-To+1 ... t:
        released code   start in range(L - To)        (no padding; the last full window is left out)
        pad_start       t in range(L), frames before the first repeat the first, as a rollout sees them
    a policy with a memory has a `sequence` T instead: T steps from frame t on, t in range(L), those behind the last
    repeat the last (robomimic)

The checkpoint with the highest evaluation success is kept (paper, App. B.1.3).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from policy_decorator import machine
from policy_decorator.errors import UserError

if TYPE_CHECKING:
    from policy_decorator.demos.dataset import Demonstrations

REPORT_EVERY = 100  # steps between looks at the loss: each one waits for the accelerator


class Imitator(Protocol):
    """A base policy that can be trained from demonstrations; every entry of `POLICIES` is one.

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
    """Learning rate, constant (Table 5)."""
    weight_decay: float = 2e-4
    """Of AdamW, for the parameters that the policy lets decay (released code)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW (released code)."""
    eval_every: int = 5000
    """Gradient steps between evaluations (released code; App. B.1.3 says "50k environment steps")."""
    eval_episodes: int = 50
    """Episodes per evaluation (App. B.1.3); read by whoever builds `evaluate`."""
    seed: int = 0
    """Of the clusters, the batches and the dropout. The network's initialisation is the caller's."""
    pad_start: bool = True
    """Also train on windows that reach before the episode; False is the released code."""

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.eval_every) < 1:
            raise UserError("steps, batch_size and eval_every of imitation must be at least 1.")
        if self.lr <= 0:
            raise UserError(f"The learning rate must be positive, got {self.lr}.")


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


def window_bounds(lengths: Tensor, context: int, pad_start: bool) -> tuple[Tensor, Tensor]:
    """For each window, the row of its episode's first frame and the row of its newest frame.

    Episodes of `lengths` (E,) lie one after the other. Returns two (W,) integer tensors.
    """
    skipped = 0 if pad_start else context - 1  # frames at the start where no window ends
    # Differs from the released code where pad_start: it never trains on the repeated first frames that the
    # first To - 1 decisions of every rollout see, and leaves out each episode's last window.
    counts = lengths if pad_start else (lengths - context).clamp(min=0)  # (E,)
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
) -> ImitationResult:
    """Train `policy` on `demos` in place and keep its best checkpoint.

    `evaluate(policy, step)` answers with a success rate every `eval_every` steps and after the last; of equal
    rates the later step is kept, as it has trained for longer. `progress(step, steps, row)` sees each row of
    the history. The same policy parameters, demonstrations, config and device give the same result, and the
    caller's random state is left as it was.

    Raises:
        UserError: demonstrations that do not fit, or a loss or success rate that is not finite.
    """
    machine.use_cpu_well()
    device = torch.device(device)
    if not getattr(policy, "learns", True):  # its database is made at the first step
        cfg = replace(cfg, steps=1)
    windows = _load_windows(policy, demos, cfg, device)
    best = _Best()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(cfg.seed)
        policy.fit_statistics(demos, seed=cfg.seed)
        policy.to(device)
        history = _train(policy, windows, cfg, best, evaluate, progress)
    if best.state is not None:
        policy.load_state_dict(best.state)
    policy.train(False)
    return ImitationResult(policy, best.step or cfg.steps, best.success, history)


def _train(
    policy: Imitator,
    windows: "_Windows",
    cfg: ImitateConfig,
    best: "_Best",
    evaluate: Evaluate | None,
    progress: Progress | None,
) -> list[dict[str, float]]:
    device = windows.newest.device
    groups = policy.parameter_groups(cfg.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, fused=True)
    generator = torch.Generator(device).manual_seed(cfg.seed)
    history = []
    total, reported = torch.zeros((), device=device), 0
    policy.train(True)
    for step in range(1, cfg.steps + 1):
        loss = policy.loss(*windows.draw(cfg.batch_size, generator))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.detach()
        last = step == cfg.steps
        evaluator = evaluate if last or step % cfg.eval_every == 0 else None
        if evaluator is None and not last and step % REPORT_EVERY:
            continue
        row = {"step": float(step), "loss": _finite(total.item() / (step - reported), "loss", step)}
        total, reported = torch.zeros((), device=device), step
        if evaluator is not None:
            row["success"] = _evaluate(policy, evaluator, step, cfg.seed, best)
        history.append(row)
        if progress is not None:
            progress(step, cfg.steps, row)
    return history


@dataclass(frozen=True)
class _Windows:
    """All windows of the demonstrations, as rows of two tensors on the device."""

    observations: Tensor  # (N, Do)
    actions: Tensor  # (N, Da)
    first: Tensor  # (W,)
    newest: Tensor  # (W,)
    last: Tensor  # (W,) row of the episode's last frame
    context: int

    def draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(B, To, Do) and (B, To, Da)."""
        # Differs from the released code: drawn with replacement, where it deals out epochs and drops their
        # remainder, and so trains on nothing when the batch is larger than the data.
        device = self.newest.device
        drawn = torch.randint(len(self.newest), (batch_size,), generator=generator, device=device)
        rows = window_rows(self.first[drawn], self.newest[drawn], self.context)  # (B, To)
        rows = rows.minimum(self.last[drawn, None])
        return self.observations[rows], self.actions[rows]


class _Best:
    step: int = 0
    success: float | None = None
    state: dict[str, Tensor] | None = None


def _evaluate(policy: Imitator, evaluate: Evaluate, step: int, seed: int, best: _Best) -> float:
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    policy.train(False)
    with torch.random.fork_rng(devices=devices):  # how often one evaluates must not change the training,
        torch.manual_seed(seed)  # and every checkpoint meets the same randomness
        success = _finite(float(evaluate(policy, step)), "evaluation success", step)
    policy.train(True)
    if best.success is None or success >= best.success:
        best.step, best.success = step, success
        best.state = {name: value.detach().clone() for name, value in policy.state_dict().items()}
    return success


def _load_windows(policy: Imitator, demos: "Demonstrations", cfg: ImitateConfig, device: Any) -> _Windows:
    ours, theirs = (policy.obs_size, policy.action_size), (demos.obs_size, demos.action_size)
    if ours != theirs:
        raise UserError(
            f"The demonstrations have sizes {theirs[0]} (observation) and {theirs[1]} (action), the policy "
            f"{ours[0]} and {ours[1]}: build the policy with the demonstrations' sizes."
        )
    lengths = torch.as_tensor(np.asarray(demos.lengths), dtype=torch.int64, device=device)  # (E,)
    frames = frames_of(policy)
    if hasattr(policy, "sequence"):
        first, newest = sequence_bounds(lengths, frames)
    else:
        first, newest = window_bounds(lengths, frames, cfg.pad_start)
    if len(newest) == 0:
        longest = int(lengths.max()) if len(lengths) else 0
        raise UserError(
            f"No training window of {frames} frames fits into these demonstrations: the longest "
            f"episode has {longest} and needs {frames + 1}. Set pad_start or a shorter context."
        )
    observations, actions = (
        torch.as_tensor(np.asarray(array), dtype=torch.float32, device=device)
        for array in (demos.observations, demos.actions)
    )
    if not (observations.isfinite().all() and actions.isfinite().all()):
        raise UserError("The demonstrations hold values that are not finite: record them again without.")
    ends = lengths.cumsum(0) - 1  # (E,)
    last = ends[torch.searchsorted(ends, first)]
    return _Windows(observations, actions, first, newest, last, frames)


def _finite(value: float, what: str, step: int) -> float:
    if not math.isfinite(value):
        raise UserError(f"The {what} is {value} at step {step}: lower the learning rate.")
    return value
