"""ManiSkill environments that build their scene anew at every reset, because their objects differ in shape."""

from typing import Any

COLLECT_EVERY = 20
"""Resets between garbage collections: each takes 0.2 s, more than all the rest of a reset."""


class Rebuilt:
    """To be named before ManiSkill's own class: resets without a garbage collection each; memory stays level."""

    cleared = 0

    def _clear(self) -> None:
        """As ManiSkill does it before it builds a scene, but for the collection."""
        env: Any = self
        self.cleared += 1
        if self.cleared % COLLECT_EVERY == 0 or env.num_envs > 1:  # many: a GPU's memory, and resets are few
            self._collect()
            return
        env._close_viewer()
        env.agent = env.scene = None
        env._sensors, env._human_render_cameras, env._hidden_objects = {}, {}, []

    def _collect(self) -> None:
        above: Any = super()
        above._clear()

    def close(self) -> None:
        self._collect()
