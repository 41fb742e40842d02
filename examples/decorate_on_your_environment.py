"""Refine a controller on an environment of your own: anything registered with Gymnasium that says whether it is solved.

Gymnasium's pendulum is to be swung up and to stand still. Its reward is not used: a wrapper adds `success` to the info
of every step, which is all that is learned from. The controller's angle sensor is 0.1 rad off, as if it were mounted
askew, so that it often balances just beside the top. No simulator needs to be installed. Run it with

    .venv/bin/python examples/decorate_on_your_environment.py

Of the commands, `pidec refine --task gym/MODULE:Upright-v0 ...` finds it where MODULE can be imported and registers it.
"""

import argparse
from typing import Any

import gymnasium as gym
import numpy as np

from policy_decorator import Refined, decorate

SENSOR_OFF = 0.1  # rad
GRAVITY, TORQUE = 10.0, 2.0  # of the pendulum, which is 1 m long and weighs 1 kg; its largest torque


class Upright(gym.Wrapper[Any, Any, Any, Any]):
    """The pendulum, solved where it stands upright (within 0.1 rad) and nearly still (below 0.5 rad/s)."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, _, terminated, truncated, info = self.env.step(action)
        cos, sin, speed = obs
        solved = bool(abs(np.arctan2(sin, cos)) < 0.1 and abs(speed) < 0.5)
        return obs, float(solved), terminated, truncated, {**info, "success": solved}


def make_upright(**options: Any) -> Upright:
    """Without the pendulum's own time limit: the one it is registered with counts."""
    return Upright(gym.make("Pendulum-v1", max_episode_steps=-1, **options))


gym.register("Upright-v0", make_upright, max_episode_steps=100)


def controller(obs: np.ndarray) -> np.ndarray:
    """obs (..., 3) = cos, sin and speed of the pendulum -> torque (..., 1) in units of TORQUE."""
    cos, sin, speed = obs[..., 0], obs[..., 1], obs[..., 2]
    angle = np.arctan2(sin, cos) - SENSOR_OFF
    missing = GRAVITY / 2 * (1 - np.cos(angle)) - speed**2 / 6  # energy that it takes to the top
    swing, hold = 5 * missing * np.sign(speed), -15 * angle - 3 * speed
    return (np.where(np.abs(angle) < 0.3, hold, swing) / TORQUE).clip(-1, 1)[..., None]


def main(total_steps: int) -> Refined:
    """Refine the controller and print what came of it."""
    refined = decorate(
        controller, "gym/Upright-v0", bound=0.6, horizon=total_steps // 4, total_steps=total_steps, progress=True
    )
    s = refined.summary
    print(f"controller alone {s['base_success']:.0%}, refined {s['refined_success']:.0%}")
    print(f"of {s['test_episodes']} test episodes, {s['fixed']} fixed and {s['broken']} broken")
    return refined


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Refine a controller on an environment of your own.")
    parser.add_argument("--total-steps", type=int, default=15_000, help="environment steps of training")
    main(parser.parse_args().total_steps)
