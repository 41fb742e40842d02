"""One training of a base policy: optimiser, learning rate, running mean, evaluations, and going on after a stop."""

import dataclasses
import hashlib
import io
import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from policy_decorator.base_policies.compiled import compiled, compiles
from policy_decorator.base_policies.precision import in_bfloat16
from policy_decorator.base_policies.processes import Processes
from policy_decorator.disk import atomic_bytes, disk_errors, to_json
from policy_decorator.errors import MissingExtra, UserError

if TYPE_CHECKING:
    from policy_decorator.base_policies.imitate import Evaluate, ImitateConfig, Imitator, Progress
    from policy_decorator.base_policies.windows import Windows
    from policy_decorator.demos.dataset import Demonstrations

REPORT_EVERY = 100  # steps between looks at the loss: each one waits for the accelerator


def cuda(device: torch.device) -> list[torch.device]:
    """Whose random state a training on `device` changes beside the CPU's."""
    return [device] if device.type == "cuda" else []


class Best:
    """The checkpoint to keep: the best one, or the one nearest to a success rate; the later of equals."""

    def __init__(self, wanted: float | None) -> None:
        self.wanted = wanted
        self.step = 0
        self.success: float | None = None
        self.state: dict[str, Tensor] | None = None

    def _merit(self, success: float) -> float:
        return success if self.wanted is None else -abs(success - self.wanted)

    def offer(self, step: int, success: float, policy: "Imitator") -> None:
        """A checkpoint and its success rate."""
        if self.success is None or self._merit(success) >= self._merit(self.success):
            self.step, self.success = step, success
            self.state = {name: value.detach().clone() for name, value in policy.state_dict().items()}


