"""Residual RL (arXiv:1812.03201): Policy Decorator with nothing controlled (paper Sec. 5.2.2)."""

from policy_decorator.methods import policy_decorator
from policy_decorator.methods.policy_decorator import ResidualConfig
from policy_decorator.methods.problem import Problem, Run


def build(cfg: ResidualConfig, p: Problem) -> Run:
    """The same settings, unbounded (alpha = 1) and at once (H = 0)."""
    return policy_decorator.build(policy_decorator.Config(**vars(cfg), bound=1.0, horizon=0), p)
