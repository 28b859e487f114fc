"""Bits per byte: how many bits the model needs for each byte of text, whatever the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trine.data.loader import Batch

if TYPE_CHECKING:
    from trine.model.hf import LanguageModel


@dataclass(frozen=True)
class BitsResult:
    """A set's score and what it was computed from."""

    bits_per_byte: float
    nll_nats: float
    """Sum over all predicted tokens."""
    bytes: int
    """UTF-8 bytes those tokens stand for."""
    tokens: int


@torch.no_grad()
def bits_per_byte(model: LanguageModel, batches: Iterable[Batch], token_bytes_V: Tensor, chunk: int) -> BitsResult:
    """Sum of -log2 p(token) over the sum of the predicted tokens' UTF-8 bytes.

    What is no target of its batch, such as the questions of conversations, is neither in the bits nor in the bytes. The
    end-of-document token costs bits and has no bytes, so knowing where a text ends counts. `token_bytes_V`
    int [V]; `chunk` positions have their logits at one time. No bytes at all gives NaN.
    """
    nll, size, tokens = 0.0, 0, 0
    for batch in batches:
        hidden, _ = model.hidden(batch.tokens, batch.document_ids)
        targets = batch.targets.flatten()
        rows = (targets >= 0).nonzero().squeeze(1)
        nll += float(token_nll(hidden.flatten(0, 1)[rows], model.output_weight, targets[rows], chunk).sum())
        size += int(token_bytes_V[targets[rows]].sum())
        tokens += rows.numel()
    value = nll / math.log(2) / size if size else math.nan
    return BitsResult(bits_per_byte=value, nll_nats=nll, bytes=size, tokens=tokens)


@torch.no_grad()
def token_nll(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk: int) -> Tensor:
    """-log p(target) in nats for each position, fp64 [N]; logits exist for `chunk` positions at a time."""
    cast = weight_VD.to(hidden_ND.dtype)
    parts = [hidden_ND.new_zeros(0, dtype=torch.float64)]
    for piece, target in zip(hidden_ND.split(chunk), targets_N.split(chunk), strict=True):
        logits = (piece @ cast.mT).float()
        parts.append((logits.logsumexp(-1) - logits.gather(1, target.unsqueeze(1)).squeeze(1)).double())
    return torch.cat(parts)
