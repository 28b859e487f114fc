"""A LoRA adapter as peft saves it: which of a model's tensors it changes, and by what.

LoRA (Hu et al. 2021, arXiv:2106.09685) adds s B A to a weight [out, in], with A [r, in], B [out, r] and s = alpha / r,
or alpha / sqrt(r) with `use_rslora` (Kalajdzievski 2023, arXiv:2312.03732). Only headers and the config are read here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trine.errors import BadInput, nearest
from trine.merge.dtypes import STORED
from trine.weights.index import TensorInfo, read_header, read_mapping

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_REFUSED = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "megatron_config",
    "monteclora_config",
    "trainable_token_indices",
    "velora_config",
)
"""Settings that change what an adapter computes, beyond adding s B A."""
_FACTOR = re.compile(r"^(.+)\.lora_(embedding_)?([AB])(?:\.weight)?$")


@dataclass(frozen=True)
class LowRank:
    """scale * up @ down, added to a weight; `transposed` adds the transpose of that."""

    down: TensorInfo
    """A, [r, in]."""
    up: TensorInfo
    """B, [out, r]."""
    scale: float
    transposed: bool
    names: tuple[str, str]
    """A's and B's names in the adapter's file."""


@dataclass(frozen=True)
class Adapter:
    """What an adapter does to the tensors of a model, by their names."""

    added: dict[str, LowRank]
    replaced: dict[str, TensorInfo]
    """Tensors trained whole (`modules_to_save`)."""


def open_adapter(folder: Path, tensors: dict[str, TensorInfo]) -> Adapter:
    """The adapter in `folder` for a model with these tensors.

    Raises BadInput when it is not LoRA, uses a variant that is not supported (named), or does not fit the model.
    """
    config = read_mapping(folder / CONFIG, "an adapter's folder as peft saves it")
    _check_kind(folder / CONFIG, config)
    path = folder / WEIGHTS
    if not path.is_file():
        raise BadInput(f"{path}: missing; expected an adapter as peft saves it in safetensors")
    added: dict[str, dict[str, tuple[str, TensorInfo]]] = {}
    replaced = {}
    for name, info in read_header(path).items():
        plain = name.removeprefix("base_model.model.").replace(".modules_to_save.", ".").replace(".base_layer.", ".")
        if factor := _FACTOR.match(plain):
            kind = f"{factor[2] or ''}{factor[3]}"
            added.setdefault(_target(path, f"{factor[1]}.weight", tensors), {})[kind] = (name, info)
        elif "lora_" in plain:
            raise BadInput(f"{path}: '{name}' belongs to a variant of LoRA that is not supported")
        else:
            replaced[_target(path, plain, tensors)] = info
    return Adapter({name: _low_rank(path, name, one, config, tensors[name]) for name, one in added.items()}, replaced)


def _check_kind(path: Path, config: dict[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise BadInput(f"{path}: peft_type is {config.get('peft_type')}; only LORA adapters are merged")
    for key in _REFUSED:
        if config.get(key):
            raise BadInput(f"{path}: {key} is not supported; merge the adapter into its model with peft first")
    if any(not str(name).endswith(".weight") for name in config.get("target_parameters") or ()):
        raise BadInput(f"{path}: target_parameters names stacked matrices; merge the adapter into its model with peft")
    if config.get("bias", "none") != "none":
        raise BadInput(f"{path}: bias is '{config['bias']}'; only adapters without biases are merged")
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), int | float) or isinstance(config[key], bool) or config[key] <= 0:
            raise BadInput(f"{path}: {key} is {config.get(key)!r}, expected a number above 0")


def _target(path: Path, name: str, tensors: dict[str, TensorInfo]) -> str:
    if name not in tensors:
        raise BadInput(f"{path}: changes '{name}', which the model does not have{nearest(name, list(tensors))}")
    return name


def _low_rank(
    path: Path, name: str, factors: dict[str, tuple[str, TensorInfo]], config: dict[str, Any], weight: TensorInfo
) -> LowRank:
    embedding = any(kind.startswith("embedding_") for kind in factors)
    kinds = ("embedding_A", "embedding_B") if embedding else ("A", "B")
    if set(factors) != set(kinds):
        raise BadInput(f"{path}: '{name}' has {', '.join(factors)} of its factors; expected A and B")
    (down_name, down), (up_name, up) = (factors[kind] for kind in kinds)
    for factor, info in factors.values():
        if info.dtype not in STORED:
            raise BadInput(f"{path}: '{factor}' is {info.dtype}, expected one of {', '.join(STORED)}")
    rank, alpha = _settings(path, name.removesuffix(".weight"), config)
    transposed = embedding or bool(config.get("fan_in_fan_out"))
    found = (up.shape[0], down.shape[1]) if len(up.shape) == len(down.shape) == 2 else None
    wanted = weight.shape[::-1] if transposed else weight.shape
    if found != wanted or down.shape[0] != up.shape[1]:
        raise BadInput(
            f"{path}: the factors of '{name}' are {list(down.shape)} and {list(up.shape)}, which do not fit a weight "
            f"{list(weight.shape)}; only linear layers and embeddings are merged"
        )
    if down.shape[0] != rank:
        raise BadInput(f"{path}: '{name}' has rank {down.shape[0]}, {CONFIG} says {rank}")
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return LowRank(down, up, scale, transposed, (down_name, up_name))


def _settings(path: Path, module: str, config: dict[str, Any]) -> tuple[int, float]:
    """Rank and alpha of a module: the first pattern that fits the end of its name, else the adapter's own."""
    found = []
    for key, plain in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        patterns = config.get(key) or {}
        try:
            matched = (value for text, value in patterns.items() if re.match(rf"(.*\.)?({text})$", module))
            found.append(next(matched, config[plain]))
        except re.error as error:
            raise BadInput(f"{path.parent / CONFIG}: {key} holds a pattern that is none ({error})") from None
    return found[0], found[1]
