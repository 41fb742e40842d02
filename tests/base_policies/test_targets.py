"""What policies that predict ahead are trained on: windows and padded targets, against plain slicing."""

import numpy as np
import pytest
import torch

from policy_decorator.base_policies.diffusion import DiffusionConfig, DiffusionPolicy
from policy_decorator.base_policies.imitate import ImitateConfig
from policy_decorator.base_policies.mlp import MLPConfig, MLPPolicy
from policy_decorator.base_policies.windows import load_windows, window_bounds
from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.envs import TASKS, get_task
from policy_decorator.envs.task import Task
from policy_decorator.errors import UserError

LENGTHS = [5, 1, 23, 2]
CONTEXT, HORIZON, ACTION = 3, 8, 4
CPU = torch.device("cpu")


def demos(task: str = "metaworld/assembly") -> Demonstrations:
    rng = np.random.default_rng(0)
    rows = sum(LENGTHS)
    return Demonstrations(
        task=task,
        observations=rng.normal(size=(rows, 2)).astype(np.float32),
        actions=rng.uniform(0.1, 1, (rows, ACTION)).astype(np.float32),
        success=np.ones(rows, dtype=bool),
        lengths=np.array(LENGTHS),
        seeds=np.arange(len(LENGTHS)),
        source="a test",
        details={},
    )


def policy() -> DiffusionPolicy:
    return DiffusionPolicy(DiffusionConfig(context=CONTEXT, horizon=HORIZON, widths=(8, 8), step_size=4), 2, ACTION)


def sliced(pad_start: bool, absolute: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """As fact and prose have it: start, pad left by repeating, pad right by the control."""
    found = []
    for seen, done in demos().split():
        length, after = len(done), done[-1].copy()
        if not absolute:
            after[:-1] = 0
        padded = [done[0]] * (CONTEXT - 1) + list(done) + [after] * HORIZON
        frames = [seen[0]] * (CONTEXT - 1) + list(seen)
        # The released code: start in range(-(To - 1), L - Th + (Th - To)), counted here from the padding's first row.
        starts = range(length if pad_start else length - 1)
        found += [(np.array(frames[i : i + CONTEXT]), np.array(padded[i : i + HORIZON])) for i in starts]
    return found


@pytest.mark.parametrize("pad_start", [True, False])
@pytest.mark.parametrize("task", ["metaworld/assembly", "adroit/door"])
def test_targets_are_padded_by_the_control(task: str, pad_start: bool) -> None:
    absolute = task == "adroit/door"
    windows = load_windows(policy(), demos(task), ImitateConfig(pad_start=pad_start), CPU, None)
    expected = sliced(pad_start, absolute)
    assert len(windows.newest) == len(expected) == sum(LENGTHS) - (0 if pad_start else len(LENGTHS))
    targets = windows.targets(torch.arange(len(expected)))
    np.testing.assert_array_equal(targets, np.array([actions for _, actions in expected]))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(expected), (64,), generator=torch.Generator().manual_seed(0))
    seen, actions = windows.draw(64, generator)
    np.testing.assert_array_equal(seen, np.array([expected[i][0] for i in drawn]))
    np.testing.assert_array_equal(actions, targets[drawn])


def test_nothing_behind_an_end_is_learned_where_it_is_not_wanted() -> None:
    everything = sliced(pad_start=True, absolute=True)
    ends = np.cumsum(LENGTHS)
    inside = [
        i for i in range(len(everything)) if i - (CONTEXT - 1) + HORIZON - 1 < ends[np.searchsorted(ends, i, "right")]
    ]
    windows = load_windows(policy(), demos("mine"), ImitateConfig(pad_end=False), CPU, None)  # no task is asked
    assert windows.newest.tolist() == inside == list(range(6, 6 + 18))  # of 23 steps, all but the last five
    targets = windows.targets(torch.arange(len(inside)))
    np.testing.assert_array_equal(targets, np.array([everything[i][1] for i in inside]))
    long = DiffusionPolicy(DiffusionConfig(context=CONTEXT, horizon=40, widths=(8, 8), step_size=4), 2, ACTION)
    with pytest.raises(UserError, match="has 23 and needs 38"):
        load_windows(long, demos("mine"), ImitateConfig(pad_end=False), CPU, None)


def test_the_released_range_of_starts() -> None:
    first, newest = window_bounds(torch.tensor([30]), 2, pad_start=False, ahead=True)
    assert (newest - 1).tolist() == list(range(-1, 30 - 2))  # range(-(To - 1), L - Th + (Th - To))
    assert (first == 0).all()


def test_which_entries_go_on_is_the_task_s() -> None:
    delta = get_task("metaworld/assembly")
    both = Task(**{**vars(delta), "held_actions": (0, -1)})
    none = Task(**{**vars(delta), "held_actions": ()})
    for task, held in ((delta, {3}), (both, {0, 3}), (none, set())):
        windows = load_windows(policy(), demos("mine"), ImitateConfig(), CPU, task)
        last = windows.targets(torch.tensor([len(windows.newest) - 1]))[0, -1]  # (Da,) far behind the end
        assert {i for i in range(ACTION) if last[i] != 0} == held


def test_a_task_that_nobody_knows_must_be_given_where_it_matters() -> None:
    with pytest.raises(UserError, match="Unknown task 'mine'"):
        load_windows(policy(), demos("mine"), ImitateConfig(), CPU, None)
    net = MLPPolicy(MLPConfig(context=CONTEXT), 2, ACTION)
    windows = load_windows(net, demos("mine"), ImitateConfig(), CPU, None)  # it never looks behind an end
    assert windows.targets(torch.arange(3)).shape == (3, CONTEXT, ACTION)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_held_actions_of_every_task(name: str) -> None:
    task = TASKS[name]
    if name.startswith("adroit/"):
        assert task.held_actions is None
    elif name.startswith("toy/"):
        assert task.held_actions == ()
    elif "push-" in name and name.startswith("maniskill/"):
        assert task.held_actions == (11, 19)
    elif name.startswith("robosuite/"):
        assert task.held_actions == ((6, 13) if task.action_size == 14 else (6,))
    else:
        assert task.held_actions == (-1,)
    assert all(-1 <= entry < task.action_size for entry in task.held_actions or ())


def test_an_episode_of_one_step_has_no_window_of_the_released_code() -> None:
    one = demos()._keep(np.array([False, True, False, False]))
    with pytest.raises(UserError, match="has 1 and needs 2"):
        load_windows(policy(), one, ImitateConfig(pad_start=False), CPU, None)
