"""Optimizers and the learning-rate schedule."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trine.config.base import Count, Frozen


class MuonConfig(Frozen):
    """Muon, for the hidden matrices. The report gives the learning rates and the rule, nothing else."""

    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate (reported: Nano and Mini 1e-3, Large 8e-4)."""
    lr_rule: Literal["spectral", "rms"] = "spectral"
    """spectral: times sqrt(max(1, fan_out / fan_in)), as reported. rms: 0.2 sqrt(max(fan_out, fan_in))."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(default=0.01, ge=0)
    ns_steps: int = Field(default=5, ge=1, le=20)
    """Newton-Schulz iterations."""


class AdamWConfig(Frozen):
    """AdamW, for embedding, head, norms and (by default) the router."""

    lr: float = Field(default=3e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _betas(self) -> AdamWConfig:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {list(self.betas)} must lie in [0, 1)")
        return self


class ScheduleConfig(Frozen):
    """Warmup, stable, decay. The factor multiplies both optimizers' peak learning rates."""

    warmup_steps: Count = Field(default=0, ge=0)
    decay_steps: Count | None = Field(default=None, ge=0)
    """Length of the decay at the end of the run, or before the first phase with a schedule of its own. Default: a fifth
    of it."""
    decay: Literal["linear", "cosine", "sqrt"] = "linear"
    final_ratio: float = Field(default=0.0, ge=0, le=1)
    """Factor at the last step."""


class PhaseScheduleConfig(ScheduleConfig):
    """Learning rates of a phase: from where the phase before ended to `peak_ratio`, then down to `final_ratio`."""

    decay_steps: Count | None = Field(default=None, ge=0)
    """Length of the decay at the end of the phase. Default: all of it after the warmup."""
    peak_ratio: float = Field(default=1.0, ge=0)
    """Factor on the peak learning rates after the warmup."""


class OptimConfig(Frozen):
    """Which optimizer moves which parameter, how fast, and the gradient clip."""

    matrices: Literal["muon", "adamw"] = "muon"
    """Optimizer of the hidden matrices; adamw gives a plain AdamW run."""
    router: Literal["adamw", "muon"] = "adamw"
    """Optimizer of the router matrices (not reported)."""
    muon: MuonConfig = MuonConfig()
    adamw: AdamWConfig = AdamWConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Largest global L2 norm of the gradient (not reported); null leaves gradients as they are."""
