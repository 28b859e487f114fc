"""Experts' matrices as stacks of which any part may be frozen.

A stack [n, R, C] is trained whole, frozen whole, or split once into a trained and a frozen stack. Gate and up of an
expert are two matrices of one stack: `gate_up_proj` [E, 2I, D] is [2E, I, D], gate of expert e first.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Stack(NamedTuple):
    """Matrices of one shape in two tensors, for functions."""

    trained: Tensor
    """[t, R, C]; gradients are made for these alone."""
    frozen: Tensor
    """[f, R, C], of any type."""
    where: Tensor
    """int64 [t + f]: the place of matrix i in (trained, frozen)."""

    def cast(self, dtype: torch.dtype) -> Stack:
        """The same matrices in another type, differentiable."""
        return Stack(self.trained.to(dtype), self.frozen.to(dtype), self.where)

    def joined(self) -> Tensor:
        """[t + f, R, C] of stacks of one type, differentiable; no copy where all are trained or all frozen."""
        if not (len(self.trained) and len(self.frozen)):
            return self.trained if len(self.trained) else self.frozen
        return torch.cat((self.trained, self.frozen))[self.where]


def whole(matrices: Tensor) -> Stack:
    """The stack of matrices [n, R, C] that are all trained or all frozen, as all are where no gradient is wanted."""
    none, where = matrices.detach()[:0], torch.arange(len(matrices), device=matrices.device)
    trained = matrices.requires_grad and torch.is_grad_enabled()
    return Stack(matrices, none, where) if trained else Stack(none, matrices, where)


class SplitStack(nn.Module):
    """The two tensors of a split stack as parameters."""

    def __init__(self, matrices: Tensor, trained: Tensor) -> None:
        """`matrices` [n, R, C] are copied; `trained` bool [n]. The trained ones become fp32."""
        super().__init__()
        trained = trained.cpu()
        self.trained = nn.Parameter(matrices[trained].float())
        self.frozen = nn.Parameter(matrices[~trained], requires_grad=False)
        self.where: Tensor
        order = torch.cat((trained.nonzero(), (~trained).nonzero())).squeeze(1)
        self.register_buffer("where", order.argsort(), persistent=False)

    def stack(self) -> Stack:
        """For functions."""
        return Stack(self.trained, self.frozen, self.where)

    def matrices(self) -> list[Tensor]:
        """Each matrix [R, C] in its place, sharing memory."""
        both = [*self.trained.detach(), *self.frozen.detach()]
        return [both[i] for i in self.where.tolist()]


def name_per_expert(state: dict[str, Any], prefix: str, split: SplitStack, key: str, kinds: tuple[str, ...]) -> None:
    """In a state dict, give the split stack under `prefix` + `key` its matrices' Hub names: `prefix`E.KIND.weight."""
    del state[f"{prefix}{key}.trained"], state[f"{prefix}{key}.frozen"]
    for i, matrix in enumerate(split.matrices()):
        state[f"{prefix}{i // len(kinds)}.{kinds[i % len(kinds)]}.weight"] = matrix


def name_as_split(state: dict[str, Any], prefix: str, split: SplitStack, key: str, kinds: tuple[str, ...]) -> None:
    """Undo `name_per_expert`."""
    names = [f"{prefix}{i // len(kinds)}.{kinds[i % len(kinds)]}.weight" for i in range(len(split.where))]
    if not all(name in state for name in names):
        return  # what is missing is told by load_state_dict
    by_place = [state.pop(names[i]) for i in split.where.argsort().tolist()]
    count = len(split.trained)
    state[f"{prefix}{key}.trained"] = torch.stack(by_place[:count])
    state[f"{prefix}{key}.frozen"] = torch.stack(by_place[count:])
