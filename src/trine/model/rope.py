"""Rotary position embedding over the whole head, halves rotated; used by local layers only."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(positions_T: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [T, head_dim] of the angles position / theta^(2i / head_dim), computed in at least fp32."""
    wide = torch.promote_types(dtype, torch.float32)
    exponent = torch.arange(0, head_dim, 2, device=positions_T.device, dtype=wide) / head_dim
    angles = positions_T.to(wide).unsqueeze(-1) * theta**-exponent
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x_BHTD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Rotate each head's (first half, second half) pairs by the position's angles."""
    first, second = x_BHTD.chunk(2, dim=-1)
    return x_BHTD * cos_TD + torch.cat((-second, first), dim=-1) * sin_TD
