"""ManiSkill's simulation on the GPU: thousands of environments whose tensors never leave the device."""

import torch
from torch import Tensor

from policy_decorator.envs.maniskill.simulator import Simulated, make_simulator
from policy_decorator.types import Step


class BatchedSimulation:
    """B environments that ManiSkill steps as one; windows, chunks, time limit and resets as `envs.vector` has them.

    Which layouts there are follows the seed given to `reset`, and the order in which episodes end: those that begin
    together are drawn together. So two policies meet the same layouts in the first B episodes after a `reset`, and
    not in later ones. A simulation on the GPU is not reproducible to the last bit.
    """

    def __init__(
        self,
        simulated: Simulated,
        n: int,
        *,
        max_steps: int,
        context: int = 1,
        chunk: int = 1,
        device: str | torch.device = "cuda",
    ) -> None:
        self.n, self.max_steps, self.context, self.chunk = n, max_steps, context, chunk
        self.device = torch.device(device)
        backend = "physx_cuda" if self.device.type == "cuda" else "physx_cpu"  # the latter for one environment only
        # Objects that differ in shape stay with their environment: building the scene anew would build all of it.
        self.simulator = make_simulator(simulated, n, sim_backend=backend, reconfiguration_freq=0)

    def reset(self, seed: int) -> Tensor:
        self.seeds = torch.arange(seed, seed + self.n)  # on the CPU, as the facts of a step
        self.next_seed = seed + self.n
        self.steps = torch.zeros(self.n, dtype=torch.long, device=self.device)
        obs, _ = self.simulator.reset(seed=self.seeds.tolist())
        self.window = obs[:, None].repeat(1, self.context, 1)  # (B, To, Do)
        return self.window

    def step(self, action: Tensor) -> Step:
        """All environments are simulated through the whole chunk; what one does after its end is not looked at."""
        success, failed = torch.zeros(2, self.n, dtype=torch.bool, device=self.device)
        before = self.steps
        for a in action.clamp(-1, 1).unbind(dim=1):
            obs, _, _, _, info = self.simulator.step(a)
            running = ~(success | failed | (self.steps >= self.max_steps))
            self.steps = self.steps + running
            shifted = torch.cat([self.window[:, 1:], obs[:, None]], dim=1)
            self.window = torch.where(running[:, None, None], shifted, self.window)
            success = success | (running & info["success"])
            failed = failed | (running & info["fail"] & ~success if "fail" in info else torch.zeros_like(failed))
        terminated = success | failed
        done = terminated | (self.steps >= self.max_steps)
        facts = torch.stack([success, terminated, done, self.steps - before]).cpu()
        final, episode = self.window, self.seeds.clone()
        if facts[2].any():
            self._begin(done, facts[2].bool())
        told = facts[:3].bool()
        return Step(self.window, final, told[0], told[1], told[2], facts[3], episode)

    def _begin(self, done: Tensor, told: Tensor) -> None:
        """New episodes where `done` (on the device; `told`: the same on the CPU)."""
        count = int(told.sum())
        self.seeds[told] = torch.arange(self.next_seed, self.next_seed + count)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.next_seed)
            obs, _ = self.simulator.reset(options={"env_idx": done.nonzero()[:, 0]})
        self.next_seed += count
        self.steps = torch.where(done, 0, self.steps)
        self.window = torch.where(done[:, None, None], obs[:, None], self.window)

    def state(self) -> dict[str, Tensor]:
        """Poses and velocities: enough to go on, with contacts found anew."""
        own = {name: getattr(self, name).clone() for name in ("seeds", "steps", "window")}
        return {**own, "next_seed": torch.tensor(self.next_seed), "physics": self.simulator.get_state().clone()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.reset(int(state["seeds"][0]))
        self.next_seed, self.seeds = int(state["next_seed"]), state["seeds"].cpu().clone()
        self.steps, self.window = (state[name].to(self.device).clone() for name in ("steps", "window"))
        self.simulator.set_state(state["physics"].to(self.device))

    def close(self) -> None:
        self.simulator.close()
