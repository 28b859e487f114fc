"""Models of transformers behind trine's interface, compared with transformers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.shapes import random_tokens
from trine import load_model, save_model
from trine.errors import BadInput
from trine.model.causal import CausalModel, document_positions
from trine.model.decode import generate
from trine.model.hf import check_parity, export_folder
from trine.model.sampling import Sampling

SHAPE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "mistral": {"sliding_window": 8},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}


def write_peer(folder: Path, kind: str, **changes: Any) -> Path:
    """A small model of `kind` with random weights, as transformers saves it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SHAPE | KINDS.get(kind, {}) | changes))
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def opened(folder: Path) -> CausalModel:
    model = load_model(folder)
    assert isinstance(model, CausalModel)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_equal_separate_rows_of_transformers(kind: str, tmp_path: Path) -> None:
    model = opened(write_peer(tmp_path / "peer", kind))
    tokens, lengths = random_tokens(1, 60, 128), [1, 13, 40, 6]
    ids = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths)).unsqueeze(0)
    packed = model(tokens, ids)
    apart = [model.peer(input_ids=one, use_cache=False).logits for one in tokens.split(lengths, dim=1)]
    assert torch.allclose(packed, torch.cat(apart, dim=1), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(packed, model(tokens), rtol=1e-2, atol=1e-2)


def test_positions_begin_again_with_each_document() -> None:
    ids = torch.tensor([[3, 3, 3, 4, 5, 5], [0, 0, 0, 0, -1, -1]])
    assert document_positions(ids).tolist() == [[0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 0, 1]]


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_exported_folders_hold_the_same_model(kind: str, tmp_path: Path) -> None:
    model = opened(write_peer(tmp_path / "peer", kind))
    save_model(model, tmp_path / "saved")
    export_folder(tmp_path / "saved", tmp_path / "out")
    again = opened(tmp_path / "out")
    for (name, one), (other_name, other) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert name == other_name
        assert torch.equal(one, other), name
    assert check_parity(tmp_path / "out")["max_relative_logit_difference"] < 1e-6


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize("shared", [0, 10])
def test_batched_generation_with_a_cache_equals_recomputing_each_text(kind: str, shared: int, tmp_path: Path) -> None:
    model = opened(write_peer(tmp_path / "peer", kind))
    beginning = random_tokens(1, shared, 128)[0].tolist()
    prompts = [beginning + random_tokens(1, n, 128, seed=n)[0].tolist() for n in (12, 3, 20, 7)]
    expected = []
    for prompt in prompts:
        text = list(prompt)
        for _ in range(12):
            text.append(int(model(torch.tensor([text]))[0, -1].argmax()))
        expected.append(text[len(prompt) :])
    for some in ([0], [2], [0, 1, 2, 3]):
        found: list[list[int]] = [[] for _ in some]
        for fresh in generate(model, [prompts[i] for i in some], 12, Sampling(temperature=0)):
            for row, token in fresh.items():
                found[row].append(token)
        assert found == [expected[i] for i in some]


def test_bf16_computes_in_bf16_with_fp32_parameters_and_gradients(tmp_path: Path) -> None:
    model = opened(write_peer(tmp_path / "peer", "llama"))
    kinds = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.register_forward_hook(lambda _m, _i, out: kinds.append(out.dtype))
    tokens = random_tokens(2, 16, 128)
    exact, _ = model.hidden(tokens)
    kinds.clear()
    model.compute_dtype = torch.bfloat16
    states, _ = model.hidden(tokens, torch.zeros_like(tokens))
    states.float().square().sum().backward()
    assert states.dtype == torch.bfloat16
    assert set(kinds) == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    assert 0 < (states.float() - exact).abs().max() < 0.1


def test_recomputation_runs_each_block_twice_for_the_same_gradients(tmp_path: Path) -> None:
    model, calls, gradients = opened(write_peer(tmp_path / "peer", "llama")).train(), [], []
    model.peer.base_model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    tokens = random_tokens(2, 16, 128)
    for recompute in (False, True):
        model.recompute = recompute
        model.zero_grad()
        calls.clear()
        model.hidden(tokens)[0].square().sum().backward()
        assert len(calls) == 1 + recompute
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("cohere", {"logit_scale": 0.5}, "scales its logits"),
        ("gemma2", {"head_dim": 8}, "logit_softcapping is"),
        ("gpt2", {"resid_pdrop": 0.1}, "resid_pdrop is 0.1"),
        ("qwen3_moe", {"num_experts": 4, "moe_intermediate_size": 16}, "experts is 4"),
    ],
)
def test_models_the_trainer_cannot_represent_are_refused(
    kind: str, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=said):
        load_model(write_peer(tmp_path / "peer", kind, **changes))


def test_pickles_remote_code_and_missing_weights_are_refused(tmp_path: Path) -> None:
    folder = write_peer(tmp_path / "peer", "llama")
    weights, config = folder / "model.safetensors", folder / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"num_hidden_layers": 3}))
    with pytest.raises(BadInput, match="missing_keys"):
        load_model(folder)
    config.write_text(json.dumps(values | {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}))
    (folder / "own.py").write_text("raise SystemExit('this code ran')")
    with pytest.raises(BadInput, match="cannot load"):
        load_model(folder)
    config.write_text(json.dumps(values))
    weights.unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match="cannot load"):
        load_model(folder)
