"""Windows of demonstrations, as base policies are trained on them.

windows of length To end at frame t of an episode of length L and hold frames t-To+1 ... t:
    released code   start in range(L - To)        (no padding; the last full window is left out)
    pad_start       t in range(L), frames before the first repeat the first, as a rollout sees them
a policy that predicts ahead has a `horizon` Th: its targets are the actions t-To+1 ... t-To+Th, of which those
before the first repeat the first, and those behind the last are what `Task.held_actions` says
    released code   t in range(L - 1), with frames before the first
    pad_end off     only where all Th targets are there
a policy with a memory has a `sequence` T instead: T steps from frame t on, t in range(L), those behind the last
repeat the last (robomimic)
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from policy_decorator.envs import get_task
from policy_decorator.envs.images import together
from policy_decorator.envs.task import Task
from policy_decorator.errors import UserError

if TYPE_CHECKING:
    from policy_decorator.base_policies.imitate import ImitateConfig, Imitator
    from policy_decorator.demos.dataset import Demonstrations


def horizon_of(policy: "Imitator") -> int:
    """Th, actions it is trained on per window: those of its frames, unless it says otherwise."""
    return getattr(policy, "horizon", frames_of(policy))


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


def frames_of(policy: "Imitator") -> int:
    """Frames of a training window."""
    return int(getattr(policy, "sequence", policy.context))


def window_rows(first: Tensor, newest: Tensor, context: int) -> Tensor:
    """(B,), (B,) -> (B, To) rows of frames; the first is repeated where a window begins before it."""
    back = torch.arange(1 - context, 1, device=newest.device)  # (To,)
    return torch.maximum(newest[:, None] + back, first[:, None])


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


def load_windows(
    policy: "Imitator", demos: "Demonstrations", cfg: "ImitateConfig", device: Any, task: Task | None
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
    ends = lengths.cumsum(0) - 1  # (E,)
    last = ends[torch.searchsorted(ends, first)]
    if ahead and not cfg.pad_end:
        whole = newest + horizon - frames <= last
        first, newest, last = first[whole], newest[whole], last[whole]
    if len(newest) == 0:
        longest = int(lengths.max()) if len(lengths) else 0
        needed = frames + 1 if not ahead else 2 if cfg.pad_end else horizon - frames + 1
        raise UserError(
            f"No training window of {frames} frames fits into these demonstrations: the longest episode has {longest} "
            f"and needs {needed}. Set pad_start and pad_end, or a shorter context or horizon."
        )
    observations, actions = (
        torch.as_tensor(np.asarray(array), dtype=torch.float32, device=device)
        for array in (demos.observations, demos.actions)
    )
    if not (observations.isfinite().all() and actions.isfinite().all()):
        raise UserError("The demonstrations hold values that are not finite: record them again without.")
    # Differs from the released code: the task says what is repeated, not always the last entry alone, so that joints
    # under absolute control and a second gripper stay where they are.
    held = torch.ones(demos.action_size, dtype=torch.bool)
    if ahead and cfg.pad_end and (entries := (task or get_task(demos.task)).held_actions) is not None:
        held = torch.zeros_like(held).index_fill(0, torch.tensor(entries, dtype=torch.long) % len(held), True)
    seen = _with_pictures(observations, policy, demos)
    noise = cfg.obs_noise * observations.std(dim=0) if cfg.obs_noise else None
    return Windows(seen, actions, first, newest, last, frames, horizon, held.to(device), noise)


def _with_pictures(states: Tensor, policy: "Imitator", demos: "Demonstrations") -> Tensor:
    """Frames (N,) as the policy sees them. UserError where it looks at other pictures than there are."""
    seen, shown = getattr(policy, "shapes", {}), {name: x.shape[1:] for name, x in demos.pictures.items()}
    if seen != shown:
        raise UserError(
            f"The demonstrations show {shown or 'no pictures'}, the policy looks at {seen or 'none'}: build the policy "
            "with the shapes of the demonstrations' pictures."
        )
    pictures = {name: torch.as_tensor(x, device=states.device) for name, x in demos.pictures.items()}
    return together({"state": states, **pictures}, ndim=1) if pictures else states
