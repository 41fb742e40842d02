"""When something is due, by counts alone: the same counts give the same run, whatever the clock says."""


def due(step: int, warmup_steps: int, updates_per_step: float) -> int:
    """Updates to have been made after `step` environment steps."""
    return int(max(step - warmup_steps, 0) * updates_per_step)


def crosses(before: int, now: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, now]."""
    return now // every > before // every
