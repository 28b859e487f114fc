"""Training a selection: gradients, state and updates for it alone, equal to full training's; resume and export."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.shapes import random_tokens, small_config
from tests.model.test_causal import write_peer
from tests.tokens import write_tokens
from tests.train.test_loop import Stop, config, trace, weights
from trine import load_model
from trine.data.loader import Batch
from trine.errors import BadInput
from trine.model.config import ModelConfig
from trine.model.hf import LanguageModel, check_parity, export_folder, init_folder
from trine.optim.config import AdamWConfig, MuonConfig, OptimConfig
from trine.optim.groups import build_optimizers
from trine.train.checkpoint import list_checkpoints
from trine.train.config import TrainConfig
from trine.train.freeze import freeze, held_dtype, resolve
from trine.train.loop import fit
from trine.train.step import train_step
from trine.weights.index import read_index
from trine.weights.names import hub_parts
from trine.weights.reader import TensorReader
from trine.weights.selected import read_selection

OPTIM = OptimConfig(muon=MuonConfig(lr=0.02), adamw=AdamWConfig(lr=0.01))
SHAPE: dict[str, Any] = {"moe_intermediate_size": 32, "head_dim": 32, "intermediate_size": 64, "vocab_size": 128}
"""What the native kernels take."""
TOGETHER = [
    "model.layers.2.self_attn.v_proj.weight",
    *(f"model.layers.2.mlp.experts.{e}.up_proj.weight" for e in range(8)),
    *(f"model.layers.3.mlp.experts.{e}.down_proj.weight" for e in range(8)),
    "model.layers.3.mlp.shared_experts.gate_proj.weight",
]
SEPARATE = [
    "model.layers.1.mlp.experts.3.gate_proj.weight",
    "model.layers.1.mlp.experts.0.up_proj.weight",
    "model.layers.1.mlp.experts.7.down_proj.weight",
    "model.layers.1.mlp.router.gate.weight",
    "model.layers.3.self_attn.o_proj.weight",
]
OUTER = ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight", "model.layers.0.mlp.up_proj.weight"]
DENSE = ["model.layers.1.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"]
CASES = {"together": ("afmoe", TOGETHER), "separate": ("afmoe", SEPARATE), "outer": ("afmoe", OUTER)}
CASES |= {"llama": ("llama", DENSE), "qwen3": ("qwen3", DENSE), "tied head": ("qwen3", ["lm_head.weight"])}


def write_model(folder: Path, kind: str, dtype: str) -> Path:
    if kind == "afmoe":
        init_folder(small_config(**SHAPE), folder, 0, dtype)
        return folder
    write_peer(folder / "float32", kind)
    if dtype == "float32":
        return folder / "float32"
    export_folder(folder / "float32", folder / dtype, dtype)
    return folder / dtype


def select(path: Path, names: list[str]) -> Path:
    path.write_text("format: trine-selection-1\nmodel: somewhere\ntrain:\n" + "".join(f"- {one}\n" for one in names))
    return path


def stepped(model: LanguageModel, dtype: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Gradients, state of the optimizers, and parameters after one step of `model`."""
    model.train()
    model.compute_dtype = getattr(torch, dtype)
    ids = torch.arange(12).div(5, rounding_mode="floor").int().expand(4, 12)
    tokens = random_tokens(4, 12, 97)
    batch = Batch(tokens, tokens.roll(-1, 1), ids)
    settings = TrainConfig.model_validate({"batch_sequences": 4, "micro_batch_sequences": 4, "z_loss": 1e-3})
    optimizers = build_optimizers(model, OPTIM)
    train_step(model, optimizers, [batch], settings, None, 1.0)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return gradients, optimizers.state_tensors(), {name: p.detach() for name, p in model.named_parameters()}


def by_hub_name(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {part.name: one[part.place] for name, one in tensors.items() for part in hub_parts(name, tuple(one.shape))}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_gradients_state_and_updates_are_full_trainings_for_what_is_selected(
    case: str, dtype: str, tmp_path: Path
) -> None:
    kind, names = CASES[case]
    folder = write_model(tmp_path / "model", kind, dtype)
    selection = select(tmp_path / "selection.yaml", names)
    full_gradients, _, _ = stepped(load_model(folder), dtype)
    model = load_model(folder, held_dtype(folder, dtype))
    before = by_hub_name({name: one.clone() for name, one in model.state_dict().items()})
    trained = resolve(selection, model)
    freeze(model, trained)
    gradients, state, _ = stepped(model, dtype)

    for name, gradient in gradients.items():
        stack = name.removesuffix("_split.trained")
        whole = full_gradients[stack]
        if stack != name:
            whole = whole.view(len(trained.parts[stack]), -1, whole.shape[-1])[torch.tensor(trained.parts[stack])]
        close = 1e-5 if dtype == "float32" else 2e-2
        assert (gradient - whole).norm() <= close * whole.norm(), name
        assert gradient.dtype == torch.float32
    expected = trained.whole | {f"{stack}_split.trained" for stack in trained.parts}
    assert set(gradients) == {name for name, p in model.named_parameters() if p.requires_grad} == expected
    assert {name.rpartition(".")[0] for name in state} == expected
    tied = {"lm_head.weight": "model.embed_tokens.weight"} if case == "tied head" else {}
    chosen = {tied.get(name, name) for name in names}
    after = by_hub_name(model.state_dict())
    for name, one in after.items():
        if not name.endswith(("expert_bias", "bias_momentum")):
            assert torch.equal(one, before[name]) is (name not in chosen), name
            matrix = one.dim() > 1 and not name.endswith("router.gate.weight")
            assert one.dtype == (getattr(torch, dtype) if matrix and name not in chosen else torch.float32), name


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("case", "kept"), [("together", {2, 3}), ("outer", {0, 1, 2, 3})])
def test_blocks_below_the_lowest_trained_one_keep_no_activations(
    case: str, kept: set[int], recompute: bool, tmp_path: Path
) -> None:
    model = load_model(write_model(tmp_path / "model", "afmoe", "float32"))
    said = freeze(model, resolve(select(tmp_path / "s.yaml", CASES[case][1]), model))
    model.train()
    model.recompute = recompute
    saved, inside = set[int](), [-1]
    for i, block in enumerate(model.get_submodule("model.layers").children()):
        block.register_forward_pre_hook(lambda *_, i=i: inside.append(i))
        block.register_forward_hook(lambda *_: inside.append(-1))

    def pack(tensor: Tensor) -> Tensor:
        saved.add(inside[-1])
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.hidden(random_tokens(2, 12))
    assert saved - {-1} == (set() if recompute else kept)
    assert ("the first 2 blocks keep no activations" in said) is (case == "together")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("tokens") / "tokens")


