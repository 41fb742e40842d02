"""What is due after so many steps."""

import pytest

from policy_decorator.rhythm import crosses, due


@pytest.mark.parametrize("every", [1, 7, 64])
def test_crosses(every: int) -> None:
    for before in range(0, 140, 3):
        for now in range(before, before + 70, 5):
            assert crosses(before, now, every) == any(k % every == 0 for k in range(before + 1, now + 1))


def test_no_update_is_due_before_the_warm_up_is_over_and_a_whole_one_is_owed() -> None:
    assert [due(step, 100, 0.25) for step in (-5, 0, 100, 103, 104, 111, 112)] == [0, 0, 0, 0, 1, 2, 3]
    assert due(40, 0, 1.5) == 60
