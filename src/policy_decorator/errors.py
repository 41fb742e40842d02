"""Errors a user can act on: one line that says what is wrong and what to do."""

import difflib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """Wrong input. The command line prints the message alone, without a traceback."""


class MissingExtra(UserError, ImportError):
    """A simulator or reader is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f'{what} is not installed. Install it with: pip install "policy-decorator[{extra}]"')


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest one that does."""
    known = sorted(known)
    if not known:
        return UserError(f"Unknown {kind} {name!r}: there is none.")
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    listed = ", ".join(known) if len(known) <= 12 else f"{', '.join(known[:12])}, ... ({len(known)} in all)"
    return UserError(f"Unknown {kind} {name!r}.{hint} Known: {listed}.")


def lookup(kind: str, name: str, table: Mapping[str, T]) -> T:
    """`table[name]`, or `unknown`."""
    try:
        return table[name]
    except KeyError:
        raise unknown(kind, name, table) from None


def or_exit(work: Callable[[], None]) -> None:
    """Run a module's main. What its user has to put right is one line on stderr, and exit status 2."""
    try:
        work()
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
