"""CQL (arXiv:2006.04779): Cal-QL without the calibration (paper Table 1)."""

from policy_decorator.methods.cal_ql import Config, conservative
from policy_decorator.methods.problem import Problem, Run


def build(cfg: Config, p: Problem) -> Run:
    """The same settings, in which no return holds the policy's values up. Raises UserError as Cal-QL."""
    return conservative("cql", cfg, p, calibrated=False)
