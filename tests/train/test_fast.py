"""The compiled step against the plain one; memory that is kept and given back."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from tests.model.shapes import random_tokens, small_config, small_model
from trine.data.loader import Batch
from trine.errors import BadInput
from trine.model.afmoe import Afmoe
from trine.native.memory import kept_memory
from trine.optim.config import OptimConfig
from trine.optim.groups import build_optimizers
from trine.train.config import TrainConfig
from trine.train.fast import compile_blocks, cpp_compiler, uncompiled, wants_compile
from trine.train.meters import used_bytes
from trine.train.step import train_step

TWO_BLOCKS = small_config(num_hidden_layers=2, num_dense_layers=1, layer_types=("sliding_attention", "full_attention"))
CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler")


def batch(length: int, masks: str) -> Batch:
    tokens = random_tokens(2, length)
    targets = torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], -1)], 1)
    ids = torch.zeros(2, length, dtype=torch.int32)
    if masks in ("documents", "padding"):
        ids = (torch.arange(length, dtype=torch.int32) // 5).repeat(2, 1)
    if masks == "padding":
        ids[1, length // 2 :] = -1
        targets[1, length // 2 :] = -1
    return Batch(tokens, targets, ids)


def gradients(model: Afmoe, one: Batch, config: TrainConfig) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of a step that updates nothing."""
    optimizers = build_optimizers(model, OptimConfig())
    loss = train_step(model, optimizers, [one], config, None, 0.0).loss
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@needs_compiler
@pytest.mark.parametrize("masks", ["one document", "documents", "padding"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_compiled_loss_and_gradients_are_as_exact_as_the_plain_ones(dtype: torch.dtype, masks: str) -> None:
    """Every expert is selected, so that rounding cannot send a token to another one."""
    model = small_model(TWO_BLOCKS.model_copy(update={"num_experts_per_tok": TWO_BLOCKS.num_experts})).train()
    model.compute_dtype = dtype
    config = TrainConfig(sequence_length=20, loss_chunk_tokens=16, z_loss=1e-4)
    one, fast, exact = batch(20, masks), copy.deepcopy(model), copy.deepcopy(model)
    exact.compute_dtype = torch.float32
    compile_blocks(fast)
    true_loss, true = gradients(exact, one, config)
    loss, plain = gradients(model, one, config)
    fast_loss, compiled = gradients(fast, one, config)
    assert fast.compiled
    assert compiled.keys() == plain.keys()
    assert abs(fast_loss - true_loss) <= 2 * abs(loss - true_loss) + 1e-5 * true_loss + (dtype == torch.bfloat16) * 1e-2
    close = 1e-4 if dtype == torch.float32 else 2e-2
    for name, gradient in true.items():
        rounding = (plain[name] - gradient).norm()
        assert (compiled[name] - gradient).norm() <= 2 * rounding + close * gradient.norm() + 1e-7, name


@needs_compiler
def test_compiled_blocks_recompute_to_the_same_bits() -> None:
    model = small_model(TWO_BLOCKS).train()
    compile_blocks(model)
    config = TrainConfig(sequence_length=20, loss_chunk_tokens=16)
    kept = gradients(model, batch(20, "documents"), config)
    model.recompute = True
    again = gradients(model, batch(20, "documents"), config)
    assert kept[0] == again[0]
    assert all(torch.equal(one, again[1][name]) for name, one in kept[1].items())


@needs_compiler
def test_uncompiled_runs_what_is_written() -> None:
    plain = small_model().eval()
    fast = copy.deepcopy(plain)
    compile_blocks(fast)
    with torch.no_grad(), uncompiled():
        assert torch.equal(fast(random_tokens(2, 9)), plain(random_tokens(2, 9)))


def test_compiling_is_for_long_runs_with_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = small_model()
    monkeypatch.setattr("trine.train.fast.cpp_compiler", lambda: "/usr/bin/c++")
    assert not wants_compile(TrainConfig(), model, 9e13)
    assert wants_compile(TrainConfig(), model, 1e14)
    assert wants_compile(TrainConfig(compile="always"), model, 1.0)
    assert not wants_compile(TrainConfig(compile="never"), model, 1e20)
    monkeypatch.undo()
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    assert not wants_compile(TrainConfig(), model, 1e20)
    with pytest.raises(BadInput, match=r"train\.compile is always"):
        wants_compile(TrainConfig(compile="always"), model, 1.0)


def test_freed_memory_is_kept_and_given_back_at_the_end() -> None:
    size = 256 * 2**20
    before = used_bytes(CPU)
    if not before:
        pytest.skip("this system does not tell a process its memory")
    with kept_memory(CPU):
        held = torch.ones(size, dtype=torch.uint8)
        del held
        assert used_bytes(CPU) - before > 0.9 * size
    assert used_bytes(CPU) - before < 0.1 * size
