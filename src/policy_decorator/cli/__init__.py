"""The command line, `pidec`: one file per command, one line here; nothing heavy is imported before it is needed.

stdout   the answer: a table, or with --json exactly one JSON value
stderr   progress, warnings and errors
exit     0 done, 2 wrong input (one line says what and what to do), 130 interrupted
"""

import json
import os
import sys
import traceback
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from policy_decorator import __version__
from policy_decorator.disk import to_json
from policy_decorator.errors import UserError, lookup

if TYPE_CHECKING:
    from rich.console import RenderableType

COMMANDS = {
    "demos": ("demos", "record demonstrations of a task, or read them from a published file"),
    "imitate": ("imitate", "train a base policy on demonstrations"),
    "refine": ("refine", "learn a residual on a frozen base policy, from sparse success"),
    "evaluate": ("evaluate", "measure a policy; a refined one against its base on the same episodes"),
    "serve": ("serve", "answer for a policy over a socket, as openpi's policy server does"),
    "play": ("play", "write a film of a task: random actions, demonstrations, its expert or a policy"),
    "report": ("report", "write the report of a run again, or compare several runs in one picture"),
    "list": ("listing", "tasks, policies, methods or presets"),
    "bench": ("bench", "measure the speed of learning on this machine, beside what one would use otherwise"),
    "demo": ("demo", "all of it in one command: an imperfect base policy, and its refinement"),
}
"""name -> its module in this folder, and what it is for."""

OVERVIEW = """\
pidec {version}: make a frozen robot policy near-perfect with a small, bounded residual

usage: pidec COMMAND [OPTIONS]      (pidec COMMAND --help explains every option)

{commands}

example:
  pidec demos metaworld/peg-insert-side --out demos.h5 --episodes 15 --noise 0.3
  pidec imitate mlp --demos demos.h5 --out base --steps 2000 --batch-size 256 --lr 1e-3
  pidec refine --policy base --demos demos.h5 --out runs/peg --total-steps 80000
  pidec evaluate runs/peg
"""


@dataclass(frozen=True)
class Answer:
    """What a command found out, for a program and for a person."""

    value: Any
    """Anything `disk.to_json` takes."""
    show: "RenderableType"
    """The same for a terminal."""
    as_json: bool
    """Whether --json was given."""


class Command(Protocol):
    """What the module of a command holds."""

    def parse(self, args: list[str]) -> Any: ...
    def run(self, options: Any) -> Answer: ...


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status; `argv` is `sys.argv[1:]` where it is not given."""
    args = list(sys.argv[1:] if argv is None else argv)
    with suppress(FileNotFoundError):  # a folder that is gone
        if (here := str(Path.cwd())) not in sys.path:  # where `python -m` finds modules too: for gym/MODULE:ID
            sys.path.append(here)
    try:
        return _dispatch(args)
    except UserError as error:
        if os.environ.get("PIDEC_DEBUG") == "1":
            traceback.print_exc()
        print(f"pidec: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\npidec: interrupted. {stop}".rstrip(), file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the answer, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as end:  # tyro, after --help or a wrong option, of which it has told
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 2


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        commands = "\n".join(f"  {name:<9} {summary}" for name, (_, summary) in COMMANDS.items())
        print(OVERVIEW.format(version=__version__, commands=commands), end="")
        return 0
    if args[0] == "--version":
        print(f"pidec {__version__}")
        return 0
    module, _ = lookup("command", args[0], COMMANDS)
    command = cast(Command, import_module(f"{__name__}.{module}"))
    options = command.parse(args[1:])
    with redirect_stdout(sys.stderr):  # simulators print: the answer must stay alone on stdout
        answer = command.run(options)
    _print(answer)
    sys.stdout.flush()
    return 0


def _print(answer: Answer) -> None:
    if answer.as_json:
        print(json.dumps(to_json(answer.value), indent=2, allow_nan=False, ensure_ascii=False))
        return
    from rich.console import Console

    Console(highlight=False).print(answer.show)