class Training:
    """A policy in training and all that changes with it."""

    def __init__(self, policy: "Imitator", windows: "Windows", cfg: "ImitateConfig", processes: Processes) -> None:
        """Raises UserError: a batch that the processes cannot share, a number format the device cannot compute in."""
        if cfg.batch_size % processes.count:
            raise UserError(f"batch_size {cfg.batch_size} is not a multiple of the {processes.count} processes.")
        self.policy, self.windows, self.cfg, self.processes = policy, windows, cfg, processes
        self.device = windows.newest.device
        groups = policy.parameter_groups(cfg.weight_decay)
        self.parameters: list[nn.Parameter] = [parameter for group in groups for parameter in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, fused=True)
        self.schedule = learning_rate(self.optimizer, cfg)
        self.average = running_mean(self.parameters, cfg.ema)
        self.bfloat16 = in_bfloat16(policy, cfg.precision, self.device)
        self.loss = processes.together(policy, compiled(policy.loss) if compiles(cfg, self.device) else policy.loss)
        self.generator = torch.Generator(self.device).manual_seed(cfg.seed)
        self.step, self.reported = 0, 0
        self.total = torch.zeros((), device=self.device)  # of the losses since the last report
        self.history: list[dict[str, float]] = []
        self.best = Best(cfg.keep_success)
        self.save: Callable[[], None] | None = None

    def run(self, evaluate: "Evaluate | None", progress: "Progress | None") -> None:
        """All steps that are left. Raises UserError for a loss or a success rate that is not finite."""
        cfg = self.cfg
        self.policy.train(True)
        while self.step < cfg.steps:
            self.step += 1
            self._update()
            last = self.step == cfg.steps
            evaluator = evaluate if last or self.step % cfg.eval_every == 0 else None
            if evaluator is not None or last or self.step % REPORT_EVERY == 0:
                self._report(evaluator, progress)
            if self.save is not None and not last and self.step % cfg.save_every == 0:
                self.save()

    def _update(self) -> None:
        batch = self.windows.draw(self.cfg.batch_size, self.generator, self.processes.share)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            loss = self.loss(*batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        if self.average is not None:
            self.average.step(self.parameters)
        self.total += loss.detach()

    def _report(self, evaluate: "Evaluate | None", progress: "Progress | None") -> None:
        mean = self.total.item() / (self.step - self.reported)  # of the own share: ranks report at other steps
        row = {"step": float(self.step), "loss": _finite(mean, "loss", self.step)}
        self.total, self.reported = torch.zeros((), device=self.device), self.step
        if self.processes.rank == 0 and evaluate is not None:
            row["success"] = self._evaluate(evaluate)
        self.history.append(row)
        if self.processes.rank == 0 and progress is not None:
            progress(self.step, self.cfg.steps, row)

    def _evaluate(self, evaluate: "Evaluate") -> float:
        # How often one evaluates must not change the training, and every checkpoint meets the same randomness.
        with torch.random.fork_rng(devices=cuda(self.device)), self._averaged():
            torch.manual_seed(self.cfg.seed)
            self.policy.train(False)
            success = _finite(float(evaluate(self.policy, self.step)), "evaluation success", self.step)
            self.best.offer(self.step, success, self.policy)
        self.policy.train(True)
        return success

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The policy with the running mean of its parameters, where there is one."""
        if self.average is None:
            yield
            return
        self.average.store(self.parameters)
        self._take_average()
        try:
            yield
        finally:
            self.average.restore(self.parameters)
            self._changed()

    def _take_average(self) -> None:
        self.average.copy_to(self.parameters)
        self._changed()

    def _changed(self) -> None:
        """VINN's database is of other parameters now."""
        if hasattr(self.policy, "stale"):
            cast(Any, self.policy).stale = True

    def keep(self) -> None:
        """Give the policy the parameters to keep."""
        if self.best.state is not None:
            self.policy.load_state_dict(self.best.state)
        elif self.average is not None:
            self._take_average()

    def state(self) -> dict[str, Any]:
        """All that it needs to go on, as nested dicts and lists of tensors and numbers."""
        cuda = self.device.type == "cuda"
        own = torch.cuda.get_rng_state(self.device) if cuda else torch.get_rng_state()
        return {
            "step": self.step,
            "reported": self.reported,
            "total": self.total,
            "history": self.history,
            "best": {"step": self.best.step, "success": self.best.success, "state": self.best.state},
            "parts": {name: part.state_dict() for name, part in self._parts().items()},
            "batches": self.generator.get_state(),
            "random": self.processes.gather(own),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.step, self.reported, self.total = state["step"], state["reported"], state["total"]
        self.history = state["history"]
        vars(self.best).update(state["best"])
        for name, part in self._parts().items():
            part.load_state_dict(state["parts"][name])
        self.generator.set_state(state["batches"].cpu())
        own = state["random"][self.processes.rank].cpu()
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(own, self.device)
        else:
            torch.set_rng_state(own)

    def _parts(self) -> dict[str, Any]:
        parts = {"policy": self.policy, "optimizer": self.optimizer, "schedule": self.schedule, "average": self.average}
        return {name: part for name, part in parts.items() if part is not None}


def learning_rate(optimizer: torch.optim.Optimizer, cfg: "ImitateConfig") -> Any:
    """A schedule of diffusers, or None where the learning rate stays as it is. Raises MissingExtra."""
    if cfg.schedule == "constant" and not cfg.warmup_steps:
        return None
    try:
        from diffusers.optimization import get_scheduler
    except ModuleNotFoundError:
        raise MissingExtra("diffusers", "diffusion") from None
    name = "constant_with_warmup" if cfg.schedule == "constant" else cfg.schedule
    return get_scheduler(name, optimizer, num_warmup_steps=cfg.warmup_steps, num_training_steps=cfg.steps)


def running_mean(parameters: list[nn.Parameter], decay: float) -> Any:
    """diffusers' mean, with decay min((1 + s) / (10 + s), `decay`) at step s + 1; None for 0. Raises MissingExtra."""
    if not decay:
        return None
    try:
        from diffusers.training_utils import EMAModel
    except ModuleNotFoundError:
        raise MissingExtra("diffusers", "diffusion") from None
    return EMAModel(parameters, decay=decay, foreach=True)


def begin_or_resume(
    training: Training, demos: "Demonstrations", path: Path | None, resume: bool, *, evaluated: bool
) -> None:
    """Let `training` write its checkpoints to `path`, and with `resume` go on from the one there.

    Raises:
        UserError: there is none, it is damaged, or it is another training's.
    """
    if path is None:
        if resume:
            raise UserError("To resume a training, say which checkpoint it left.")
        return
    settings = _settings(training, demos, evaluated)
    if resume:
        saved = _read(path, training.device)
        if training.processes.rank == 0:  # which alone evaluates
            _same(saved["settings"], settings, path)
        training.restore(saved["training"])

    def save() -> None:
        state = {"settings": settings, "training": training.state()}  # asks all processes
        if training.processes.rank == 0:
            whole = io.BytesIO()
            torch.save(state, whole)
            with disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            atomic_bytes(path, whole.getvalue())

    training.save = save


def _settings(training: Training, demos: "Demonstrations", evaluated: bool) -> dict[str, Any]:
    """What must be the same for a training to go on as it would have."""
    digest = hashlib.sha256()
    for array in (demos.observations, demos.actions, demos.lengths, *(x for _, x in sorted(demos.pictures.items()))):
        digest.update(np.ascontiguousarray(array).data)
    others = {"policy": type(training.policy).__name__, "demonstrations": digest.hexdigest(), "evaluated": evaluated}
    settings = dataclasses.asdict(training.policy.cfg)
    if (eyes := getattr(training.policy, "eyes", None)) is not None:
        settings |= {f"eyes.{name}": value for name, value in dataclasses.asdict(eyes).items()}
    policy = {f"{name} of the policy": value for name, value in settings.items()}
    cfg = {name: value for name, value in dataclasses.asdict(training.cfg).items() if name != "save_every"}
    return to_json(others | policy | cfg | {"processes": training.processes.count})


def _same(before: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    for name in sorted(before | now):
        if before.get(name) != now.get(name):
            raise UserError(
                f"The training that left {path} had {name} {before.get(name)}, not {now.get(name)}: resume it with "
                "the options it was begun with."
            )


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    """Tensors and plain values only."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"There is no {path} to resume from: begin without resuming.") from None
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(f"The checkpoint {path} is damaged and cannot be resumed: {error}") from None


def _finite(value: float, what: str, step: int) -> float:
    if not math.isfinite(value):
        raise UserError(f"The {what} is {value} at step {step}: lower the learning rate.")
    return value
