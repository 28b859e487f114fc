"""How routed experts are kept equally busy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trine.config.base import Frozen


class BalanceConfig(Frozen):
    """Load balancing of the experts (Trinity Large report, section 2.3, equations 18-28)."""

    update: Literal["smebu", "sign", "none"] = "smebu"
    """smebu: tanh-clamped violation with momentum (Large). sign: recentred sign update (Nano, Mini)."""
    rate: float = Field(default=5e-4, ge=0)
    """Lambda of SMEBU, gamma of the sign update: the largest change of a bias in one step."""
    momentum: float = Field(default=0.5, ge=0, lt=1)
    """Beta of SMEBU."""
    tanh_scale: float = Field(default=2.0, gt=0)
    """Kappa of SMEBU."""
    sequence_loss: float = Field(default=1e-4, ge=0)
    """Coefficient alpha of the sequence-wise balance loss; 0 leaves it out."""
