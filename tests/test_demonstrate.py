"""What the base is asked about the demonstrations, row by row."""

import numpy as np
import pytest
import torch
from torch import Tensor

from policy_decorator.demonstrate import demonstrate
from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.errors import UserError


class Noted:
    """Answers with the sum of its window, and a random number."""

    def __init__(self, context: int, chunk: int = 1) -> None:
        self.context, self.chunk, self.windows = context, chunk, list[Tensor]()

    def act(self, window: Tensor) -> Tensor:
        self.windows.append(window)
        total = window.sum(dim=(1, 2))[:, None, None]
        return torch.cat([total, torch.rand_like(total)], dim=-1).repeat(1, self.chunk, 1)


def _demos() -> Demonstrations:
    """Three episodes of lengths 4, 3 and 2: solved at its third row and its last, never, and at its first."""
    success = np.array([0, 0, 1, 1, 0, 0, 0, 1, 0], dtype=bool)
    obs = np.arange(9, dtype=np.float32)[:, None].repeat(2, axis=1)
    return Demonstrations("t", obs, obs / 10, success, np.array([4, 3, 2]), np.arange(3), "hand", {})


def test_episodes_end_at_their_first_success_and_windows_begin_with_their_first_frame() -> None:
    base = Noted(context=3)
    before = torch.get_rng_state()
    d = demonstrate(_demos(), base, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)  # a random base costs training's stream nothing
    assert d.lengths.tolist() == [3, 3, 1]
    assert d.obs[:, 0].tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert d.success.tolist() == [False, False, True, False, False, False, True]
    torch.testing.assert_close(d.action[:, 0], d.obs / 10)
    frames = [window[:, :, 0].tolist() for window in base.windows]
    assert frames == [[[0, 0, 0], [0, 0, 1], [0, 1, 2]], [[4, 4, 4], [4, 4, 5], [4, 5, 6]], [[7, 7, 7]]]
    assert d.base[:, 0, 0].tolist() == [2 * sum(window) for episode in frames for window in episode]


def test_episodes_go_on_where_success_does_not_end_them() -> None:
    d = demonstrate(_demos(), Noted(context=1), torch.device("cpu"), ends_at_success=False)
    assert (d.lengths.tolist(), d.ends_at_success) == ([4, 3, 2], False)


def test_chunks_are_refused() -> None:
    with pytest.raises(UserError, match="single actions"):
        demonstrate(_demos(), Noted(context=1, chunk=2), torch.device("cpu"))
