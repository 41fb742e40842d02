"""Policies of others by name, as `--policy` takes them: an address, or a file that may have options behind it."""

from pathlib import Path
from urllib.parse import parse_qsl

import torch

from policy_decorator.base_policies.entries import part_of_text
from policy_decorator.base_policies.files import is_file, load_file
from policy_decorator.base_policies.served import from_address, is_address
from policy_decorator.errors import UserError
from policy_decorator.memory import AnyPolicy


def is_place(text: str | Path) -> bool:
    """Whether it names a policy server, or a policy's file: `policy.onnx`, `policy.pt?chunk=8&context=2`."""
    return is_address(str(text)) or is_file(_split(text)[0])


def from_place(text: str | Path, action_size: int, device: torch.device | None = None) -> AnyPolicy:
    """The policy there; one in a file on `device`. Raises UserError as `served` and `load_file`."""
    if is_address(str(text)):
        return from_address(str(text), action_size)
    path, options = _split(text)
    given = dict(parse_qsl(options))
    try:
        sizes = {name: int(given.pop(name)) for name in ("chunk", "context") if name in given}
    except ValueError as error:
        raise UserError(f"{text} cannot be understood: {error}.") from None
    keys = {name: part_of_text(part) for name, part in given.items()} or None
    return load_file(path, action_size, device=device or torch.device("cpu"), keys=keys, **sizes)


def absolute(text: str) -> str:
    """The same place, named so that it is found from any folder; what names no place on this disk is left as it is."""
    path, options = _split(text)
    if is_address(text) or not path.exists():
        return text
    return f"{path.absolute()}?{options}" if options else str(path.absolute())


def _split(text: str | Path) -> tuple[Path, str]:
    """A path and the options behind it."""
    path, _, options = ("", "", "") if Path(text).exists() else str(text).partition("?")
    return Path(path or text), options
