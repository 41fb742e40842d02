"""Everything that decides a run, besides the policy itself, in one dataclass; presets and the command line fill it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, get_type_hints

from policy_decorator.disk import from_json, to_json
from policy_decorator.envs.vector import Simulation
from policy_decorator.errors import UserError, unknown
from policy_decorator.evaluation import SEEDS
from policy_decorator.methods import METHODS, OffPolicyConfig, policy_decorator
from policy_decorator.train import TrainConfig

T = TypeVar("T")


@dataclass(frozen=True)
class RefineConfig:
    """The settings of one refinement."""

    task: str
    """Name of the task, e.g. metaworld/peg-insert-side."""
    policy: str = "yours"
    """Where the base policy comes from: a folder, or a word for one given in Python."""
    method: str = "policy-decorator"
    """See `pidec list methods`."""
    learn: OffPolicyConfig = field(default_factory=policy_decorator.Config)
    """The method's settings."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The budget and its rhythm."""
    envs: int = 16
    """Environments stepped together (16 in the released code)."""
    workers: int | None = None
    """Processes among which the simulators are shared out; 0: none but this one; None: one per core. The results are
    the same."""
    simulation: Simulation = "auto"
    """Where the environments are simulated, for tasks that can be on a GPU: auto is on the learner's device, and on the
    CPU with a warning where a GPU cannot be had for it."""
    eval_episodes: int = 50
    """Episodes per evaluation during training (paper Sec. 5.3)."""
    test_episodes: int = 100
    """Paired episodes of the final comparison, on seeds used for nothing else."""
    decide: Literal["step", "chunk"] = "step"
    """How often the residual acts where the base answers with chunks of actions: at every environment step, or once
    per chunk (the released code)."""
    keep: Literal["best", "learned", "last"] = "best"
    """The policy handed over: of the best evaluation, the base itself where none was as good as its own; of the best
    one of what was learned, the base or not; or of the end."""
    seed: int = 0
    """Of the networks, the exploration and the training episodes, 0 to 99. Evaluation seeds are the same for every
    seed."""
    threads: int | Literal["auto"] | None = None
    """Threads of the learner on a CPU; None leaves torch's choice, auto takes what makes a few updates fastest."""
    tune_cpu: bool = True
    """Let the CPU do the same arithmetic in less time (see `machine`)."""
    device: str = "auto"
    """Of the learner, the replay and the base: cpu, cuda, or auto."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether updates are compiled, which takes half a minute; auto: where there are enough of them to win it back."""
    cuda_graphs: Literal["auto", "on", "off"] = "auto"
    """Whether updates are recorded as CUDA graphs and replayed; auto: where the learner is on a CUDA device."""
    replay_capacity: int | None = None
    """Decisions kept for learning; None keeps all, as in the released code."""
    max_steps: int | None = None
    """Time limit of an episode in environment steps; None takes the task's."""
    ends_at_success: bool = True
    """False: episodes always last until the time limit, as DPPO's (paper App. C.1)."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < SEEDS:  # its training episodes would be those of evaluations
            raise UserError(
                f"seed must be 0 to {SEEDS - 1}, got {self.seed}: behind them lie the evaluations' episodes."
            )
        wanted = METHODS[self.method].config if self.method in METHODS else type(self.learn)
        if type(self.learn) is not wanted:
            raise UserError(f"{self.method} has settings of its own: give learn=settings_of({self.method!r}, learn).")
        if self.learn.on_policy and self.train.overlap:
            who = "PPO" if self.learn.learner == "ppo" else self.method
            raise UserError(f"{who} learns only from what its latest policy did: leave out overlap.")
        if self.threads == "auto" and not self.learn.BATCHES:
            raise UserError(
                f"threads = auto times updates before there are data, which those of {self.method} need: give a number."
            )

    @staticmethod
    def kinds(value: Mapping[str, Any]) -> dict[str, Any]:
        """The type of `learn` in a run's JSON."""
        return {"learn": entry.config} if (entry := METHODS.get(value.get("method", ""))) else {}


def flat(config: Any) -> Iterator[tuple[str, Any]]:
    """Names and values of all settings, those of settings inside them too: the options of the command line."""
    for setting in fields(config):
        value = getattr(config, setting.name)
        if is_dataclass(value):
            yield from flat(value)
        else:
            yield setting.name, value


def changed(config: T, given: Mapping[str, Any]) -> T:
    """The same with settings given by their names in `flat`. Raises UserError: unknown names, values of other types."""
    known = [name for name, _ in flat(config)]
    for name in given:
        if name not in known:
            raise unknown("setting", name, known)
    return _changed(config, given)


def _changed(config: Any, given: Mapping[str, Any]) -> Any:
    hints, new = get_type_hints(type(config)), {}
    for setting in fields(config):
        name, value = setting.name, getattr(config, setting.name)
        if is_dataclass(value):
            new[name] = _changed(value, given)
        elif name in given:
            new[name] = from_json(hints[name], _plain(name, given[name]), name)
    return replace(config, **new)


def _plain(name: str, value: Any) -> Any:
    try:
        return to_json(value)
    except TypeError:
        raise UserError(f"{name} cannot be {value!r}.") from None
