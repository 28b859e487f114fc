"""Tiny checkpoints to merge: of real architectures through transformers, or of any tensors at all."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trine.merge.dtypes import STORED, Array, narrow, widen

LLAMA: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_MOE = LLAMA | {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}


def write_weights(path: Path, tensors: Mapping[str, Array], stored: str = "F32") -> None:
    """A safetensors file of fp32 arrays held as `stored`; whole numbers stay as they are."""
    entries, blobs, place = {}, [], 0
    for name, values in tensors.items():
        kind = stored if values.dtype == np.float32 else "I64"
        blob = (narrow(values.reshape(-1), stored) if kind == stored else values).tobytes()
        entries[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": [place, place + len(blob)]}
        blobs.append(blob)
        place += len(blob)
    header = json.dumps(entries).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"".join(blobs))


def read_weights(folder: Path) -> dict[str, Array]:
    """Every tensor of a folder as fp32, read without trine's own reader."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        for name, entry in json.loads(data[8 : 8 + length]).items():
            if name == "__metadata__":
                continue
            begin, end = (8 + length + one for one in entry["data_offsets"])
            if entry["dtype"] == "I64":
                found[name] = np.frombuffer(data[begin:end], np.int64).reshape(entry["shape"])
                continue
            raw = np.frombuffer(data[begin:end], STORED[entry["dtype"]])
            found[name] = widen(raw, entry["dtype"], np.empty(len(raw), np.float32)).reshape(entry["shape"])
    return found


def random_tensors(
    seed: int, layers: int = 3, width: int = 16, base: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """Tensors named as a Llama's; with `base`, near it."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (24, width)}
    for i in range(layers):
        stem = f"model.layers.{i}"
        shapes[f"{stem}.self_attn.q_proj.weight"] = (width, width)
        shapes[f"{stem}.mlp.up_proj.weight"] = (2 * width, width)
        shapes[f"{stem}.input_layernorm.weight"] = (width,)
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (24, width)}
    drawn = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return drawn if base is None else {name: base[name] + 0.1 * one for name, one in drawn.items()}


def transformers_model(folder: Path, kind: str, seed: int, stored: str = "bfloat16", **changes: Any) -> Path:
    """A random tiny model of transformers, in the Hub's layout."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig

    from trine.model.config import ModelConfig
    from trine.model.hf import init_folder

    if kind == "afmoe":
        shape = {key: value for key, value in _MOE.items() if key != "max_position_embeddings"}
        init_folder(ModelConfig.model_validate(shape | changes), folder, seed, stored)
        return folder
    torch.manual_seed(seed)
    config: Any = (LlamaConfig if kind == "llama" else Qwen3MoeConfig).from_dict(
        (_MOE if kind != "llama" else LLAMA) | changes
    )
    model = AutoModelForCausalLM.from_config(config).to(getattr(torch, stored))
    model.save_pretrained(folder)
    return folder
