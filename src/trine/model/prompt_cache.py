"""What a model has read of a prompt, kept in a file: keys and values as safetensors, tokens and model in its header.

The file holds, for each layer i, `layers.i.key` and `layers.i.value` [H, S, D]: every token's of a global layer, the
last window's of a local one (`trine.model.cache` says in which order). It continues only prompts that begin with all of
its tokens, on the model that read them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from trine.errors import BadInput
from trine.manifest import write_file
from trine.model.afmoe import Afmoe
from trine.model.cache import Cache
from trine.model.causal import CausalModel

_KIND = "trine prompt cache"


def fingerprint(model: Afmoe | CausalModel) -> str:
    """64 hex digits of the model's shape, type and weights: of each tensor its ends and every 4,096th value."""
    digest = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        flat = tensor.detach().flatten()
        some = torch.cat((flat[:64], flat[::4096], flat[-64:])).double().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + some.numpy().tobytes())
    return digest.hexdigest()


def save_prompt(path: Path, cache: Cache, tokens: list[int], model: Afmoe) -> None:
    """Write the one row of `cache`, which has read `tokens`, whole or not at all."""
    tensors = {}
    for i, layer in enumerate(cache.layers):
        held = min(len(tokens), layer.key.shape[2])
        tensors[f"layers.{i}.key"] = layer.key[0, :, :held].cpu().contiguous()
        tensors[f"layers.{i}.value"] = layer.value[0, :, :held].cpu().contiguous()
    header = {"kind": _KIND, "tokens": json.dumps(tokens), "model": fingerprint(model)}
    write_file(path, save(tensors, header))


def read_tokens(path: Path, prompts: Sequence[Sequence[int]], model: Afmoe) -> list[int]:
    """The tokens of a file, all prompts beginning with them. Raises BadInput when it does not fit model or prompts."""
    header = _header(path)
    if header.get("kind") != _KIND:
        raise BadInput(f"{path}: is no prompt cache; name a new file, or one that --prompt-cache wrote")
    if header["model"] != fingerprint(model):
        raise BadInput(f"{path}: was written by another model or --dtype; name another file, or remove this one")
    tokens: list[int] = json.loads(header["tokens"])
    for i, prompt in enumerate(prompts):
        pairs = enumerate(zip(tokens, prompt, strict=False))
        same = next((k for k, (a, b) in pairs if a != b), min(len(tokens), len(prompt)))
        if same < len(tokens) or len(prompt) == len(tokens):
            raise BadInput(
                f"{path}: holds {len(tokens)} tokens, and prompt {i + 1} of {len(prompts)} ({len(prompt)} tokens) "
                f"begins with {same} of them; it must begin with all and go on. Name another file, or remove this one"
            )
    return tokens


def load_prompt(path: Path, cache: Cache, tokens: list[int]) -> int:
    """Fill the one row of an empty `cache` from a file that holds `tokens`; how many they are. Raises BadInput."""
    with safe_open(path, "pt") as file:
        for i, layer in enumerate(cache.layers):
            _fill(layer.key, file.get_tensor(f"layers.{i}.key"), path)
            _fill(layer.value, file.get_tensor(f"layers.{i}.value"), path)
    cache.lengths = [len(tokens)]
    return len(tokens)


def _fill(buffer: Tensor, stored: Tensor, path: Path) -> None:
    slots = stored.shape[1]
    if buffer[0, :, :slots].shape != stored.shape or buffer.dtype != stored.dtype:
        raise BadInput(f"{path}: holds {list(stored.shape)} {stored.dtype}, the model's cache {list(buffer.shape[1:])}")
    buffer[0, :, :slots] = stored


def _header(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path}: not a safetensors file ({error})") from None
