"""Extracted adapters, loaded by peft, against the models they came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.merge.checkpoints import read_weights, write_weights
from tests.surgery.donors import dense
from trine.errors import BadInput
from trine.surgery.lora import _largest, extract_lora


def tuned(folder: Path, rank: int, changed: tuple[str, ...] = ()) -> tuple[Path, Path]:
    """A base and a model whose every linear layer differs by a matrix of that rank."""
    base = dense(folder / "base", "llama", 0)
    rng, weights = np.random.default_rng(0), read_weights(base)
    for name, values in weights.items():
        if name.endswith("_proj.weight"):
            m, n = values.shape
            change = rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n)) * 0.05
            weights[name] = (values + change).astype(np.float32)
        elif name in changed:
            weights[name] = values + np.float32(0.1)
    write_weights(folder / "tuned" / "model.safetensors", weights)
    (folder / "tuned" / "config.json").write_bytes((base / "config.json").read_bytes())
    return folder / "tuned", base


def test_peft_adds_up_to_the_tuned_model(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    after, base = tuned(tmp_path, rank=3)
    found = extract_lora(str(after), str(base), tmp_path / "adapter", 4)
    assert found["modules"] == 21
    assert found["relative_error"] < 1e-3
    whole: Any = AutoModelForCausalLM.from_pretrained(after)
    adapted = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    tokens = torch.tensor([[0, 5, 9, 3]])
    with torch.no_grad():
        torch.testing.assert_close(adapted(tokens).logits, whole(tokens).logits, atol=1e-4, rtol=1e-4)
    state = adapted.merge_and_unload().state_dict()
    for name, one in whole.state_dict().items():
        torch.testing.assert_close(state[name], one, atol=2e-5, rtol=1e-5)


def test_the_error_is_that_of_the_truncated_svd(tmp_path: Path) -> None:
    after, base = tuned(tmp_path, 6, ("model.norm.weight",))
    found = extract_lora(str(after), str(base), tmp_path / "adapter", 2)
    a, b = read_weights(after), read_weights(base)
    missed = total = 0.0
    for name in (name for name in a if name.endswith("_proj.weight")):
        values = np.linalg.svd((a[name] - b[name]).astype(float), compute_uv=False)
        missed, total = missed + (values[2:] ** 2).sum(), total + (values**2).sum()
    assert found["relative_error"] == pytest.approx((missed / total) ** 0.5, rel=1e-4)
    assert found["left_out"] == ["model.norm.weight"]


def test_the_random_range_finds_the_largest_triples() -> None:
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(300, 5, generator=generator) @ torch.randn(5, 250, generator=generator)
    left, values, right = _largest(low, 8, "x")
    torch.testing.assert_close((left * values) @ right, low, atol=1e-4, rtol=1e-4)
    noisy = low + 0.1 * torch.randn(300, 250, generator=generator)
    torch.testing.assert_close(_largest(noisy, 8, "x")[1][:5], torch.linalg.svdvals(noisy)[:5], rtol=1e-5, atol=1e-4)


def test_models_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    after, base = tuned(tmp_path, 1)
    with pytest.raises(BadInput, match="no matrix of a linear layer differs"):
        extract_lora(str(base), str(base), tmp_path / "adapter", 2)
    with pytest.raises(BadInput, match="expected at least 1"):
        extract_lora(str(after), str(base), tmp_path / "adapter", 0)
    weights = read_weights(after)
    del weights["lm_head.weight"]
    write_weights(after / "model.safetensors", weights)
    with pytest.raises(BadInput, match=r"has no lm_head.weight"):
        extract_lora(str(after), str(base), tmp_path / "adapter", 2)
    assert not (tmp_path / "adapter").exists()


def test_case_32_the_products_are_mergekits(tmp_path: Path) -> None:
    """Golden case 32, class T: both adapters of rank 8 give the same B A, the known difference of that rank."""
    pytest.importorskip("mergekit")
    from click.testing import CliRunner
    from mergekit.scripts.extract_lora import main

    after, base = tuned(tmp_path, 8)
    words = [
        "--model",
        after,
        "--base-model",
        base,
        "--out-path",
        tmp_path / "peer",
        "--max-rank",
        8,
        "--no-embed-lora",
    ]
    CliRunner().invoke(main, [str(one) for one in words], catch_exceptions=False)
    extract_lora(str(after), str(base), tmp_path / "ours", 8)
    ours, theirs, tensors = (products(tmp_path / "ours"), products(tmp_path / "peer"), read_weights(after))
    known = {name: one - read_weights(base)[name] for name, one in tensors.items() if name.endswith("_proj.weight")}
    assert set(known) <= set(ours)
    for name, one in known.items():
        np.testing.assert_allclose(ours[name], one, atol=2e-5 * np.abs(one).max())
        np.testing.assert_allclose(ours[name], theirs[name], atol=2e-5 * np.abs(one).max())


def products(adapter: Path) -> dict[str, np.ndarray]:
    """What an adapter adds, by the tensor's name in the model."""
    from safetensors.numpy import load_file

    config = json.loads((adapter / "adapter_config.json").read_text())
    factors = load_file(adapter / "adapter_model.safetensors")
    found = {}
    for name, down in factors.items():
        if ".lora_A" in name:
            stem = name.removeprefix("base_model.model.").partition(".lora_A")[0]
            up = factors[name.replace(".lora_A", ".lora_B")]
            ranks, alphas = (config.get(key) or {} for key in ("rank_pattern", "alpha_pattern"))
            scale = alphas.get(stem, config["lora_alpha"]) / ranks.get(stem, config["r"])
            found[f"{stem}.weight"] = scale * up.astype(float) @ down.astype(float)
    return found
