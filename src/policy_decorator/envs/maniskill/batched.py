"""ManiSkill's simulation on the GPU: thousands of environments whose tensors never leave the device."""

from typing import Any

import torch
from torch import Tensor

from policy_decorator.envs.actions import check_finite, finite_rows
from policy_decorator.envs.images import FrameNumbers, together
from policy_decorator.envs.maniskill.simulator import Simulated, frame_of, make_simulator
from policy_decorator.stepping import chosen
from policy_decorator.types import Step


class BatchedSimulation:
    """B environments that ManiSkill steps as one; windows, chunks, time limit and resets as `envs.vector` has them.

    Which layouts there are follows the seed given to `reset`, and the order in which episodes end: those that begin
    together are drawn together. So two policies meet the same layouts in the first B episodes after a `reset`, and
    not in later ones (`drawn_at_reset`): evaluations reset for every B episodes. Which layouts a seed gives depends on
    B too. A simulation on the GPU is not reproducible to the last bit.

    Where objects differ in shape (`Simulated.objects_vary`), `reset` builds them anew from its seed, one of its own for
    every environment; an environment then keeps its objects, and only their places change with its episodes. So
    training, validation and test have other objects, but training no more than B of them.
    """

    drawn_at_reset = True

    def __init__(
        self,
        simulated: Simulated,
        n: int,
        *,
        max_steps: int,
        context: int = 1,
        images: bool = False,
        ends_at_success: bool = True,
        device: str | torch.device = "cuda",
    ) -> None:
        self.n, self.max_steps, self.context = n, max_steps, context
        self.device = torch.device(device)
        self.simulated, self.ends_at_success = simulated, ends_at_success
        # Differs from the paper: an environment keeps its objects from one episode to the next.
        # The scene is built by `reset` alone: ManiSkill cannot build a part of it anew.
        self.simulator = make_simulator(simulated, n, device=str(self.device), images=images, reconfiguration_freq=0)

        self.numbers = FrameNumbers(n)

    def reset(self, seed: int, episodes: int | None = None) -> Tensor:
        self.reset_seed = seed
        self.seeds = torch.arange(seed, seed + self.n)  # on the CPU, as the facts of a step
        self.next_seed = seed + self.n
        self.steps = torch.zeros(self.n, dtype=torch.long, device=self.device)
        built = {"options": {"reconfigure": True}} if self.simulated.objects_vary else {}
        obs, _ = self.simulator.reset(seed=self.seeds.tolist(), **built)
        self.window = torch.stack([self._frame(obs)] * self.context, dim=1)  # (B, To, Do)
        return self._numbered(torch.ones(self.n, dtype=torch.bool))

    def _frame(self, obs: Any) -> Tensor:
        """(B, Do), or with images a TensorDict (B,)."""
        frame = frame_of(obs, self.simulated)
        return frame if isinstance(frame, Tensor) else together(frame, ndim=1)

    def _numbered(self, new: Tensor) -> Tensor:
        return self.window if isinstance(self.window, Tensor) else self.numbers(self.window, new)

    def step(self, action: Tensor) -> Step:
        """All environments are simulated through the whole chunk; what one does after its end is not looked at.

        Raises:
            UserError: an action that is not finite. That is known with the facts of the step, after numbers in its
                place have been executed.
        """
        finite = finite_rows(action)
        success, failed = torch.zeros(2, self.n, dtype=torch.bool, device=self.device)
        before = self.steps
        for a in action.nan_to_num(0.0).clamp(-1, 1).unbind(dim=1):
            obs, _, _, _, info = self.simulator.step(a)
            running = ~(failed | (self.steps >= self.max_steps))
            if self.ends_at_success:
                running = running & ~success
            self.steps = self.steps + running
            shifted = torch.cat([self.window[:, 1:], self._frame(obs)[:, None]], dim=1)
            self.window = chosen(running, shifted, self.window)
            success = success | (running & info["success"])
            failed = failed | (running & info["fail"] & ~success if "fail" in info else torch.zeros_like(failed))
        terminated = success | failed if self.ends_at_success else failed
        done = terminated | (self.steps >= self.max_steps)
        facts = torch.stack([success, terminated, done, self.steps - before, finite]).cpu()
        check_finite(facts[4].bool())
        told, episode = facts[:3].bool(), self.seeds.clone()
        window = final = self._numbered(torch.ones_like(told[2]))
        if told[2].any():
            self._begin(done, told[2])
            window = self._numbered(told[2])
        return Step(window, final, told[0], told[1], told[2], facts[3], episode)

    def _begin(self, done: Tensor, told: Tensor) -> None:
        """New episodes where `done` (on the device; `told`: the same on the CPU)."""
        count = int(told.sum())
        self.seeds[told] = torch.arange(self.next_seed, self.next_seed + count)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.next_seed)
            obs, _ = self.simulator.reset(options={"env_idx": done.nonzero()[:, 0]})
        self.next_seed += count
        self.steps = torch.where(done, 0, self.steps)
        begun = torch.stack([self._frame(obs)] * self.context, dim=1)
        self.window = chosen(done, begun, self.window)

    def state(self) -> dict[str, Tensor]:
        """Poses and velocities: enough to go on, with contacts found anew."""
        window: Any = self.window
        parts = {"window": window} if isinstance(window, Tensor) else dict(window.items())
        own = {"seeds": self.seeds, "steps": self.steps, "next_seed": torch.tensor(self.next_seed), **parts}
        own |= {"reset_seed": torch.tensor(self.reset_seed)}  # of the objects
        own |= {**self.numbers.state(), "physics": self.simulator.get_state()}
        return {name: x.clone() for name, x in own.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.reset(int(state["reset_seed"]))
        self.next_seed, self.seeds = int(state["next_seed"]), state["seeds"].cpu().clone()
        self.steps = state["steps"].to(self.device).clone()
        window: Any = self.window
        for name, x in {"window": window}.items() if isinstance(window, Tensor) else window.items():
            x.copy_(state[name])
        self.numbers.restore(state)
        self.simulator.set_state(state["physics"].to(self.device))

    def close(self) -> None:
        self.simulator.close()
