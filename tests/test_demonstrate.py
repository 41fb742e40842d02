"""What the base is asked about the demonstrations, row by row."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from policy_decorator.demonstrate import demonstrate
from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.demos.record import record_expert
from policy_decorator.demos.replayed import with_pictures
from policy_decorator.encoders import Encoder, EncoderConfig
from policy_decorator.envs import get_task
from policy_decorator.envs.toy import BiasedController
from policy_decorator.envs.toy_pictures import MisledByColour
from policy_decorator.errors import UserError
from policy_decorator.rl.demonstrations import as_source, transitions
from policy_decorator.rl.sight import seen


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
    with pytest.raises(UserError, match="action by action"):
        demonstrate(_demos(), Noted(context=1, chunk=2), torch.device("cpu"))


def test_frames_with_pictures_keep_their_rows_and_get_numbers() -> None:
    task = get_task("toy/reach:rgb")
    assert task.flat is not None
    demos = with_pictures(record_expert(task.flat, 3, seed=0), task)
    base = MisledByColour(noise=0.0)
    shown = demonstrate(demos, base, torch.device("cpu"))
    frames: Any = shown.obs
    assert shown.lengths.tolist() == demos.lengths.tolist()
    assert frames["frame"].tolist() == list(range(len(demos.actions)))
    assert torch.equal(frames["rgb"], torch.from_numpy(demos.pictures["rgb"]))
    assert torch.equal(shown.base, base.act(frames[:, None]))
    flat = demonstrate(record_expert(task.flat, 3, seed=0), BiasedController(), torch.device("cpu"))
    assert torch.equal(frames["state"], flat.obs[:, :2])
    assert torch.equal(shown.success, flat.success)
    encoder = Encoder(EncoderConfig((4,)), {"rgb": (3, 16, 16)}, 2)
    source = as_source(transitions(seen(shown, encoder)[0], 0.5, n_step=2, gamma=0.9, reward_shift=-1.0), frames)
    batch: Any = source.sample(64)
    for part in (batch.obs, batch.next_obs):
        assert torch.equal(part["rgb"], frames["rgb"][part["frame"]])
        assert torch.equal(part["state"], frames["state"][part["frame"]])
