"""The published measurements: each study is a list of runs as data, run by one command and written as CSV.

    python -m policy_decorator.experiments.study controlled-exploration --seeds 0 1 2 --jobs 2

`results/<study>/` holds summary.csv (a line per run), curves.csv (every curve, a line per point), pictures (one per
task, or those of `experiments.pictures`), provenance.json and, for `recipes`, summary.json. What they hold is not run
again, nor is what a run folder holds: a study may be interrupted, run in parts (`--tasks`, `--labels`) and go on on
another machine. A run that was interrupted goes on from its checkpoint, if the code is the same revision without
changes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from policy_decorator import api
from policy_decorator.disk import atomic_bytes, atomic_json
from policy_decorator.errors import lookup, or_exit
from policy_decorator.experiments import comparisons, recipes
from policy_decorator.experiments.bases import BASES, kept_demonstrations, make_base
from policy_decorator.experiments.demo import TASK, DemoConfig
from policy_decorator.experiments.entry import Entry, config
from policy_decorator.experiments.pictures import pictures
from policy_decorator.experiments.side_by_side import side_by_side, spawn
from policy_decorator.experiments.tables import Key, Tables
from policy_decorator.progress import Bars
from policy_decorator.provenance import git_state, provenance
from policy_decorator.reports.image import png
from policy_decorator.runlog import CHECKPOINT, RunFolder

# What the exploration does alone: no demonstrations in the batches, SAC with its usual entropy and white noise.
OWN_EXPERIENCE = {"demo_share": 0.0, "noise_hold": 1, "n_step": 3, "reward_shift": -1.0}
PLAIN = {"tau": 0.01, "temperature": 0.02, "target_entropy": -1.0, "entropy_in_backup": True}


def _controlled_or_not(base: str, note: str = "", **settings: Any) -> tuple[Entry, Entry]:
    """Policy Decorator, and the same at bound 1 and horizon 0."""
    ours = Entry(base, f"Policy Decorator{note}", **settings)
    return ours, replace(ours, label=f"Residual RL{note}", bound=1.0, horizon=0)


def _faster(label: str, *, tune_cpu: bool = True, compile: str = "off", **settings: Any) -> Entry:
    """The demo's task for long enough to learn most of it."""
    run = {"tune_cpu": tune_cpu, "compile": compile, "eval_episodes": 50}
    return Entry(TASK, label, total_steps=25_000, run=run, **{"train": {"eval_every": 5_000}, **settings})


STUDIES: Mapping[str, tuple[Entry, ...]] = {
    # The runs of `make demo SEED=...`.
    "demo": (
        Entry(TASK, "Policy Decorator", total_steps=DemoConfig.total_steps, run={"workers": None, "keep": "best"}),
    ),
    "controlled-exploration": (
        *_controlled_or_not("metaworld/peg-insert-side", bound=0.3, horizon=20_000, learn=OWN_EXPERIENCE, sac=PLAIN),
        *_controlled_or_not("metaworld/stick-pull", bound=0.3, horizon=20_000, learn=OWN_EXPERIENCE, sac=PLAIN),
        *_controlled_or_not("metaworld/peg-insert-side", note=", quick"),
    ),
    # Whether what saves machine time changes what is learned.
    "bench/learning": (
        _faster("as PyTorch comes", tune_cpu=False),
        _faster("CPU tuned"),
        _faster("compiled", compile="on"),
        _faster("compiled, bfloat16", compile="on", nets={"precision": "bfloat16"}),
        _faster("overlap", train={"eval_every": 5_000, "overlap": True}),
    ),
    "recipes": recipes.ENTRIES,
    "introduced-by": comparisons.INTRODUCED_BY,
    "base-policies": comparisons.BASE_POLICIES,
    "other-methods": comparisons.OTHER_METHODS,
    "dppo": comparisons.DPPO,
    "fine-tuning": comparisons.FINE_TUNING,
    "appendix-f": comparisons.APPENDIX_F,
    "adroit": tuple(Entry(base, "Policy Decorator") for base in ("adroit/door-weak", "adroit/pen")),
}


