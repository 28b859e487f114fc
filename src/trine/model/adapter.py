"""A LoRA adapter as training writes it, in peft's format, and the base model with it added.

LoRA (Hu et al. 2021, arXiv:2106.09685) adds s B A to a weight [out, in], with A [r, in], B [out, r] and s = alpha / r.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load_file
from torch import Tensor

from trine.errors import BadInput
from trine.weights.index import read_mapping

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
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
    """Raises BadInput for an adapter that training did not write, and one whose base is gone."""
    config = read_mapping(folder / CONFIG, "an adapter's folder")
    plain = config.get("peft_type") == "LORA" and not config.get("use_dora") and not config.get("use_rslora")
    found = dict[str, dict[str, Tensor]]()
    for name, tensor in load_file(folder / WEIGHTS).items():
        module, _, kind = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if not plain or kind not in ("lora_A", "lora_B"):
            raise BadInput(f"{folder}: '{name}' is not plain LoRA; add the adapter to its model by `trine merge`")
        found.setdefault(f"{module}.weight", {})[kind] = tensor
    base = Path(str(config.get("base_model_name_or_path")))
    if not (base / "config.json").is_file():
        raise BadInput(f"{folder / CONFIG}: base_model_name_or_path is {base}, where there is no model folder")
    factors = {name: Factors(one["lora_A"], one["lora_B"]) for name, one in found.items()}
    return Adapter(base, config["lora_alpha"] / config["r"], factors)
