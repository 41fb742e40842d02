"""Refine a hand-written controller: a function of the observation, wrong in a way that it cannot know.

A point must stop within 0.06 of a goal. The controller believes that goals are 10 % farther from the origin than they
are, as a badly calibrated camera would, so it reaches only the near ones. No simulator is needed. Run it with

    .venv/bin/python examples/decorate_a_function.py
"""

import argparse

import numpy as np

from policy_decorator import Refined, decorate

SPEED = 0.2  # what an action of 1 moves the point by


def controller(obs: np.ndarray) -> np.ndarray:
    """obs (..., 4) = position, goal -> action (..., 2) in [-1, 1]."""
    position, goal = obs[..., :2], obs[..., 2:]
    return ((1.1 * goal - position) / SPEED).clip(-1, 1)


def main(total_steps: int) -> Refined:
    """Refine the controller, print what came of it, and use the result."""
    refined = decorate(
        controller,
        "toy/reach",
        bound=0.6,  # it errs by at most 0.1 / SPEED = 0.5 of an action
        horizon=total_steps // 4,
        total_steps=total_steps,
        progress=True,
    )
    s = refined.summary
    print(f"controller alone {s['base_success']:.0%}, refined {s['refined_success']:.0%}")
    print(f"of {s['test_episodes']} test episodes, {s['fixed']} fixed and {s['broken']} broken")
    refined.reset()
    print("first action", refined.act(np.array([0.0, 0.0, 0.3, -0.5], dtype=np.float32)))
    return refined


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Refine a hand-written controller.")
    parser.add_argument("--total-steps", type=int, default=40_000, help="environment steps of training")
    main(parser.parse_args().total_steps)
