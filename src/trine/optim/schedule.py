"""Warmup, stable, decay: the factor on the peak learning rates as a pure function of the step."""

from __future__ import annotations

import math

from trine.errors import BadInput
from trine.optim.config import PhaseScheduleConfig, ScheduleConfig


def decay_steps(total_steps: int, config: ScheduleConfig) -> int:
    """Length of the decay: as configured; else a fifth of the run, a phase's own all of it, never into the warmup."""
    if config.decay_steps is not None:
        return config.decay_steps
    wanted = total_steps if isinstance(config, PhaseScheduleConfig) else total_steps // 5
    return max(0, min(wanted, total_steps - config.warmup_steps))


def check_schedule(
    total_steps: int, config: ScheduleConfig, name: str = "optim.schedule", limit: str = "train.steps"
) -> None:
    """Raise BadInput when warmup and decay of `name` do not fit into its steps, which `limit` names."""
    if config.warmup_steps + (config.decay_steps or 0) > total_steps:
        raise BadInput(
            f"{name}.warmup_steps {config.warmup_steps} + decay_steps {config.decay_steps or 0} exceed "
            f"{limit} {total_steps}"
        )


def lr_factor(step: int, total_steps: int, config: ScheduleConfig, begin: float = 0.0) -> float:
    """Factor of step `step`, counted from 1, of the `total_steps` that `config` is for; it comes from `begin`.

    Warmup of w steps: begin + (peak - begin) step / w, peak being 1 but for a phase's own. Decay of d steps: with
    u = (step - (total - d)) / d in (0, 1] the factor is final + (peak - final) f(u), f being 1 - u (linear),
    (1 + cos(pi u)) / 2 (cosine) or 1 - sqrt(u) (sqrt). Between them peak.
    """
    peak = config.peak_ratio if isinstance(config, PhaseScheduleConfig) else 1.0
    if step <= config.warmup_steps:
        return begin + (peak - begin) * (step / config.warmup_steps)
    decay = decay_steps(total_steps, config)
    first = total_steps - decay
    if step <= first:
        return peak
    u = min(1.0, (step - first) / decay)
    match config.decay:
        case "linear":
            left = 1 - u
        case "cosine":
            left = (1 + math.cos(math.pi * u)) / 2
        case "sqrt":
            left = 1 - math.sqrt(u)
    return config.final_ratio + (peak - config.final_ratio) * left
