"""Residual RL (arXiv:1812.03201): Policy Decorator with nothing controlled (paper Sec. 5.2.2)."""

from dataclasses import replace

from policy_decorator.methods import policy_decorator
from policy_decorator.methods.policy_decorator import Config
from policy_decorator.methods.problem import Problem, Run


def build(cfg: Config, p: Problem) -> Run:
    """The same configuration, unbounded (alpha = 1) and at once (H = 0)."""
    return policy_decorator.build(replace(cfg, bound=1.0, horizon=0), p)
