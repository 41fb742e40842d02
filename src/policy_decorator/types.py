"""The vocabulary of the package: one transition and the few small interfaces.

Shapes, used in every signature and comment:
    B   environments or batch rows        Do  observation size
    To  frames in an observation window   Da  action size
    Ta  actions executed per decision (1 for most). With images, windows and frames are TensorDicts (B, To) and (B,).
"""

from typing import NamedTuple, Protocol

from torch import Tensor


class Transition(NamedTuple):
    """One decision. `raw` is what the actor proposed, `base` what the base policy said."""

    obs: Tensor  # (B, Do) newest frame
    raw: Tensor  # (B, Ta, Da) in [-1, 1]
    base: Tensor  # (B, Ta, Da)
    reward: Tensor  # (B,)
    terminated: Tensor  # (B,) 1.0 where the value after this decision is zero
    decisions: Tensor  # (B,) decisions from obs to next_obs: 1, or up to n with n-step returns
    next_obs: Tensor  # (B, Do)
    next_base: Tensor  # (B, Ta, Da), so that no update ever calls the base policy


class Step(NamedTuple):
    """What B environments answer; those that are done have already been reset. All but the windows is on the CPU."""

    window: Tensor  # (B, To, Do) to decide on next
    final_window: Tensor  # (B, To, Do) before any reset: to bootstrap from
    success: Tensor  # (B,) bool
    terminated: Tensor  # (B,) bool, the value is zero
    done: Tensor  # (B,) bool, terminated or out of time
    env_steps: Tensor  # (B,) simulator steps taken by this decision, at most Ta
    episode: Tensor  # (B,) seed of the episode this decision belonged to


class VectorEnv(Protocol):
    """B environments that reset themselves; after `reset(seed)` the k-th episode to start is seeded `seed + k`.

    Those in which the seed decides only how the first B episodes begin, and of later ones also what happened before,
    say so by an attribute `drawn_at_reset`, True. Where a reset says how many `episodes` are wanted, as evaluation
    does, environments left without one may rest: they take no steps and are never done.
    """

    def reset(self, seed: int, episodes: int | None = None) -> Tensor: ...
    def step(self, action: Tensor) -> Step: ...
    def state(self) -> dict[str, Tensor]: ...  # with "next_seed", the next episode's
    def restore(self, state: dict[str, Tensor]) -> None: ...
    def close(self) -> None: ...


class BasePolicy(Protocol):
    """The frozen policy. It is only ever asked for actions."""

    @property
    def context(self) -> int: ...  # To, how many frames it looks at
    def act(self, window: Tensor) -> Tensor: ...  # (B, To, Do) -> (B, Ta, Da), executable as it is


class StatefulPolicy(Protocol):
    """A frozen policy that remembers each row's episode, and may offer `state()` and `restore(state)` to be resumed."""

    @property
    def context(self) -> int: ...
    @property
    def queries(self) -> int: ...  # rows that the policy behind it has really been asked about, in this session
    def session(self) -> "StatefulPolicy": ...  # the same policy with an empty memory of its own
    def reset(self, rows: Tensor) -> None: ...  # (K,) int64 on the CPU: in these rows of the batch episodes begin
    def act(self, window: Tensor, rows: Tensor) -> Tensor: ...  # (K, To, Do), (K,) -> (K, Ta, Da)


class Actor(Protocol):
    """What learns: samples with log-probabilities, and its most likely action."""

    def __call__(self, seen: Tensor) -> tuple[Tensor, Tensor]: ...
    def mode(self, seen: Tensor) -> Tensor: ...


class Composition(Protocol):
    """How the actor's raw action and the base action become one action."""

    def actor_input(self, obs: Tensor, base: Tensor) -> Tensor: ...
    def execute(self, base: Tensor, raw: Tensor) -> Tensor: ...
    def critic_action(self, base: Tensor, raw: Tensor) -> Tensor: ...
    def idle(self, base: Tensor) -> Tensor: ...


class Gate(Protocol):
    """Which environments let the actor speak at this decision."""

    def __call__(self, step: int, episode_step: Tensor) -> Tensor: ...  # steps so far, (B,) since reset -> (B,) bool
