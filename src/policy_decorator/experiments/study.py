"""The published measurements: each study is a list of runs as data, run by one command and written as CSV.

    python -m policy_decorator.experiments.study controlled-exploration --seeds 0 1 2 --jobs 2

Runs that are finished are kept and not run again, so a study may be interrupted. `results/<study>/` then holds
summary.csv (a line per run), curves.csv (every curve, a line per point), a picture per task, provenance.json and, for
`recipes`, summary.json. A part of a study (`--tasks`, `--labels`) is run and not collected.
"""

import csv
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from policy_decorator import api
from policy_decorator.disk import atomic_bytes, atomic_json
from policy_decorator.errors import lookup
from policy_decorator.experiments import recipes
from policy_decorator.experiments.bases import make_base
from policy_decorator.experiments.demo import TASK, DemoConfig
from policy_decorator.experiments.entry import Entry, config
from policy_decorator.progress import Bars
from policy_decorator.provenance import provenance
from policy_decorator.reports.curves import compare
from policy_decorator.reports.image import png
from policy_decorator.runlog import RunFolder

CURVES = ("train/success", "eval/full", "eval/behaviour", "eval/base", "train/epsilon")
SUMMARY = (
    "task", "policy", "method", "seed", "base_success", "refined_success", "gain", "gain_low", "gain_high", "fixed",
    "broken", "test_episodes", "env_steps", "decisions", "updates", "base_queries", "wall_seconds", "bound", "horizon",
    "kept_checkpoint_step", "git_revision", "git_dirty",
)  # fmt: skip


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
    "demo": (Entry(TASK, "Policy Decorator", total_steps=DemoConfig.total_steps, run={"workers": None}),),
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
    "adroit": tuple(Entry(base, "Policy Decorator") for base in ("adroit/door", "adroit/pen")),
}


@dataclass(frozen=True)
class StudyConfig:
    study: tyro.conf.Positional[str]
    """demo, controlled-exploration, adroit, recipes or bench/learning."""
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
    """The entries on these base policies; none given: on all."""
    labels: tuple[str, ...] = ()
    """The entries of these names; none given: all."""
    only: tuple[int, int] | None = None
    """Run one (entry, seed) and nothing else; used for the processes of `jobs`."""


def folder(cfg: StudyConfig, index: int, seed: int) -> Path:
    entry = STUDIES[cfg.study][index]
    name = f"{entry.base}-{entry.label}-{seed}".lower().replace(",", "").replace("/", "-").replace(" ", "-")
    return cfg.runs / cfg.study / name


def run_one(cfg: StudyConfig, index: int, seed: int) -> None:
    """One run into its folder, begun anew where an earlier try did not finish."""
    entry, out = STUDIES[cfg.study][index], folder(cfg, index, seed)
    display = Bars()
    policy, demos = make_base(entry.base, seed, cfg.data, cfg.runs / "bases", display)
    api.run(config(entry, seed), policy, demos=demos, out=out, overwrite=True, display=display)


def main(cfg: StudyConfig) -> None:
    entries = lookup("study", cfg.study, STUDIES)
    if cfg.only is not None:
        run_one(cfg, *cfg.only)
        return
    wanted = [i for i, entry in enumerate(entries) if _chosen(cfg, entry)]
    todo = [(i, s) for s in cfg.seeds for i in wanted if not (folder(cfg, i, s) / "summary.json").exists()]
    with ThreadPoolExecutor(cfg.jobs) as pool:
        codes = list(pool.map(lambda job: _spawn(cfg, *job), todo))
    failed = [job for job, code in zip(todo, codes, strict=True) if code]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(todo)} runs failed (entry, seed): {failed}. Their output is above.")
    if len(wanted) == len(entries):
        collect(cfg)


def _chosen(cfg: StudyConfig, entry: Entry) -> bool:
    return (not cfg.tasks or entry.base in cfg.tasks) and (not cfg.labels or entry.label in cfg.labels)


def _spawn(cfg: StudyConfig, index: int, seed: int) -> int:
    options = ["--data", cfg.data, "--runs", cfg.runs, "--only", index, seed]
    command = [sys.executable, "-m", "policy_decorator.experiments.study", cfg.study, *map(str, options)]
    return subprocess.run(command, check=False).returncode


def collect(cfg: StudyConfig) -> None:
    """Tables and pictures of all runs of the study."""
    rows: list[list[Any]] = []
    curves: list[list[Any]] = []
    pictures: dict[str, dict[str, list[RunFolder]]] = {}
    for index, entry in enumerate(STUDIES[cfg.study]):
        for seed in cfg.seeds:
            run = RunFolder.open(folder(cfg, index, seed))
            pictures.setdefault(entry.base, {}).setdefault(entry.label, []).append(run)
            summary, git = run.summary(), run.provenance().get("git", {})
            summary |= {"method": entry.label, "git_revision": git.get("revision"), "git_dirty": git.get("dirty")}
            summary["gain_low"], summary["gain_high"] = summary["gain_ci95"]
            rows.append([summary.get(name) for name in SUMMARY])
            curves += [
                [entry.base, entry.label, seed, line["env_steps"], name, line[name]]
                for line in run.metrics()
                for name in CURVES
                if line.get(name) is not None
            ]
    out = cfg.results / cfg.study
    out.mkdir(parents=True, exist_ok=True)
    _write_csv(out / "summary.csv", SUMMARY, rows)
    _write_csv(out / "curves.csv", ("task", "method", "seed", "env_steps", "metric", "value"), curves)
    if cfg.study == "recipes":
        atomic_json(out / "summary.json", recipes.summary(curves))
    for base, runs in pictures.items():
        atomic_bytes(out / f"{base.replace('/', '-')}.png", png(compare(runs)))
    seeds = " ".join(map(str, cfg.seeds))
    command = f"python -m policy_decorator.experiments.study {cfg.study} --seeds {seeds}"
    revisions = sorted({str(row[SUMMARY.index("git_revision")]) for row in rows})  # of the runs, not of this call
    record = {k: v for k, v in provenance(None).items() if k not in ("argv", "git", "seed")}
    atomic_json(out / "provenance.json", {"command": command, "git_revisions": revisions, **record})


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


if __name__ == "__main__":
    main(tyro.cli(StudyConfig))
