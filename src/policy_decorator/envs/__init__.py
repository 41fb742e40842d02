"""The tasks, by name; no simulator is imported before an environment is made.

To add a task: write `tasks()` in a file of this folder and add its line here. tests/envs then tests it.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

from policy_decorator.envs import adroit, maniskill, metaworld, robosuite, toy
from policy_decorator.envs.registered import PREFIX, registered
from policy_decorator.envs.task import Task
from policy_decorator.errors import UserError, lookup

TASKS: Mapping[str, Task] = MappingProxyType(
    {
        **toy.TASKS,
        **adroit.tasks(),
        **maniskill.tasks(),
        **metaworld.tasks(),
        **robosuite.tasks(),
    }
)


def get_task(name: str) -> Task:
    """The task called `name`, "peg-insert-side" of Meta-World being "metaworld/peg-insert-side".

    "metaworld/peg-insert-side:rgb" is the same task seen by cameras; "gym/my_module:MyEnv-v0" is an environment that
    `my_module` registers with Gymnasium.

    Raises:
        UserError: there is no such task; the message names the nearest one. Or it cannot be seen in that way.
    """
    if not isinstance(name, str):
        raise UserError(
            f"A task is given by its name, not as a {type(name).__name__}: register the environment with Gymnasium "
            f"and say {PREFIX}MODULE:ID, as in {PREFIX}my_module:MyEnv-v0."
        )
    if name.startswith(PREFIX):
        return registered(name)
    if re.search(r"-v\d+$", name):
        raise UserError(f"{name!r} looks like an environment's id: is {PREFIX}{name} meant?")
    name, _, mode = name.partition(":")
    task = lookup("task", name, TASKS)
    return task.with_images(mode) if mode else task
