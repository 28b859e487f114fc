"""Golden cases: one config through mergekit 0.1.5 and through trine, on tiny Llamas, and what must be equal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.merge.checkpoints import LLAMA, read_weights, write_weights
from trine.merge.dtypes import Array, rounded
from trine.merge.engine import Options, merge
from trine.merge.jobs import Plan
from trine.merge.models import open_models
from trine.merge.reading import load_recipe
from trine.merge.tokens import plan_merge

Tensors = dict[str, Array]
DIGITS = {"BF16": 7, "F16": 10}
"""Bits after the leading one."""


def llama(seed: int, near: Mapping[str, Array] | None = None, sigma: float = 0.01, **changes: Any) -> Tensors:
    """A tiny Llama's tensors in fp32; with `near`, those plus normal noise."""
    shape = LLAMA | changes
    width, inner, heads = shape["hidden_size"], shape["intermediate_size"], shape["num_attention_heads"]
    keys = width // heads * shape["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape["vocab_size"], width)}
    for i in range(shape["num_hidden_layers"]):
        stem = f"model.layers.{i}"
        shapes |= {f"{stem}.self_attn.{one}_proj.weight": (width, width) for one in "qo"}
        shapes |= {f"{stem}.self_attn.{one}_proj.weight": (keys, width) for one in "kv"}
        shapes |= {f"{stem}.mlp.{one}_proj.weight": (inner, width) for one in ("gate", "up")}
        shapes |= {f"{stem}.mlp.down_proj.weight": (width, inner)}
        shapes |= {f"{stem}.{one}_layernorm.weight": (width,) for one in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (shape["vocab_size"], width)}
    rng = np.random.default_rng(seed)
    drawn = {name: rng.standard_normal(one).astype(np.float32) for name, one in shapes.items()}
    if near is None:
        return {name: np.float32(0.05) * one for name, one in drawn.items()}
    return {name: (near[name] + sigma * drawn[name]).astype(np.float32) for name in near}


def write_llama(folder: Path, tensors: Tensors, stored: str = "F32", **changes: Any) -> Path:
    """Weights and config.json of a Llama that mergekit and transformers know."""
    write_weights(folder / "model.safetensors", tensors, stored)
    config = LLAMA | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "head_dim": 8}
    config |= {"tie_word_embeddings": "lm_head.weight" not in tensors}
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def peer(config: str, out: Path, **options: Any) -> Tensors:
    """mergekit's output for a config; its folder is `out`."""
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.io.tasks import LoaderCache
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    LoaderCache().loaders.clear()
    shutil.rmtree(out, ignore_errors=True)
    settings = {"quiet": True, "random_seed": 42, "write_model_card": False, "copy_tokenizer": False} | options
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(config)), str(out), MergeOptions(**settings))
    return read_weights(out)


def planned(config: str, folder: Path) -> Plan:
    """Our plan of a config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "merge.yaml").write_text(config)
    recipe = load_recipe(folder / "merge.yaml")
    return plan_merge(recipe, open_models(recipe.models))


def ours(config: str, out: Path, mergekit: bool = True, **options: Any) -> Tensors:
    """Our output for a config; its folder is `out`."""
    merge(planned(config, out.parent), out, Options(mergekit=mergekit, **options))
    return read_weights(out)


def stored_types(folder: Path) -> dict[str, str]:
    """The type of each tensor of a folder."""
    found = {}
    for path in folder.glob("*.safetensors"):
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        found |= {name: entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
    return found


def assert_equal(found: Tensors, wanted: Tensors) -> None:
    """Class E: every bit."""
    assert set(found) == set(wanted)
    for name, one in wanted.items():
        np.testing.assert_array_equal(found[name], one, err_msg=name)


def assert_close(found: Tensors, wanted: Tensors, stored: str) -> None:
    """Class T: 1e-5 of the tensor's largest number in fp32, two units in the last place of it in narrower types."""
    assert set(found) == set(wanted)
    for name, one in wanted.items():
        assert found[name].shape == one.shape, name
        largest = np.abs(one).max()
        step = (
            1e-5 * largest if stored == "F32" else 2 * 2.0 ** (np.floor(np.log2(max(largest, 1e-30))) - DIGITS[stored])
        )
        difference = np.abs(found[name] - one).max()
        assert difference <= step, f"{name}: {difference / step:.2f} of what is allowed"


def assert_equal_off_threshold(
    found: Tensors,
    wanted: Tensors,
    models: list[tuple[Tensors, float | list[float], float]],
    base: Tensors,
    stored: str,
) -> None:
    """Class E*: every bit, except where a magnitude equals one of its model's thresholds and the tie rule chooses.

    `models`: tensors, density (or its gradient over the layers) and gamma of each.
    """
    assert set(found) == set(wanted)
    for name, one in wanted.items():
        tied = np.zeros(one.shape, bool)
        for tensors, density, gamma in models:
            sizes = np.abs(rounded(rounded(tensors[name], stored) - rounded(base[name], stored), stored))
            tied |= _at_threshold(sizes, _along(density, name) if isinstance(density, list) else density, gamma)
        assert not ((found[name] != one) & ~tied).any(), name


def _at_threshold(sizes: Array, density: float, gamma: float) -> Array:
    kept = max(1, int(density * sizes.size)) if density > 0 else 0
    skipped = min(int(gamma * sizes.size), sizes.size - kept)
    ranked = np.sort(sizes.reshape(-1))[::-1]
    bounds = [bound for bound in (skipped, skipped + kept) if 0 < bound < sizes.size]
    return np.isin(sizes, [ranked[bound - 1] for bound in bounds])


def _along(gradient: list[float], name: str) -> float:
    parts = name.split(".")
    layer = int(parts[2]) if parts[1] == "layers" else 0
    return float(np.interp(layer / 3, np.linspace(0, 1, len(gradient)), gradient))
