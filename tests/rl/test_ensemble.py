"""What an ensemble says: the smallest of all or of a few drawn, or the mean."""

import pytest
import torch

from policy_decorator.rl.ensemble import combined, smallest

Q = torch.tensor([[3.0, -1, 5], [2, 4, 5], [9, 0, -7], [1, 1, 1]])  # 4 critics, 3 rows


def test_the_smallest_and_the_mean_of_all() -> None:
    assert smallest(Q).tolist() == combined(Q, "min").tolist() == [1, -1, -7]
    assert combined(Q, "mean").tolist() == [3.75, 1, 1]


def test_a_subset_is_one_for_all_rows_and_each_comes_as_often() -> None:
    pairs = {(i, j): Q[[i, j]].min(dim=0).values.tolist() for i in range(4) for j in range(i)}
    seen = [smallest(Q, 2).tolist() for _ in range(3000)]
    counts = [sum(answer == expected for answer in seen) for expected in pairs.values()]
    assert sum(counts) == 3000
    assert min(counts) > 400  # 500 each on average, standard deviation 20
    assert max(counts) < 600


@pytest.mark.parametrize("subset", [None, 4])
def test_all_critics_are_all(subset: int | None) -> None:
    assert torch.equal(smallest(Q, subset), Q.min(dim=0).values)


def test_without_a_subset_nothing_is_drawn() -> None:
    before = torch.get_rng_state()
    smallest(Q)
    assert torch.equal(before, torch.get_rng_state())
