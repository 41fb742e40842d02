"""The programs in `examples/`, as one would run them."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.slow
@pytest.mark.parametrize("program", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_it_runs_on_a_controller_that_works_some_of_the_time(program: Path, tmp_path: Path) -> None:
    """To its end, but little longer than the warm-up: what is learned is tested elsewhere."""
    command = [sys.executable, str(program), "--total-steps", "5100"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    (said,) = [line for line in ended.stdout.splitlines() if line.startswith("controller alone")]
    assert 20 < int(said.split()[2].strip("%,")) < 60
