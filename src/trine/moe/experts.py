"""The routed experts: tokens sorted by expert, one grouped matrix product per projection.

Cost: two gathers of K rows per token each way. Both permutations go backward by gathers too (the inverse
of a permutation is a gather), so no scatter with accumulation is needed and results are deterministic.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trine.moe.grouped import grouped_linear
from trine.moe.native import native_experts
from trine.moe.stacks import SplitStack, Stack, name_as_split, name_per_expert, whole

FEW_TOKENS = 2
"""Up to so many tokens `Experts.few` beats sorting them."""
KINDS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""The matrices of an expert in each stack, as the Hub names them."""


class Experts(nn.Module):
    """E SwiGLU experts stored as transformers stores them: gate rows first, then up rows.

    `split` cuts a stack into trained and frozen matrices, for training; a state dict then names that stack's matrices
    one by one, as the Hub does.
    """

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * intermediate_size, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden_size, intermediate_size))

    def split(self, key: str, trained: Tensor) -> None:
        """Replace the stack `key` by a split one; `trained` bool, one per matrix, gate before up of each expert."""
        stack: Tensor = getattr(self, key)
        matrices = stack.detach().view(len(trained), -1, stack.shape[-1])
        delattr(self, key)
        split = SplitStack(matrices, trained)
        self.add_module(f"{key}_split", split)
        about = (split, f"{key}_split", KINDS[key])

        def saved(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
            name_per_expert(state, prefix, *about)

        def loading(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
            name_as_split(state, prefix, *about)

        self.register_state_dict_post_hook(saved)
        self.register_load_state_dict_pre_hook(loading)

    def stack(self, key: str) -> Stack:
        """The matrices of the stack `key`, whole [E, ...] or split."""
        split = self._modules.get(f"{key}_split")
        return split.stack() if isinstance(split, SplitStack) else whole(getattr(self, key))

    def forward(self, x_ND: Tensor, experts_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """Sum over the K selected experts of weight times expert output, in x's dtype, [N, D]."""
        stacks = self.stack("gate_up_proj"), self.stack("down_proj")
        native = native_experts(x_ND, *stacks, experts_NK, weights_NK)
        return self._grouped(x_ND, *stacks, experts_NK, weights_NK) if native is None else native

    def _grouped(self, x_ND: Tensor, into: Stack, down: Stack, experts_NK: Tensor, weights_NK: Tensor) -> Tensor:
        tokens, k = experts_NK.shape
        sorted_M, order_M = experts_NK.flatten().sort(stable=True)
        slot_M = torch.empty_like(order_M)
        slot_M[order_M] = torch.arange(order_M.numel(), device=order_M.device)
        counts_E = _counts(sorted_M, len(down.where))
        sorted_MD = _Dispatch.apply(x_ND, order_M, slot_M, k)
        gate, up = grouped_linear(sorted_MD, into.cast(x_ND.dtype), counts_E).chunk(2, dim=-1)
        weight_M1 = weights_NK.flatten()[order_M].unsqueeze(1).to(x_ND.dtype)
        hidden = F.silu(gate) * up * weight_M1
        out_MD = grouped_linear(hidden, down.cast(x_ND.dtype), counts_E)
        return _Permute.apply(out_MD, slot_M, order_M).view(tokens, k, -1).sum(1)

    def few(self, x_ND: Tensor, experts_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """The same for a few tokens and without gradients: each one times the matrices of its own experts."""
        if x_ND.device.type != "cpu":
            return self._gathered(x_ND, experts_NK, weights_NK)
        out_ND = torch.zeros_like(x_ND)
        for token, experts in enumerate(experts_NK.tolist()):
            for place, expert in enumerate(experts):
                gate, up = F.linear(x_ND[token], self.gate_up_proj[expert].to(x_ND.dtype)).chunk(2, dim=-1)
                hidden = F.silu(gate) * up * weights_NK[token, place].to(x_ND.dtype)
                out_ND[token] += F.linear(hidden, self.down_proj[expert].to(x_ND.dtype))
        return out_ND

    def _gathered(self, x_ND: Tensor, experts_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """`few` where asking which experts were selected would wait for the device."""
        chosen = experts_NK.flatten()
        x_MD1 = x_ND.repeat_interleave(experts_NK.shape[1], 0).unsqueeze(2)
        gate, up = (self.gate_up_proj[chosen].to(x_ND.dtype) @ x_MD1).chunk(2, dim=1)
        hidden = F.silu(gate) * up * weights_NK.view(-1, 1, 1).to(x_ND.dtype)
        return (self.down_proj[chosen].to(x_ND.dtype) @ hidden).view(*experts_NK.shape, -1).sum(1)


def _counts(sorted_M: Tensor, experts: int) -> Tensor:
    """How often each of `experts` occurs in sorted indices, int64; unlike bincount it does not wait for the device."""
    ends_E = torch.searchsorted(sorted_M, torch.arange(experts, device=sorted_M.device), right=True)
    return ends_E.diff(prepend=ends_E.new_zeros(1))


class _Dispatch(torch.autograd.Function):
    """Row m of the result is token order[m] // k. Backward: each token gathers its k rows and adds them."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, order_M: Tensor, slot_M: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(slot_M)
        ctx.k = k
        return x_ND[order_M // k]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (slot_M,) = ctx.saved_tensors
        rows = grads[0][slot_M]
        return rows.view(-1, ctx.k, rows.shape[-1]).sum(1), None, None, None


class _Permute(torch.autograd.Function):
    """Rows in the order `index`; backward gathers by the inverse permutation."""

    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, index_M: Tensor, inverse_M: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_M)
        return x_MD[index_M]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inverse_M,) = ctx.saved_tensors
        return grads[0][inverse_M], None, None
