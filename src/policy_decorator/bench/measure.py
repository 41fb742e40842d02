"""All of `pidec bench` as one answer: everything in turns, medians, and the ratios of these very numbers."""

import os
import platform
from collections.abc import Callable, Hashable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

from policy_decorator.bench import learner, loop, sb3
from policy_decorator.bench.child import Child
from policy_decorator.bench.config import (
    BenchConfig,
    Precision,
    base_of,
    cores,
    count,
    device_of,
    task_of,
    thread_counts,
)
from policy_decorator.bench.limit import update_flops
from policy_decorator.machine import MUCH_SLOWER, bfloat16_slowdown
from policy_decorator.progress import Display
from policy_decorator.provenance import provenance

K = TypeVar("K", bound=Hashable)
Row = dict[str, Any]

MEMORY = 8 * 10**9
WANTED_TRANSITIONS = 10_000_000
PRODUCT_SECONDS = 0.3
BUSY = 0.5  # load average of the last minute


def bench(cfg: BenchConfig, display: Display) -> dict[str, Any]:
    """Measure; every time in the answer is of this call.

    Raises:
        UserError: unknown names, sizes that do not fit, Stable-Baselines3 not installed.
    """
    base_of(cfg, task := task_of(cfg))  # refuse what is wrong before anything is measured
    if cfg.sb3:
        sb3.check_installed()
    facts = machine_facts()
    if facts["load_average"] and facts["load_average"][0] > BUSY:
        display.say(
            f"Warning: this machine is busy (load average {facts['load_average'][0]:.1f}): times will be too long."
        )
    if not cfg.precisions:
        cfg = replace(cfg, precisions=precisions_of(device_of(cfg)))
    updates, eager, limit, fields = measure_updates(cfg, display)
    chosen = best_update(updates)
    ends, tried = measure_loops(cfg, chosen, display)
    return {
        "sizes": {"obs": task.obs_size, "action": task.action_size},
        "settings": cfg,
        "base": f"{cfg.base}, random weights" if cfg.base in ("bet", "mlp") else cfg.base,
        "device": str(device_of(cfg)),
        "statistic": f"median of {cfg.repeats} repeats, all sides in turns; limit: best of {cfg.repeats}",
        "updates": updates,
        "eager": eager,
        "limit": limit,
        "loops": ends,
        "tried_once": tried,
        "memory": memory(fields, ends),
        "ratios": ratios(updates, eager, limit, ends),
        "ratios_by_precision": {
            p: ratios([r for r in updates if r["precision"] == p], eager, limit, ends, p) for p in cfg.precisions
        },
        "provenance": {k: v for k, v in provenance(0).items() if k != "argv"} | facts,
    }


def in_turns(asks: Mapping[K, Callable[[], float]], repeats: int, display: Display, title: str) -> dict[K, list[float]]:
    """Every question once, then every question again: what disturbs the machine disturbs all of them."""
    answers: dict[K, list[float]] = {key: [] for key in asks}
    with display.stage(title, repeats * len(asks)) as update:
        for repeat in range(repeats):
            for i, (key, ask) in enumerate(asks.items(), start=1):
                answers[key].append(ask())
                update(repeat * len(asks) + i)
    return answers


# ---- one update -----------------------------------------------------------------------------------------------


WAYS = ("plain", "compiled", "captured")
"""In which our update is run: as it is, compiled, and compiled and replayed from CUDA graphs."""


def precisions_of(device: torch.device) -> tuple[Precision, ...]:
    """The number formats worth measuring: without bfloat16 where the processor only imitates it."""
    return ("float32", "bfloat16") if bfloat16_slowdown(device) < MUCH_SLOWER else ("float32",)


