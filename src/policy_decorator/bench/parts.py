"""What each method is made of, read from a run of it."""

from dataclasses import dataclass

from policy_decorator.methods import Run
from policy_decorator.rl.demonstrations import Mixed, Pooled
from policy_decorator.rl.ppo import Rollouts
from policy_decorator.rl.replay import NStep, Replay


@dataclass(frozen=True)
class Parts:
    """The classes a method puts together, by the place they have in the training loop."""

    actor: str
    composition: str
    gate: str
    data: str
    reward: str
    update: str


def parts_of(run: Run) -> Parts:
    """Names of classes, and the numbers in which one method differs from another."""
    collector, learner, offline = run.collector, _name(run.learner), run.offline
    if offline is not None:
        by = _name(offline.learner, "calibrated")
        learner = (
            f"{offline.total:,} offline by {by}, then {learner}"
            if by != learner
            else f"{offline.total:,} offline too, {by}"
        )
    if _layer_norm(run.learner.critic):
        learner += ", LayerNorm in the critics"
    sources = {type(run.data): _source(run.data), type(run.intake): _name(run.intake)}
    if isinstance(run.intake, Rollouts):
        sources.pop(Replay, None)
    sources.pop(NStep, None)
    return Parts(
        actor=_name(run.learner.actor),
        composition=_name(collector.composition, "bound"),
        gate=_name(collector.gate, "horizon"),
        data=" of ".join(sources.values()),
        reward=f"success {collector.reward_shift:+g}" if run.reward is None else _name(run.reward),
        update=learner,
    )


def _layer_norm(critic: object) -> bool:
    """Whether these are critics with LayerNorm."""
    return bool(getattr(getattr(critic, "net", None), "layer_norm", False))


def _source(data: object) -> str:
    """The class, and how much of a batch comes from the demonstrations."""
    if not isinstance(data, Mixed):
        return _name(data)
    share = "as in one pool" if isinstance(data.share, Pooled) else f"share={data.share():g}"
    return f"{_name(data)}({share})"


def _name(part: object, setting: str = "") -> str:
    """The class, and one of its settings where it has that."""
    value = getattr(part, setting, None) if setting else None
    return type(part).__name__ + ("" if value is None else f"({setting}={value})")
