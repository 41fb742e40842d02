"""`pidec serve FOLDER`: a policy over a socket, for this package's client and for openpi's."""

import sys
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from policy_decorator.base_policies.networks import parameters_of
from policy_decorator.cli import Answer
from policy_decorator.cli.options import Switch
from policy_decorator.cli.options import parse as parse_options
from policy_decorator.cli.saved import describe, load
from policy_decorator.cli.show import facts_table
from policy_decorator.envs import get_task
from policy_decorator.errors import UserError
from policy_decorator.hardware import choose_device
from policy_decorator.serving.server import Server

ABOUT = """Answer for a policy over a socket (WebSocket and msgpack), until Ctrl-C. FOLDER is a base policy, a run, \
whose refined policy is served, or a policy's file. Refine or evaluate it from elsewhere with --policy ws://HOST:PORT; \
clients written for openpi's policy server can use it as well."""


@dataclass(frozen=True)
class Options:
    """Options of `pidec serve`."""

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """A base policy, a run, or its refined/ folder; a policy's file."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 lets other machines in, and anybody who can reach the port may ask."""
    port: int = 8000
    """Port to listen at; 0 takes a free one and says which."""
    base: Switch = False
    """Serve the base policy of a run instead of the refined one."""
    task: str | None = None
    """Task whose sizes a policy's file has to have; None: the one the folder was made for."""
    entry: str | None = None
    """Entry of an openpi client's observation that holds its numbers, (Do,); None: the only one of that size."""
    device: str = "cpu"
    """cpu, cuda, or auto."""
    quiet: Switch = False
    """Nothing on stderr."""
    json: Switch = False
    """Print JSON at the end."""


def parse(args: list[str]) -> Options:
    """Raises UserError for a port that is none and an unknown task."""
    options = parse_options(Options, "serve", ABOUT, args)
    if not 0 <= options.port < 65536:
        raise UserError(f"--port must be in 0..65535, got {options.port}.")
    if options.task is not None:
        get_task(options.task)
    return options


def run(options: Options) -> Answer:
    """Serve until Ctrl-C."""
    saved = describe(options.folder)
    name = options.task or saved.task
    if name is None:
        raise UserError(f"{options.folder} does not say which task it was made for: give --task.")
    task, device = get_task(name), choose_device(options.device)
    base, refined = load(saved, device, task.action_size)
    sizes = {"obs_size": saved.obs_size or task.obs_size, "action_size": saved.action_size or task.action_size}
    shapes = saved.shapes or task.shapes
    policy = base if options.base or refined is None else refined
    kind = "refined" if policy is refined else saved.kind
    about = {"policy": kind, "task": task.name, "control_hz": task.control_hz}
    how: dict[str, Any] = {"entry": options.entry, "device": device, "shapes": shapes}
    how |= {"parameters": lambda: parameters_of(policy)}
    server = Server(policy, metadata=about, **sizes, **how)

    def ready(port: int) -> None:
        if not options.quiet:
            print(f"Serving {options.folder} ({kind}) at ws://{options.host}:{port}; Ctrl-C ends it.", file=sys.stderr)

    server.run(options.host, options.port, ready)
    value: dict[str, Any] = {"folder": options.folder, **about}
    value |= {"connections": server.connections, "answers": server.answers}
    rows = [("policy", kind), ("connections", str(server.connections)), ("answers", str(server.answers))]
    return Answer(value, facts_table(f"served {options.folder}", rows), options.json)