def measure_updates(cfg: BenchConfig, display: Display) -> tuple[list[Row], list[Row], Row, dict[str, int]]:
    """Our updates, the eager ones, the limit, and the bytes of one transition by field."""
    cuda, task = device_of(cfg).type == "cuda", task_of(cfg)
    threads, ways = ((1,), WAYS) if cuda else (thread_counts(cfg), WAYS[:2])
    formats = ("float32", "bfloat16", "tf32") if cuda else ("float32", "bfloat16")
    product_seconds = min(PRODUCT_SECONDS, cfg.seconds)
    with ExitStack() as stack:
        ours = stack.enter_context(Child(learner.OurLearner, cfg))
        theirs = stack.enter_context(Child(learner.EagerLearner, cfg))
        asks: dict[tuple[str, str, int], Callable[[], float]] = {}
        for n in threads:
            asks |= {(m, p, n): _ask(ours, m, n, cfg.seconds, p) for p in cfg.precisions for m in ways}
            asks["eager", "float32", n] = _ask(theirs, "plain", n, cfg.seconds)
            asks["sample", "", n] = _ask(ours, "sample", n, cfg.seconds / 5)
            asks |= {("product", f, n): _ask(ours, "product", n, product_seconds, f) for f in formats}
        answers = in_turns(asks, cfg.repeats, display, "timing updates")
        fields = ours.ask(learner.Question("bytes by field"))
    sampling = {n: 1000 * median(answers["sample", "", n]) for n in threads}
    rows = [
        update_row(seconds, sampling[n], precision=precision, threads=n, way=what)
        for (what, precision, n), seconds in answers.items()
        if what in ways
    ]
    eager = [{"threads": n, **_milliseconds(answers["eager", "float32", n])} for n in threads]
    nets = {"width": cfg.width, "depth": cfg.depth, "critics": cfg.critics, "batch_size": cfg.batch_size}
    flops = update_flops(obs=task.obs_size, action=task.action_size, **nets)
    rates = {(f, n): max(answers["product", f, n]) for f in formats for n in threads}
    return rows, eager, limit_of(flops, rates), fields


def _ask(child: Child, what: Any, threads: int, seconds: float, name: str = "float32") -> Callable[[], float]:
    return lambda: child.ask(learner.Question(what, threads, seconds, name))


def _milliseconds(seconds: list[float]) -> Row:
    return {"update_ms": 1000 * median(seconds), "update_ms_best": 1000 * min(seconds)}


def update_row(seconds: list[float], sample_ms: float, **how: Any) -> Row:
    times = _milliseconds(seconds)
    return {**how, **times, "sample_ms": sample_ms, "updates_per_s": 1000 / (times["update_ms"] + sample_ms)}


def name_of(row: Row) -> str:
    """Of one of our updates."""
    return row["precision"] + {"plain": "", "compiled": ", compiled", "captured": ", compiled, CUDA graphs"}[row["way"]]


def best_update(rows: list[Row]) -> Row:
    """The fastest."""
    return min(rows, key=lambda row: row["update_ms"])


def limit_of(flops: int, rates: Mapping[tuple[str, int], float]) -> Row:
    """The least time of an update's products in each format, with the best number of threads."""
    formats: dict[str, Row] = {}
    for (name, threads), rate in sorted(rates.items(), key=lambda item: item[1]):  # the fastest comes last and stays
        formats[name] = {"threads": threads, "flops_per_s": rate, "ms": 1000 * flops / rate}
    return {"flops_per_update": flops, "formats": formats, "fastest": min(formats, key=lambda f: formats[f]["ms"])}


# ---- from end to end ------------------------------------------------------------------------------------------


def measure_loops(cfg: BenchConfig, chosen: Row, display: Display) -> tuple[list[Row], list[Row]]:
    """Our loop in each number format, and Stable-Baselines3; and what was tried once to find their settings."""
    settings, tried = choose_settings(cfg, chosen, display)
    with ExitStack() as stack:
        children = {how: stack.enter_context(_loop(cfg, how)) for how in settings}
        asks = {how: _steps(child, "train", cfg.steps) for how, child in children.items()}
        rates = in_turns(asks, cfg.repeats, display, "timing whole loops")
        peaks = {how: child.ask(loop.Question("memory")) for how, child in children.items()}
        collect = {how: _steps(c, "collect", cfg.steps) for how, c in children.items() if isinstance(how, loop.Setting)}
        collected = in_turns(collect, cfg.repeats, display, "timing collection")
    rows = []
    for how, found in rates.items():
        row = describe(how) | {"steps_per_s": median(found), "steps_per_s_best": max(found), "peak_bytes": peaks[how]}
        rows.append(row | {"decisions_per_s": median(collected[how]) if how in collected else None})
    return rows, tried


