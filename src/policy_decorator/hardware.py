"""What a run uses of the machine it is on: device, number format, compilation, CUDA graphs, simulator processes."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from policy_decorator import machine
from policy_decorator.config import RefineConfig
from policy_decorator.envs import get_task
from policy_decorator.envs.vector import simulated_on
from policy_decorator.errors import UserError
from policy_decorator.progress import Display
from policy_decorator.rl.captured import Captured
from policy_decorator.rl.compiled import WORTH_IT, WORTH_IT_TUNED, Compiled, can_compile


def choose_device(name: str) -> torch.device:
    """cpu, cuda, ... or auto. Raises UserError for a device that is not there."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:70]
        raise UserError(f"The device {name!r} cannot be used ({reason}). Use cpu, or auto.") from None


def device_of(cfg: RefineConfig) -> torch.device:
    """`cfg.device`, "auto" being CUDA where there is any."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if cfg.device == "auto" else cfg.device)


def name_of(device: torch.device) -> str:
    """For people: cpu, or "cuda:0 (NVIDIA H100)"."""
    if device.type != "cuda":
        return str(device)
    return f"{device} ({torch.cuda.get_device_name(device)})"


def place_of(cfg: RefineConfig) -> dict[str, str]:
    """What a run cannot leave when it is resumed: the kind of its device, and where its simulators are."""
    device = device_of(cfg)
    return {"device": device.type, "simulation": simulated_on(get_task(cfg.task), device, cfg.simulation)}


def check_place(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raises UserError where a run of the place `before` cannot go on in the place `now`."""
    words = {"device": "the learner on {}", "simulation": "its environments simulated on {}"}
    for name, where in words.items():
        if before[name] != now[name]:
            then, here = (x[name].replace("gpu", "a GPU").replace("cpu", "the CPU") for x in (before, now))
            raise UserError(
                f"The run was started with {where.format(then)}, and here it would be {here}: "
                f"resume it on a machine like the first, with the same {name}, or begin a new run."
            )


def resolved(cfg: RefineConfig, display: Display) -> RefineConfig:
    """The same with the number format that "auto" means here; says so where bfloat16 costs time instead of saving it.

    Other choices of "auto" change no result and stay as they are.
    """
    if cfg.learn.nets.precision == "float32":
        return cfg
    slower = machine.bfloat16_slowdown(device_of(cfg))
    if cfg.learn.nets.precision == "bfloat16":
        if slower > machine.MUCH_SLOWER:
            display.say(
                f"Warning: products in bfloat16 take {slower:.0f} times as long as in float32 on this processor: "
                "leave out --precision bfloat16, or take --precision auto."
            )
        return cfg
    nets = replace(cfg.learn.nets, precision="bfloat16" if slower < 1 else "float32")
    return replace(cfg, learn=replace(cfg.learn, nets=nets))


def uses_cuda_graphs(cfg: RefineConfig) -> bool:
    """`cfg.cuda_graphs`, "auto" being on where the learner is on a CUDA device. UserError where it cannot be on."""
    cuda = device_of(cfg).type == "cuda"
    if cfg.cuda_graphs == "on" and not cuda:
        raise UserError(f"CUDA graphs need a CUDA device, and this run's is {device_of(cfg)}: leave out cuda_graphs.")
    return cuda and cfg.cuda_graphs != "off"


def compiles(cfg: RefineConfig) -> bool:
    """`cfg.compile`, "auto" being on for long runs where torch can. UserError where it is to be on and torch cannot."""
    if cfg.compile == "on" and not can_compile():
        raise UserError(f"torch {torch.__version__} cannot compile updates: take a newer one, or leave out compile.")
    updates = (cfg.train.total_steps - cfg.train.warmup_steps) * cfg.train.updates_per_step
    worth_it = updates >= (WORTH_IT_TUNED if cfg.learn.tunes_base else WORTH_IT)
    return cfg.compile == "on" or (cfg.compile == "auto" and worth_it and can_compile())


def used(updates: Iterable[object]) -> dict[str, bool]:
    """Whether ways of updating (`Run.update`) were compiled and replayed from CUDA graphs, as it turned out."""
    compiled = graphs = False
    for update in updates:
        graphs |= isinstance(update, Captured) and bool(update.recorded)
        inner = getattr(update.step, "__self__", None) if isinstance(update, Captured) else update
        compiled |= isinstance(inner, Compiled) and bool(inner.works) and all(inner.works.values())
    return {"compiled": compiled, "cuda_graphs": graphs}


def workers_of(cfg: RefineConfig) -> int:
    """`cfg.workers`, None being one process per core, and none but this one where there is one core."""
    if cfg.workers is not None:
        return cfg.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if cores > 1 else 0
