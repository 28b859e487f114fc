"""Warmup, stable, decay: the factor on the peak learning rates as a pure function of the step."""

from __future__ import annotations

import math

from trine.errors import BadInput
from trine.optim.config import ScheduleConfig


def decay_steps(total_steps: int, config: ScheduleConfig) -> int:
    """Length of the decay: as configured, or a fifth of the run, never into the warmup."""
    if config.decay_steps is not None:
        return config.decay_steps
    return max(0, min(total_steps // 5, total_steps - config.warmup_steps))


def check_schedule(total_steps: int, config: ScheduleConfig) -> None:
    """Raise BadInput when warmup and decay do not fit into the run."""
    if config.warmup_steps + (config.decay_steps or 0) > total_steps:
        raise BadInput(
            f"optim.schedule.warmup_steps {config.warmup_steps} + decay_steps {config.decay_steps or 0} "
            f"exceed train.steps {total_steps}"
        )


def lr_factor(step: int, total_steps: int, config: ScheduleConfig) -> float:
    """Factor of optimizer step `step`, counted from 1.

    Warmup of w steps: step / w. Decay of d steps: with u = (step - (total - d)) / d in (0, 1] the factor is
    final + (1 - final) * f(u), f being 1 - u (linear), (1 + cos(pi u)) / 2 (cosine) or 1 - sqrt(u) (sqrt).
    Between them 1.
    """
    if step <= config.warmup_steps:
        return step / config.warmup_steps
    decay = decay_steps(total_steps, config)
    begin = total_steps - decay
    if step <= begin:
        return 1.0
    u = min(1.0, (step - begin) / decay)
    match config.decay:
        case "linear":
            left = 1 - u
        case "cosine":
            left = (1 + math.cos(math.pi * u)) / 2
        case "sqrt":
            left = 1 - math.sqrt(u)
    return config.final_ratio + (1 - config.final_ratio) * left
