"""The architecture's switches against the formulas in float64, and what may not be exported."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.model.shapes import random_tokens, small_config, small_model
from tests.tokens import write_tokens
from trine.chain import train_run
from trine.config.load import Loaded
from trine.errors import BadInput
from trine.model.afmoe import Afmoe
from trine.model.config import ModelConfig
from trine.model.decode import generate
from trine.model.flops import count_parameters
from trine.model.hf import export_folder, init_folder, load_model, save_model
from trine.model.sampling import Sampling
from trine.progress import silent
from trine.recipe import Config
from trine.train.checkpoint import list_checkpoints
from trine.train.config import TrainConfig
from trine.train.metrics import Unwatched

SWITCHES = [
    dict(zip(("sandwich_norm", "attention_gate", "global_rope"), values, strict=True))
    for values in itertools.product((True, False), repeat=3)
]
PRE_NORM, UNGATED, ROPE = {"sandwich_norm": False}, {"attention_gate": False}, {"global_rope": True}


def norm(x: Tensor, gain: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * gain


def turned(x: Tensor) -> Tensor:
    """Rotary positions by complex numbers: channels j and j + half are one number, turned by t theta^(-j / half)."""
    length, size = x.shape[-2:]
    half = size // 2
    angle = torch.arange(length).unsqueeze(1) * 10000.0 ** (-torch.arange(half) / half).double()
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), dim=-1)


def attention(x: Tensor, w: dict[str, Tensor], config: ModelConfig, local: bool) -> Tensor:
    length, heads, size = x.shape[0], config.num_attention_heads, config.head_dim
    split = {name: (x @ w[f"self_attn.{name}_proj.weight"].T).view(length, -1, size) for name in "qkv"}
    q = norm(split["q"], w["self_attn.q_norm.weight"]).transpose(0, 1)
    k = norm(split["k"], w["self_attn.k_norm.weight"]).transpose(0, 1)
    if local or config.global_rope:
        q, k = turned(q), turned(k)
    out = torch.empty(heads, length, size, dtype=x.dtype)
    for head in range(heads):
        shared = head * config.num_key_value_heads // heads
        for t in range(length):
            first = max(0, t - config.sliding_window + 1) if local else 0
            weight = (k[shared, first : t + 1] @ q[head, t] / math.sqrt(size)).softmax(0)
            out[head, t] = weight @ split["v"][first : t + 1, shared]
    joined = out.transpose(0, 1).reshape(length, -1)
    if config.attention_gate:
        joined = joined / (1 + torch.exp(-(x @ w["self_attn.gate_proj.weight"].T)))
    return joined @ w["self_attn.o_proj.weight"].T


def feed_forward(x: Tensor, w: dict[str, Tensor], config: ModelConfig, sparse: bool) -> Tensor:
    def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T

    name = "mlp.shared_experts" if sparse else "mlp"
    out = swiglu(x, *(w[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down")))
    if not sparse:
        return out
    scores = torch.sigmoid(x @ w["mlp.router.gate.weight"].T)
    for t, score in enumerate(scores):
        chosen = (score + w["mlp.expert_bias"]).topk(config.num_experts_per_tok).indices
        for expert in chosen.tolist():
            gate, up = w["mlp.experts.gate_up_proj"][expert].chunk(2)
            weight = score[expert] / score[chosen].sum() * config.route_scale
            out[t] += weight * swiglu(x[t], gate, up, w["mlp.experts.down_proj"][expert])
    return out


def by_the_formulas(model: Afmoe, tokens: Tensor) -> Tensor:
    """Logits [T, V] of one row."""
    config, weights = model.config, {name: t.double() for name, t in model.state_dict().items()}
    x = weights["model.embed_tokens.weight"][tokens] * math.sqrt(config.hidden_size)
    for layer, kind in enumerate(config.layers()):
        at = f"model.layers.{layer}."
        w = {name.removeprefix(at): t for name, t in weights.items() if name.startswith(at)}
        sublayers = {
            ("input_layernorm", "post_attention_layernorm"): lambda u, w, k=kind: attention(
                u, w, config, k == "sliding_attention"
            ),
            ("pre_mlp_layernorm", "post_mlp_layernorm"): lambda u, w, i=layer: feed_forward(
                u, w, config, i >= config.num_dense_layers
            ),
        }
        for (before, after), sublayer in sublayers.items():
            out = sublayer(norm(x, w[f"{before}.weight"]), w)
            x = x + (norm(out, w[f"{after}.weight"]) if config.sandwich_norm else out)
    return norm(x, weights["model.norm.weight"]) @ weights["lm_head.weight"].T


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_every_combination_equals_its_formulas(switches: dict[str, bool]) -> None:
    model = small_model(small_config(**switches), bias=0.1).double().eval()
    tokens = random_tokens(1, 21)
    ours, expected = model(tokens)[0], by_the_formulas(model, tokens[0])
    assert torch.allclose(ours, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("switches", [PRE_NORM, UNGATED, ROPE], ids=str)
def test_each_switch_changes_the_model(switches: dict[str, bool]) -> None:
    tokens = random_tokens(1, 21)
    assert not torch.allclose(small_model()(tokens), small_model(small_config(**switches))(tokens), atol=1e-3)


def test_parameters_that_are_gone_are_not_counted() -> None:
    whole, config = count_parameters(small_config()).total, small_config()
    gate = config.num_hidden_layers * config.hidden_size * config.num_attention_heads * config.head_dim
    assert whole - count_parameters(small_config(**UNGATED)).total == gate
    norms = 2 * config.num_hidden_layers * config.hidden_size
    assert whole - count_parameters(small_config(**PRE_NORM)).total == norms
    assert count_parameters(small_config(**ROPE)).total == whole


def test_cached_decoding_with_positions_in_global_layers_equals_uncached() -> None:
    model = small_model(small_config(**ROPE)).eval()
    prompt = random_tokens(1, 11)[0].tolist()
    cached, uncached = [step[0] for step in generate(model, [prompt], 12, Sampling(temperature=0))], list[int]()
    for _ in range(12):
        uncached.append(int(model(torch.tensor([prompt + uncached]))[0, -1].argmax()))
    assert cached == uncached


def test_export_is_refused_and_says_why(tmp_path: Path) -> None:
    config = small_config(**UNGATED, **ROPE)
    for write in (
        lambda: save_model(small_model(config), tmp_path / "out"),
        lambda: init_folder(config, tmp_path / "out"),
    ):
        with pytest.raises(BadInput, match=r"attention_gate: false, global_rope: true has no Hugging Face form"):
            write()
    assert not (tmp_path / "out").exists()


class Heard(Unwatched):
    """What a run says, and when training began."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.progress = silent

    def on_start(self, info: dict[str, Any]) -> None:
        self.said.append("start")

    def on_event(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def ablated_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Heard, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ablated")
    tokens = write_tokens(folder / "tokens")
    train = TrainConfig(
        tokens=str(tokens), steps=2, sequence_length=24, batch_sequences=2, micro_batch_sequences=2, threads=1
    )
    config = Config(model=small_config(**PRE_NORM), train=train)
    heard = Heard()
    made = train_run(
        Loaded(config, config.model_dump(mode="json", exclude={"inputs"}), "", None), folder / "run", heard
    )
    return folder / "run", heard, made


def test_a_run_says_before_training_that_nothing_will_be_exported(
    ablated_run: tuple[Path, Heard, dict[str, Any]],
) -> None:
    run, heard, made = ablated_run
    assert "sandwich_norm: false" in heard.said[0]
    assert heard.said.index("start") > 0
    assert "model" not in made
    assert not (run / "model").exists()
    assert (run / "report.html").is_file()


def test_its_checkpoint_opens_here_and_is_refused_by_transformers(
    ablated_run: tuple[Path, Heard, dict[str, Any]], tmp_path: Path
) -> None:
    from transformers import AutoConfig

    checkpoint = list_checkpoints(ablated_run[0])[0]
    model = load_model(checkpoint)
    assert isinstance(model, Afmoe)
    assert model.config.ablations() == ("sandwich_norm: false",)
    tokens = random_tokens(1, 9)
    assert torch.allclose(model(tokens)[0].double(), by_the_formulas(model, tokens[0]), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="afmoe_ablated"):
        AutoConfig.from_pretrained(checkpoint, local_files_only=True)
    with pytest.raises(BadInput, match="sandwich_norm: false has no Hugging Face form"):
        export_folder(checkpoint, tmp_path / "hub")