@dataclass(frozen=True)
class StudyConfig:
    study: tyro.conf.Positional[str]
    """demo, controlled-exploration, adroit, recipes, introduced-by, base-policies, other-methods, dppo, fine-tuning,
    appendix-f or bench/learning."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """A run of every entry for each."""
    jobs: int = 1
    """Runs side by side; give each its own core with OMP_NUM_THREADS=1."""
    data: Path = Path("data")
    """Where the Adroit files are: `adroit/door-v0_demos.pickle`, `adroit/pen_expert.npz`."""
    runs: Path = Path("runs")
    """Where the run folders go."""
    results: Path = Path("results")
    """Where the tables go."""
    tasks: tuple[str, ...] = ()
    """The entries on these tasks; none given: on all."""
    labels: tuple[str, ...] = ()
    """The entries of these names; none given: all."""
    again: bool = False
    """Run what the tables hold once more."""
    only: tuple[int, int] | None = None
    """Run one (entry, seed) and nothing else; used for the processes of `jobs`."""


def folder(cfg: StudyConfig, index: int, seed: int) -> Path:
    entry = STUDIES[cfg.study][index]
    return cfg.runs / cfg.study / re.sub("[/:, ]+", "-", f"{entry.base}-{entry.label}-{seed}".lower())


def run_one(cfg: StudyConfig, index: int, seed: int) -> None:
    """One run into its folder. One that was interrupted goes on where it is of this very code, else it begins anew."""
    entry, out = STUDIES[cfg.study][index], folder(cfg, index, seed)
    display = Bars()
    policy, demos = make_base(entry.base, seed, cfg.data, cfg.runs / "bases", display)
    goes_on = _can_go_on(out)
    how: dict[str, Any] = {"resume": goes_on, "overwrite": not goes_on, "force": True}  # a base of 0 % is a result too
    api.run(config(entry, seed), policy, demos=demos, out=out, display=display, **how)


def _can_go_on(out: Path) -> bool:
    code = git_state()
    same = code["dirty"] is False and (out / CHECKPOINT).exists() and RunFolder.open(out).provenance()["git"] == code
    return same and not (out / "summary.json").exists()


def main(cfg: StudyConfig) -> None:
    entries = lookup("study", cfg.study, STUDIES)
    if cfg.only is not None:
        run_one(cfg, *cfg.only)
        return
    tables = Tables() if cfg.again else Tables.read(cfg.results / cfg.study)
    wanted = [i for i, entry in enumerate(entries) if _chosen(cfg, entry)]
    todo = [(i, s) for s in cfg.seeds for i in wanted if not (_finished(cfg, i, s) or _key(entries[i], s) in tables)]
    if not todo:
        print(f"{cfg.results / cfg.study} and the run folders hold all of it: give --again to measure it once more.")
    for base in {entries[i].base: BASES[entries[i].base] for i, _ in todo}.values():
        if base.same_for_all:  # once, before several processes want them
            kept_demonstrations(base, 0, cfg.data, cfg.runs / "bases", Bars(), processes=cfg.jobs)
    side_by_side(todo, cfg.jobs, lambda job: _spawn(cfg, *job), lambda: collect(cfg))


def _finished(cfg: StudyConfig, index: int, seed: int) -> bool:
    return (folder(cfg, index, seed) / "summary.json").exists()


def _chosen(cfg: StudyConfig, entry: Entry) -> bool:
    return (not cfg.tasks or BASES[entry.base].task in cfg.tasks) and (not cfg.labels or entry.label in cfg.labels)


def _spawn(cfg: StudyConfig, index: int, seed: int) -> int:
    options = ("--data", cfg.data, "--runs", cfg.runs, "--only", index, seed)
    return spawn("policy_decorator.experiments.study", cfg.study, *options)


def _key(entry: Entry, seed: int) -> Key:
    return BASES[entry.base].task, entry.label, seed


def collect(cfg: StudyConfig) -> None:
    """Tables and pictures of all runs there are."""
    out, tables = cfg.results / cfg.study, Tables.read(cfg.results / cfg.study)
    known = set(tables.summaries)
    seeds = sorted({*cfg.seeds, *(key[2] for key in tables.summaries)})
    keys: list[Key] = []
    for index, entry in enumerate(STUDIES[cfg.study]):
        for seed in seeds:
            if _finished(cfg, index, seed):
                tables.add(_key(entry, seed), RunFolder.open(folder(cfg, index, seed)))
            keys += [_key(entry, seed)] * (_key(entry, seed) in tables)
    if not keys:
        return
    out.mkdir(parents=True, exist_ok=True)
    curves = tables.write(out, keys)
    if cfg.study == "recipes":
        atomic_json(out / "summary.json", recipes.summary(curves))
    for name, picture in pictures(cfg.study, STUDIES[cfg.study], tables, keys):
        atomic_bytes(out / f"{name}.png", png(picture))
    if known == set(tables.summaries) and not cfg.again:
        return  # nothing was measured: where the numbers come from stays as it was written
    command = (
        f"python -m policy_decorator.experiments.study {cfg.study} --data DATA --seeds {' '.join(map(str, seeds))}"
    )
    revisions = sorted({str(tables.of(key, "git_revision")) for key in keys})
    missing = len(STUDIES[cfg.study]) * len(seeds) - len(keys)
    record = {k: v for k, v in provenance(None).items() if k not in ("argv", "git", "seed")}
    about = {"command": command, "git_revisions": revisions, "runs": len(keys), "runs_to_come": missing}
    atomic_json(out / "provenance.json", about | record)


if __name__ == "__main__":
    or_exit(lambda: main(tyro.cli(StudyConfig)))
