"""The shape of a model, and the model of a shape: no weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trine.errors import BadInput
from trine.model.afmoe import Afmoe
from trine.model.causal import CausalModel
from trine.model.config import ModelConfig
from trine.model.hf import LanguageModel
from trine.model.hf_config import ABLATED, AFMOE, architecture, read_config

Shape = Any
"""A ModelConfig, or the config of a model of transformers."""


def read_shape(folder: Path) -> Shape:
    """The shape of the model in a Hugging Face folder; its weights are not read. Raises BadInput."""
    if architecture(folder) in (AFMOE, ABLATED):
        return read_config(folder)
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its parts raise
        reason = str(error).strip().splitlines()[0]
        raise BadInput(f"{folder}: transformers cannot read its config ({reason})") from None


def build(shape: Shape, device: str = "cpu", dtype: str = "float32") -> LanguageModel:
    """A model of `shape` in fp32, one of transformers in `dtype`; on `meta` it takes no memory, else it is noise."""
    if isinstance(shape, ModelConfig):
        with torch.device(device):
            return Afmoe(shape)
    from transformers import AutoModelForCausalLM

    with torch.device(device):
        peer: Any = AutoModelForCausalLM.from_config(shape, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    return CausalModel(peer)
