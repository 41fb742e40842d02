"""The runs of a study in processes of their own, a few at a time, with its tables written behind each."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, TypeVar

Job = TypeVar("Job")


def side_by_side(todo: Sequence[Job], at_once: int, run: Callable[[Job], int], collect: Callable[[], None]) -> None:
    """`run` answers with an exit status. Raises SystemExit, when all have been tried, if some failed."""
    one_at_a_time = Lock()

    def run_and_collect(job: Job) -> int:
        code = run(job)
        with one_at_a_time:
            collect()
        return code

    with ThreadPoolExecutor(at_once) as pool:
        codes = list(pool.map(run_and_collect, todo))
    collect()
    if failed := [job for job, code in zip(todo, codes, strict=True) if code]:
        raise SystemExit(f"{len(failed)} of {len(todo)} runs failed: {failed}. Their output is above.")


def spawn(module: str, *options: Any) -> int:
    """`python -m module options`; its exit status."""
    return subprocess.run([sys.executable, "-m", module, *map(str, options)], check=False).returncode