LoopSetting = loop.Setting | sb3.Setting


def choose_settings(cfg: BenchConfig, chosen: Row, display: Display) -> tuple[list[LoopSetting], list[Row]]:
    """The fastest of a few, each tried once; without `calibrate`, the first of them."""
    workers = (cores() if cores() > 1 else 0) if cfg.workers is None else cfg.workers
    tried: list[Row] = []

    def fastest(candidates: list[LoopSetting]) -> Any:
        if not cfg.calibrate or len(candidates) == 1:
            return candidates[0]
        rates = {}
        with display.stage("choosing settings", len(candidates)) as update:
            for i, how in enumerate(candidates, start=1):
                with _loop(cfg, how) as child:
                    rates[how] = child.ask(loop.Question("train", cfg.steps))
                tried.append(describe(how) | {"steps_per_s": rates[how]})
                update(i)
        return max(rates, key=lambda how: rates[how])

    counts = dict.fromkeys((chosen["threads"], 1))
    ours = fastest([loop.Setting(workers, n, overlap=o) for n in counts for o in (False, True)])
    settings: list[LoopSetting] = [replace(ours, precision=precision) for precision in cfg.precisions]
    if cfg.sb3:
        settings.append(fastest([sb3.Setting(place, n) for n in (None, 1) for place in ("dummy", "subproc")]))
    return settings, tried


def _loop(cfg: BenchConfig, how: LoopSetting) -> Child:
    return Child(loop.OurLoop if isinstance(how, loop.Setting) else sb3.StableBaselines, cfg, how)


def _steps(child: Child, what: Any, steps: int) -> Callable[[], float]:
    return lambda: child.ask(loop.Question(what, steps))


def describe(how: LoopSetting) -> Row:
    side = "ours" if isinstance(how, loop.Setting) else "sb3"
    return {"side": side, "label": str(how), "precision": getattr(how, "precision", "float32"), "setting": how}


# ---- what follows from the numbers ----------------------------------------------------------------------------


def ratios(updates: list[Row], eager: list[Row], limit: Row, loops: list[Row], precision: str | None = None) -> Row:
    """Of the fastest rows: eager / ours, ours / Stable-Baselines3 in steps, ours / the limit in its format.

    `precision` None: of any number format. The eager update counts with one thread; with its best number of threads it
    is reported too.
    """
    row, formats = best_update(updates), limit["formats"]
    ours = [r for r in loops if r["side"] == "ours" and precision in (None, r["precision"])]
    theirs = [r["steps_per_s"] for r in loops if r["side"] == "sb3"]
    end = max(ours, key=lambda r: r["steps_per_s"])
    name = limit["fastest"] if precision is None else precision
    return {
        "update": f"{name_of(row)}, {count(row['threads'], 'thread')}",
        "loop": end["label"],
        "limit": name,
        "update_vs_eager": _with_threads(eager, 1)["update_ms"] / row["update_ms"],
        "update_vs_eager_at_its_best": min(r["update_ms"] for r in eager) / row["update_ms"],
        "end_to_end_vs_sb3": end["steps_per_s"] / theirs[0] if theirs else None,
        "update_vs_limit": row["update_ms"] / formats[name]["ms"],
    }


def _with_threads(rows: list[Row], threads: int) -> Row:
    """The row of so many threads, or of the fewest measured."""
    return next((r for r in rows if r["threads"] == threads), min(rows, key=lambda r: r["threads"]))


def memory(fields: Mapping[str, int], loops: list[Row]) -> Row:
    """What one transition takes, how many fit, and the largest resident memory of each loop."""
    size = sum(fields.values())
    return {
        "bytes_per_transition": size,
        "bytes_by_field": dict(fields),
        "transitions_in_8_GB": MEMORY // size,
        "missing_for_10_million": max(0, WANTED_TRANSITIONS * size - MEMORY),
        "peak_bytes": {f"{r['side']}: {r['label']}": r["peak_bytes"] for r in loops},
    }


def machine_facts() -> Row:
    """Of the processor, and how busy it was."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    facts: Row = {"cpu": name, "cores": cores(), "default_threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts | {"load_average": os.getloadavg() if hasattr(os, "getloadavg") else None}
