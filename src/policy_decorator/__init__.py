"""Policy Decorator: refine a frozen robot policy by a small residual, bounded and introduced progressively."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Demonstrations",
    "Refined",
    "UserError",
    "__version__",
    "decorate",
    "evaluate",
    "make_env",
    "policy_decorator",
]

if TYPE_CHECKING:
    from policy_decorator.api import decorate, evaluate, make_env, policy_decorator
    from policy_decorator.demos.dataset import Demonstrations
    from policy_decorator.errors import UserError
    from policy_decorator.refined import Refined

_HOMES = {
    "decorate": "api",
    "evaluate": "api",
    "make_env": "api",
    "policy_decorator": "api",
    "Demonstrations": "demos.dataset",
    "Refined": "refined",
    "UserError": "errors",
}


def __getattr__(name: str) -> Any:
    """Imported on first use, so that `pidec --help` and the reports need not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