@pytest.mark.parametrize("case", ["together", "separate", "llama"])
def test_a_resumed_run_has_the_same_bits_and_exports(case: str, tokens: Path, tmp_path: Path) -> None:
    kind, names = CASES[case]
    start = write_model(tmp_path / "start", kind, "bfloat16")
    only = str(select(tmp_path / "selection.yaml", names))
    train = config(init_from=str(start), only=only, recompute=True)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    fit(ModelConfig(), OPTIM, train, tokens, whole)
    with pytest.raises(KeyboardInterrupt):
        fit(ModelConfig(), OPTIM, train, tokens, stopped, Stop(8))
    moved = Path(only).rename(tmp_path / "moved.yaml")
    fit(ModelConfig(), OPTIM, train.model_copy(update={"only": str(moved)}), tokens, stopped)
    assert trace(stopped) == trace(whole)
    assert weights(stopped) == weights(whole)
    export_folder(list_checkpoints(whole)[0], tmp_path / "model")
    assert check_parity(tmp_path / "model")["passed"]
    before, after = TensorReader(start), TensorReader(tmp_path / "model")
    for name in after.tensors:
        if not name.endswith("expert_bias"):
            same = torch.equal(before.read(name).float(), after.read(name))
            assert same is (name not in names), name
    stored = {one.dtype for one in read_index(list_checkpoints(whole)[0]).values()}
    assert stored == {"BF16", "F32"}
    other = train.model_copy(update={"only": str(select(tmp_path / "other.yaml", names[:1]))})
    with pytest.raises(BadInput, match="another config"):
        fit(ModelConfig(), OPTIM, other, tokens, whole)


def test_a_fresh_model_is_trained_in_part(tokens: Path, tmp_path: Path) -> None:
    model = small_config(**SHAPE).model_copy(update={"vocab_size": None})
    only = str(select(tmp_path / "selection.yaml", SEPARATE))
    for run in ("one", "two"):
        fit(model, OPTIM, config(only=only, steps=3, dtype="float32"), tokens, tmp_path / run)
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
    fit(model, OPTIM, config(steps=3, dtype="float32"), tokens, tmp_path / "full")
    assert trace(tmp_path / "one")[0]["loss"] == trace(tmp_path / "full")[0]["loss"]
    assert trace(tmp_path / "one")[-1]["loss"] != trace(tmp_path / "full")[-1]["loss"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n- model.layers.1.mlp.experts.3.gat_proj.weight\n", r":2: .*did you mean 'model.*gate_proj"),
        ("model.layers.9.self_attn.q_proj.weight\n", r":1: the model has no parameter"),
        ("a: 1\ntrain:\n", r"names nothing to train"),
        ("unfrozen_parameters:\n- ^lm_head.weight$\n", r"axolotl's format"),
        ("model: x\nmeasure: y\n", r":1: 'model: x' is no parameter's name"),
    ],
)
def test_a_selection_that_does_not_fit_is_refused_before_anything_is_allocated(
    text: str, message: str, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = write_model(tmp_path / "start", "afmoe", "float32")
    (tmp_path / "s.yaml").write_text(text)
    monkeypatch.setattr("trine.train.loop.load_model", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(BadInput, match=re.escape(str(tmp_path / "s.yaml")) + ".*" + message):
        fit(
            ModelConfig(),
            OPTIM,
            config(init_from=str(start), only=str(tmp_path / "s.yaml")),
            tokens,
            tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


def test_every_form_of_a_selection_is_read(tmp_path: Path) -> None:
    path = tmp_path / "s"
    for first, text in (
        (1, "a.weight\nb.c.weight\n"),
        (3, "top: 25\ntrain:\n- a.weight\n- 'b.c.weight'\n"),
        (2, "# x\n- a.weight\n- b.c.weight"),
    ):
        path.write_text(text)
        assert read_selection(path) == {"a.weight": first, "b.c.weight": first + 1}
    with pytest.raises(BadInput, match="cannot be read"):
        read_selection(tmp_path / "absent")
