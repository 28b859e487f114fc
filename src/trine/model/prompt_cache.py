"""What a model has read of a prompt, kept in a file: keys and values as safetensors, tokens and model in its header.

The file holds, for each layer i, `layers.i.key` and `layers.i.value` [H, S, D]: every token's of a global layer, the
last window's of a local one (`trine.model.cache` says in which order). It continues only prompts that begin with all of
its tokens, on the model that read them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class KeptPrompt:
    """A prompt cache in memory, found to fit a model."""

    path: Path
    tokens: list[int]
    layers: list[tuple[Tensor, Tensor]]
    """Each layer's keys and values [H, S, D]."""

    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        """Raise BadInput unless all prompts begin with the tokens and go on."""
        for i, prompt in enumerate(prompts):
            pairs = enumerate(zip(self.tokens, prompt, strict=False))
            same = next((k for k, (a, b) in pairs if a != b), min(len(self.tokens), len(prompt)))
            if same < len(self.tokens) or len(prompt) == len(self.tokens):
                raise BadInput(
                    f"{self.path}: holds {len(self.tokens)} tokens, and prompt {i + 1} of {len(prompts)} "
                    f"({len(prompt)} tokens) begins with {same} of them; it must begin with all and go on. "
                    "Name another file, or remove this one"
                )

    def fill(self, cache: Cache) -> int:
        """Fill the one row of an empty cache; the tokens it then holds. Raises BadInput when shapes differ."""
        for layer, (key, value) in zip(cache.layers, self.layers, strict=True):
            _fill(layer.key, key, self.path)
            _fill(layer.value, value, self.path)
        cache.lengths = [len(self.tokens)]
        return len(self.tokens)


def open_prompt(path: Path, model: Afmoe) -> KeptPrompt:
    """Read a prompt cache. Raises BadInput when it is none, or another model's."""
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if header.get("kind") != _KIND:
                raise BadInput(f"{path}: is no prompt cache; name a new file, or one that --prompt-cache wrote")
            if header["model"] != fingerprint(model):
                raise BadInput(
                    f"{path}: was written by another model or --dtype; name another file, or remove this one"
                )
            names = [(f"layers.{i}.key", f"layers.{i}.value") for i in range(model.config.num_hidden_layers)]
            layers = [(file.get_tensor(key), file.get_tensor(value)) for key, value in names]
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path}: not a safetensors file ({error})") from None
    return KeptPrompt(path, json.loads(header["tokens"]), layers)


def _fill(buffer: Tensor, stored: Tensor, path: Path) -> None:
    slots = stored.shape[1]
    if buffer[0, :, :slots].shape != stored.shape or buffer.dtype != stored.dtype:
        raise BadInput(f"{path}: holds {list(stored.shape)} {stored.dtype}, the model's cache {list(buffer.shape[1:])}")
    buffer[0, :, :slots] = stored
