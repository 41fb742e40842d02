"""What environments refuse to execute."""

from torch import Tensor

from policy_decorator.errors import UserError


def finite_rows(action: Tensor) -> Tensor:
    """(B, Ta, Da) -> (B,) bool, on the same device."""
    return action.isfinite().flatten(1).all(dim=1)


def check_finite(finite: Tensor) -> None:
    """`finite` (B,) bool on the CPU, of an action's rows. Raises UserError where one is not."""
    if not finite.all():
        raise UserError(
            f"The action in rows {(~finite).nonzero()[:, 0].tolist()} is not finite. It is the base policy's, or the "
            "residual's on top of it. To find out which, evaluate the base policy alone: if that ends here too, look "
            "at its parameters and at the statistics of its observations. If not, see in metrics.jsonl which loss "
            "grows first, and lower the learning rate."
        )
