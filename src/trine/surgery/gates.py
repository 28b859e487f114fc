"""Rows of routers: from what a dense model makes of example prompts, from token embeddings, or at random.

A prompt's hidden state as it enters a layer is what that layer's router will see (but for a norm), so the direction of
the mean over an expert's prompts, less that of its negative prompts, is its row. The model's layers are in memory one
at a time: each is loaded as the states reach it and dropped behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trine.errors import BadInput
from trine.merge.dtypes import Array
from trine.progress import Progress, silent
from trine.surgery.config import Expert, MoeConfig
from trine.surgery.vocabulary import load_tokenizer
from trine.weights.reader import TensorReader

EMBEDDING = "model.embed_tokens.weight"


def make_gates(
    config: MoeConfig, experts: Sequence[Expert], folder: Path, seed: int, stream: int = 0, progress: Progress = silent
) -> Array:
    """Router rows [layers, experts, hidden] in fp32. `stream` sets apart the random rows of one call from another's.

    Raises BadInput when the base model in `folder` has no tokenizer or cannot be run.
    """
    from transformers import AutoConfig

    shape: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    layers, hidden = shape.num_hidden_layers, shape.hidden_size
    if not config.prompted:
        rng = np.random.default_rng([seed, stream])
        size = (layers, len(experts), hidden)
        if config.gate_mode == "random":
            return rng.standard_normal(size, np.float32)
        return rng.uniform(-(hidden**-0.5), hidden**-0.5, size).astype(np.float32)
    groups = [list(one.positive_prompts or ()) for one in experts] + [
        list(one.negative_prompts or ()) for one in experts
    ]
    tokens = _tokens(folder, [prompt for group in groups for prompt in group])
    if config.gate_mode == "cheap_embed":
        rows = _embedded(folder, tokens).expand(layers, -1, -1)
    else:
        rows = _hidden(folder, shape, tokens, config.gate_mode == "hidden_avg", progress)
    combine = torch.sum if config.gate_mode == "cheap_embed" else torch.mean
    return _directions(rows, groups, combine).numpy()


def _directions(rows: Tensor, groups: list[list[str]], combine: Callable[..., Tensor]) -> Tensor:
    """Rows per prompt [layers, prompts, hidden] to unit rows per expert: positive prompts less negative ones."""
    ends = np.cumsum([len(one) for one in groups]).tolist()
    means = [combine(rows[:, end - len(one) : end], dim=1) for one, end in zip(groups, ends, strict=True)]
    if combine is torch.sum:  # directions of sums, so that their lengths do not weigh
        means = [torch.nn.functional.normalize(one, dim=-1, eps=1e-8) for one in means]
    count = len(groups) // 2
    made = [means[i] - means[count + i] if groups[count + i] else means[i] for i in range(count)]
    return torch.nn.functional.normalize(torch.stack(made, dim=1), dim=-1, eps=1e-8)


def _tokens(folder: Path, prompts: list[str]) -> list[list[int]]:
    """Token ids of each prompt, after the token that begins a text where the tokenizer has one."""
    tokenizer = load_tokenizer(folder, "prompts need")
    found = [tokenizer((tokenizer.bos_token or "") + one, add_special_tokens=False)["input_ids"] for one in prompts]
    for prompt, ids in zip(prompts, found, strict=True):
        if not ids:
            raise BadInput(f"prompt {prompt!r}: has no token")
    return found


def _embedded(folder: Path, tokens: list[list[int]]) -> Tensor:
    """Sum of each prompt's token embeddings [prompts, hidden]."""
    table = TensorReader(folder).read(EMBEDDING)
    return torch.stack([table[ids].float().sum(0) for ids in tokens])


def _hidden(folder: Path, shape: Any, tokens: list[list[int]], average: bool, progress: Progress) -> Tensor:
    """What enters each layer, at the last token or averaged over tokens [layers, prompts, hidden]."""
    from transformers import AutoModelForCausalLM

    reader = TensorReader(folder)
    shape._attn_implementation = "eager"
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(shape).eval().model
    if not hasattr(model, "rotary_emb") or EMBEDDING not in reader.tensors:
        raise BadInput(f"{folder}: not a decoder whose layers can be run one by one; use gate_mode cheap_embed")
    model.rotary_emb = type(model.rotary_emb)(shape)
    _load(model.embed_tokens, "model.embed_tokens.", reader)
    _load(model.norm, "model.norm.", reader)
    lengths = torch.tensor([len(one) for one in tokens])
    ids = torch.zeros(len(tokens), int(lengths.max()), dtype=torch.long)
    for row, one in enumerate(tokens):
        ids[row, : len(one)] = torch.tensor(one)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    rows: list[Tensor] = []

    def enter(layer: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        states = (arguments[0] if arguments else named["hidden_states"]).float()
        progress(len(rows), len(model.layers), "gates: layers")
        picked = states[torch.arange(len(tokens)), lengths - 1]
        rows.append((states * mask[..., None]).sum(1) / lengths[:, None] if average else picked)
        _load(layer, f"model.layers.{len(rows) - 1}.", reader)

    for layer in model.layers:
        layer.register_forward_pre_hook(enter, with_kwargs=True)
        layer.register_forward_hook(lambda module, *_: module.to_empty(device="meta") and None)
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    progress(len(rows), len(model.layers), "gates: layers")
    return torch.stack(rows)


def _load(module: torch.nn.Module, prefix: str, reader: TensorReader) -> None:
    """Give a module on the meta device its weights, in fp32. Raises BadInput naming one that is missing."""
    names = [name for name, _ in module.named_parameters()]
    missing = [prefix + name for name in names if prefix + name not in reader.tensors]
    if missing:
        raise BadInput(f"{reader.folder}: has no {missing[0]}, so hidden states cannot be had; use cheap_embed")
    module.load_state_dict({name: reader.read(prefix + name).float() for name in names}, strict=False, assign=True)
