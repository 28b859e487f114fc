"""A LoRA adapter as training writes it, in peft's format, and the base model with it added.

LoRA (Hu et al. 2021, arXiv:2106.09685) adds s B A to a weight [out, in], with A [r, in], B [out, r] and s = alpha / r.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trine.errors import BadInput, nearest
from trine.weights.index import read_mapping
from trine.weights.reader import TensorReader

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
_MORE = ("alpha_pattern", "rank_pattern", "use_dora", "use_rslora", "fan_in_fan_out", "modules_to_save", "lora_bias")
_MERGE = "add the adapter to its model by `trine merge`"
Change = Callable[[str, Tensor], Tensor]
"""A stored tensor's name and value to its value in the model."""


class Factors(NamedTuple):
    """Of one weight."""

    down: Tensor
    """A, [r, in]."""
    up: Tensor
    """B, [out, r]."""


@dataclass(frozen=True)
class Adapter:
    """What an adapter's folder holds."""

    base: Path
    scale: float
    factors: dict[str, Factors]
    """By the weight's name."""

    def added(self, name: str, weight: Tensor) -> Tensor:
        """`weight` [out, in] with its change, in fp32; as it is where the adapter has none for `name`."""
        if name not in self.factors:
            return weight
        down, up = self.factors[name]
        return weight.float() + self.scale * (up.float() @ down.float())


def is_adapter(folder: Path) -> bool:
    """Whether `folder` holds an adapter and no model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def read_adapter(folder: Path) -> Adapter:
    """Raises BadInput for an adapter that is more than plain LoRA or does not fit its base, or whose base is gone."""
    config = read_mapping(folder / CONFIG, "an adapter's folder")
    _refuse_more(folder / CONFIG, config)
    base = Path(str(config.get("base_model_name_or_path")))
    if not (base / "config.json").is_file():
        raise BadInput(f"{folder / CONFIG}: base_model_name_or_path is {base}, where there is no model folder")
    weights, found = TensorReader(base).tensors, dict[str, dict[str, Tensor]]()
    for name, tensor in _tensors(folder / WEIGHTS).items():
        module, _, kind = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if kind not in ("lora_A", "lora_B"):
            raise BadInput(f"{folder / WEIGHTS}: '{name}' is not plain LoRA; {_MERGE}")
        found.setdefault(f"{module}.weight", {})[kind] = tensor
    factors = {}
    for name, one in found.items():
        if name not in weights:
            raise BadInput(f"{folder / WEIGHTS}: adapts '{name}', which {base} does not have{nearest(name, weights)}")
        shapes = [tuple(one[kind].shape) for kind in ("lora_A", "lora_B") if kind in one]
        rows, columns = weights[name].shape
        if shapes != [(config["r"], columns), (rows, config["r"])]:
            fit = f"do not fit its [{rows}, {columns}] at rank {config['r']}"
            raise BadInput(f"{folder / WEIGHTS}: factors {shapes} of '{name}' {fit}")
        factors[name] = Factors(one["lora_A"], one["lora_B"])
    return Adapter(base, config["lora_alpha"] / config["r"], factors)


def _refuse_more(path: Path, config: Mapping[str, Any]) -> None:
    """Raise BadInput for what changes a weight otherwise than by s B A at one rank and scale."""
    if config.get("peft_type") != "LORA":
        raise BadInput(f"{path}: peft_type is {config.get('peft_type')}, expected LORA")
    more = [key for key in _MORE if config.get(key)]
    if config.get("bias", "none") != "none" or more:
        raise BadInput(f"{path}: has {more[0] if more else 'bias'}, which is more than plain LoRA; {_MERGE}")
    for key, kinds in (("r", int), ("lora_alpha", (int, float))):
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, kinds) or value <= 0:
            raise BadInput(f"{path}: {key} is {value!r}, expected a number above 0")


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from None
