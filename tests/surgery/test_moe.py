"""Mixtures from dense models: tensors where they belong, gates against whole models in transformers, mergekit-moe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.e2e.test_merge import load
from tests.merge.checkpoints import read_weights, write_weights
from tests.surgery.donors import dense
from trine.errors import BadInput
from trine.merge.engine import Options
from trine.surgery.copying import made_folder
from trine.surgery.moe import make_moe, plan_moe

PROMPTS = (["code loop list", "sum"], ["law court judge", "read law"])
CONFIG = """base_model: {0}/a
gate_mode: {1}
experts:
  - source_model: {0}/a
    positive_prompts: ["code loop list", "sum"]
    negative_prompts: ["hello friend"]
  - source_model: {0}/b
    positive_prompts: ["law court judge", "read law"]
"""
SHARED = "shared_experts:\n  - source_model: {0}/a\n    positive_prompts: [chat]\n    residual_scale: 0.5\n"


def made(folder: Path, kind: str, text: str, seed: int = 0, **changes: Any) -> Path:
    for number, name in enumerate("ab"):
        if not (folder / name).exists():
            dense(folder / name, kind, number, **changes)
    (folder / "moe.yaml").write_text(text)
    found = plan_moe(folder / "moe.yaml")
    out = folder / f"{found.target.name}-{seed}"
    make_moe(found, out, Options(seed=seed))
    assert not made_folder(out).exists()
    return out


TARGETS = [
    ("llama", "", "mixtral"),
    ("mistral", "", "mixtral"),
    ("qwen3", "", "qwen3"),
    ("qwen2", SHARED, "qwen"),
    ("llama", SHARED, "qwen"),
    ("afmoe", SHARED.replace("    positive_prompts: [chat]\n", ""), "afmoe"),
]


@pytest.mark.parametrize(("kind", "more", "target"), TARGETS)
def test_a_mixture_loads_and_generates(tmp_path: Path, kind: str, more: str, target: str) -> None:
    changes = {"head_dim": 8} if kind == "qwen2" else {}
    architecture = f"architecture: {target}\n"
    out = made(tmp_path, kind, CONFIG.format(tmp_path, "hidden") + more.format(tmp_path) + architecture, **changes)
    model = load(out)
    state = model.state_dict()
    donors = [read_weights(tmp_path / name) for name in "ab"]
    for layer in range(3):
        stem = f"model.layers.{layer}.mlp."
        for number, donor in enumerate(donors):
            both = np.concatenate([donor[f"{stem}{kind}_proj.weight"] for kind in ("gate", "up")])
            np.testing.assert_array_equal(state[f"{stem}experts.gate_up_proj"][number].numpy(), both)
            down = donor[f"{stem}down_proj.weight"]
            np.testing.assert_array_equal(state[f"{stem}experts.down_proj"][number].numpy(), down)
        if more:
            shared = "shared_expert" if target == "qwen" else "shared_experts"
            found = state[f"{stem}{shared}.down_proj.weight"].numpy()
            np.testing.assert_array_equal(found, donors[0][f"{stem}down_proj.weight"] * np.float32(0.5))
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        np.testing.assert_array_equal(state[name].numpy(), donors[0][name])
    assert model.config.num_experts_per_tok == 2
    assert (out / "tokenizer.json").exists()
    assert "# A mixture of 2 experts" in (out / "README.md").read_text()


def test_equal_experts_give_the_dense_models_logits(tmp_path: Path) -> None:
    """Any router over equal experts is the MLP itself, as the weights of the chosen experts sum to 1."""
    from transformers import AutoModelForCausalLM

    dense(tmp_path / "a", "llama", 0)
    text = CONFIG.format(tmp_path, "random").replace("/b", "/a")
    (tmp_path / "moe.yaml").write_text(text)
    with pytest.raises(BadInput, match="--allow-same-experts"):
        plan_moe(tmp_path / "moe.yaml")
    make_moe(plan_moe(tmp_path / "moe.yaml", allow_same=True), tmp_path / "out", Options())
    tokens = torch.tensor([[0, 5, 9, 3, 7]])
    before, after = (AutoModelForCausalLM.from_pretrained(tmp_path / name)(tokens).logits for name in ("a", "out"))
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "afmoe"])
@pytest.mark.parametrize("mode", ["hidden", "hidden_avg", "cheap_embed"])
def test_gates_are_those_of_the_whole_model(tmp_path: Path, kind: str, mode: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    shared = SHARED.format(tmp_path).replace("    positive_prompts: [chat]\n", "") if kind == "afmoe" else ""
    out = made(tmp_path, kind, CONFIG.format(tmp_path, mode) + shared)
    weights, tokenizer = read_weights(out), AutoTokenizer.from_pretrained(tmp_path / "a")
    whole: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "a", attn_implementation="eager")

    def states(prompt: str) -> torch.Tensor:
        ids = torch.tensor([tokenizer("<s>" + prompt, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            if mode == "cheap_embed":
                return whole.model.embed_tokens(ids)[0].sum(0).expand(3, -1)
            hidden = torch.stack(whole(ids, output_hidden_states=True).hidden_states[:-1])[:, 0]
        return hidden.mean(1) if mode == "hidden_avg" else hidden[:, -1]

    def mean(prompts: list[str]) -> torch.Tensor:
        found = torch.stack([states(one) for one in prompts])
        return torch.nn.functional.normalize(found.sum(0), dim=-1) if mode == "cheap_embed" else found.mean(0)

    rows = [mean(PROMPTS[0]) - mean(["hello friend"]), mean(PROMPTS[1])]
    expected = torch.stack([torch.nn.functional.normalize(one, dim=-1) for one in rows], dim=1).numpy()
    stem = {"llama": "block_sparse_moe.gate", "qwen3": "mlp.gate", "afmoe": "mlp.router.gate"}[kind]
    for layer in range(3):
        found = weights[f"model.layers.{layer}.{stem}.weight"]
        np.testing.assert_allclose(found, expected[layer], atol=2e-6)


def test_random_gates_follow_the_seed(tmp_path: Path) -> None:
    text = CONFIG.format(tmp_path, "uniform_random")
    name = "model.layers.1.block_sparse_moe.gate.weight"
    first = read_weights(made(tmp_path, "llama", text, 1))[name]
    assert np.abs(first).max() <= 32**-0.5
    assert not np.array_equal(first, read_weights(made(tmp_path, "llama", text, 2))[name])


def test_noise_is_normal_and_of_its_size(tmp_path: Path) -> None:
    text = CONFIG.format(tmp_path, "random").replace('friend"]\n', 'friend"]\n    noise_scale: 0.25\n')
    weights = read_weights(made(tmp_path, "llama", text))
    before = read_weights(tmp_path / "a")
    pairs = (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2"))
    noise = np.concatenate(
        [
            (
                weights[f"model.layers.{i}.block_sparse_moe.experts.0.{w}.weight"]
                - before[f"model.layers.{i}.mlp.{n}.weight"]
            )
            for i in range(3)
            for n, w in pairs
        ],
        axis=None,
    )
    assert abs(noise.std() - 0.25) < 0.01
    assert abs(noise.mean()) < 0.01
    assert abs(np.mean(np.abs(noise) < 0.25) - 0.6827) < 0.015


def test_donors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    dense(tmp_path / "a", "llama", 0)
    dense(tmp_path / "b", "llama", 1, intermediate_size=64)
    text = CONFIG.format(tmp_path, "random")
    for more, words in (
        ("", r"'.*/b': model.layers.0.mlp.\w+.weight is \[64, 32\], the base's \[48, 32\]"),
        (
            "architecture: afmoe\n",
            r"made from dense afmoe models, the base is llama; it lacks model\.layers\.\*\.self_attn\.q_norm",
        ),
        ("architecture: qwen\n", "qwen: needs one shared expert, got 0"),
        ("experts_per_token: 3\n", "3, with 2 experts"),
        ("architecture: gpt\n", "architecture"),
    ):
        (tmp_path / "moe.yaml").write_text(text + more)
        with pytest.raises(BadInput, match=words):
            plan_moe(tmp_path / "moe.yaml")
    (tmp_path / "moe.yaml").write_text(
        CONFIG.format(tmp_path, "hidden").split("    positive")[0] + "experts_per_token: 1\n"
    )
    with pytest.raises(BadInput, match="no positive_prompts"):
        plan_moe(tmp_path / "moe.yaml")
    tensors = read_weights(tmp_path / "b")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    write_weights(tmp_path / "b" / "model.safetensors", tensors)
    (tmp_path / "moe.yaml").write_text(text)
    with pytest.raises(BadInput, match=r"lacks model.layers.2.mlp.up_proj.weight"):
        plan_moe(tmp_path / "moe.yaml")


def test_a_killed_build_goes_on_with_the_same_gates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trine.merge.journal import Journal

    whole = made(tmp_path, "llama", CONFIG.format(tmp_path, "random"))
    found, written, plain = plan_moe(tmp_path / "moe.yaml"), [], Journal.tensor

    def tensor(self: Journal, name: str, crc32: int) -> None:
        plain(self, name, crc32)
        written.append(name)
        if len(written) == 9:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "tensor", tensor)
        with pytest.raises(KeyboardInterrupt):
            make_moe(found, tmp_path / "out", Options(threads=1))
    stamp = (made_folder(tmp_path / "out") / "model.safetensors").stat().st_mtime_ns
    assert stamp
    make_moe(found, tmp_path / "out", Options())
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("kind", "more"), [("llama", ""), ("qwen3", ""), ("llama", SHARED)])
def test_the_weights_are_mergekits(tmp_path: Path, kind: str, more: str) -> None:
    pytest.importorskip("mergekit")
    import yaml
    from mergekit.moe.config import MoEMergeConfig
    from mergekit.options import MergeOptions
    from mergekit.scripts.moe import build
    from transformers import AutoModelForCausalLM

    text = CONFIG.format(tmp_path, "cheap_embed") + more.format(tmp_path)
    out = made(tmp_path, kind, text)
    peer = MoEMergeConfig.model_validate(yaml.safe_load(text))
    build(peer, str(tmp_path / "peer"), MergeOptions(), device="cpu")
    ours, theirs = (AutoModelForCausalLM.from_pretrained(one).state_dict() for one in (out, tmp_path / "peer"))
    assert ours.keys() == theirs.keys()
    for name, one in ours.items():
        torch.testing.assert_close(one, theirs[name], atol=1e-6, rtol=1e-6, msg=name)


def test_deepseek_has_mergekits_tensors(tmp_path: Path) -> None:
    pytest.importorskip("mergekit")
    import json

    import yaml
    from mergekit.moe.config import MoEMergeConfig
    from mergekit.options import MergeOptions
    from mergekit.scripts.moe import build

    shared = SHARED.format(tmp_path).replace("    positive_prompts: [chat]\n", "")
    text = CONFIG.format(tmp_path, "cheap_embed") + shared + "architecture: deepseek\n"
    out = made(tmp_path, "llama", text)
    build(MoEMergeConfig.model_validate(yaml.safe_load(text)), str(tmp_path / "peer"), MergeOptions(), device="cpu")
    ours, theirs = read_weights(out), read_weights(tmp_path / "peer")
    assert ours.keys() == theirs.keys()
    for name, one in ours.items():
        np.testing.assert_allclose(one, theirs[name], atol=1e-6, err_msg=name)
    mine, peer = (json.loads((one / "config.json").read_text()) for one in (out, tmp_path / "peer"))
    assert {key: mine.get(key) for key in peer if "expert" in key or "moe" in key or key == "auto_map"} == {
        key: value for key, value in peer.items() if "expert" in key or "moe" in key or key == "auto_map"
    }
