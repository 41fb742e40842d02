"""A policy in another process."""

import sys
import time
from pathlib import Path

import pytest

from policy_decorator.errors import UserError
from policy_decorator.experiments import strangers

CHATTY = """#!{python} -S
import sys
print("Serving x at ws://127.0.0.1:1234; Ctrl-C ends it.", file=sys.stderr, flush=True)
for k in range(4000):
    print("a warning of a hundred characters" * 3, file=sys.stderr)
open(sys.argv[4], "w").write("done")
"""
MUTE = """#!{python} -S
import sys
sys.exit("there is no such policy")
"""


def _instead_of_python(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "program"
    program.write_text(script.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(strangers.sys, "executable", str(program))


def test_a_server_may_say_more_than_fits_into_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _instead_of_python(CHATTY, tmp_path, monkeypatch)
    assert strangers.served(tmp_path / "done") == "ws://127.0.0.1:1234"
    end = time.monotonic() + 60
    while not (tmp_path / "done").exists():
        assert time.monotonic() < end, "it waits for somebody to read what it says"
        time.sleep(0.02)


def test_one_that_ends_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _instead_of_python(MUTE, tmp_path, monkeypatch)
    with pytest.raises(UserError, match=r"ended: there is no such policy"):
        strangers.served(tmp_path)
