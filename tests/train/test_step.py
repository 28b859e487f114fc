"""One optimizer step: any split into micro-batches, with or without recomputation, is the same step."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from tests.model.shapes import random_tokens, small_config, small_model
from trine.data.loader import Batch
from trine.errors import TrineError
from trine.moe.config import BalanceConfig
from trine.optim.config import OptimConfig
from trine.optim.groups import build_optimizers
from trine.train.config import TrainConfig
from trine.train.loss import chunked_cross_entropy
from trine.train.step import StepResult, train_step

ROWS, LENGTH = 8, 16


def batch(rows: slice = slice(None)) -> Batch:
    """Rows of unequal numbers of targets, so that a wrong normaliser shows."""
    tokens = random_tokens(ROWS, LENGTH, seed=1)
    targets = random_tokens(ROWS, LENGTH, seed=2)
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.int32)
    for row in range(ROWS):
        targets[row, : row * 2] = -1
        ids[row, : row * 2] = 5
    return Batch(tokens[rows], targets[rows], ids[rows])


def step(splits: int, recompute: bool = False, double: bool = True, **train: object):
    model = small_model(small_config(), bias=0.1).train()
    if double:
        model.double()
    model.recompute = recompute
    optimizers = build_optimizers(model, OptimConfig(matrices="adamw"))
    size = ROWS // splits
    parts = [batch(slice(i * size, (i + 1) * size)) for i in range(splits)]
    config = TrainConfig.model_validate({"batch_sequences": ROWS, "micro_batch_sequences": size, **train})
    result = train_step(model, optimizers, parts, config, 1.0, 1.0)
    return model, result


BALANCED = {"balance": BalanceConfig(sequence_loss=0.5, rate=0.1), "z_loss": 0.01}


@pytest.mark.parametrize("splits", [2, 4, 8])
@pytest.mark.parametrize("recompute", [False, True])
def test_accumulation_and_recomputation_change_nothing(splits: int, recompute: bool) -> None:
    whole, expected = step(1, **BALANCED)
    model, result = step(splits, recompute, **BALANCED)
    assert result.loss == pytest.approx(expected.loss, rel=1e-12)
    assert result.grad_norm == pytest.approx(expected.grad_norm, rel=1e-9)
    assert result.balance_loss == pytest.approx(expected.balance_loss, rel=1e-9)
    assert [one.max_vio for one in result.router] == [one.max_vio for one in expected.router]
    assert [one.entropy for one in result.router] == pytest.approx([one.entropy for one in expected.router])
    for (name, ours), theirs in zip(model.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-7, atol=1e-10), name


def test_recomputation_gives_the_same_bits() -> None:
    (one, first), (other, second) = step(2, False, double=False), step(2, True, double=False)
    assert first == second
    for (name, ours), theirs in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_bias_moves_once_by_the_counts_of_the_whole_batch() -> None:
    model, result = step(4, **BALANCED)
    before = small_model(small_config(), bias=0.1)
    for (layer, moe), health in zip(model.moe_layers().items(), result.router, strict=True):
        delta = moe.expert_bias - before.moe_layers()[layer].expert_bias
        assert 0 < delta.abs().max() <= 0.1
        assert abs(float(delta.sum())) < 1e-6
        assert health.layer == layer
        assert torch.equal(moe.bias_momentum != 0, torch.ones_like(moe.bias_momentum, dtype=torch.bool))


@pytest.mark.parametrize("update", ["sign", "smebu", "none"])
def test_the_bias_change_is_the_root_mean_square_of_the_move(update: str) -> None:
    before = [mlp.expert_bias.clone() for mlp in small_model(small_config(), bias=0.1).moe_layers().values()]
    model, result = step(2, double=False, balance={"update": update, "rate": 0.1})
    moved = [mlp.expert_bias - old for mlp, old in zip(model.moe_layers().values(), before, strict=True)]
    assert result.bias_change == pytest.approx([math.sqrt(float((one**2).mean())) for one in moved])
    assert (max(result.bias_change) > 0) is (update != "none")


def test_loss_is_the_mean_over_all_targets_of_the_batch() -> None:
    model = small_model(small_config(), bias=0.1).train()
    data = batch()
    logits = model(data.tokens, data.document_ids)
    expected = F.cross_entropy(logits.flatten(0, 1), data.targets.flatten(), ignore_index=-1)
    _, result = step(4, double=False)
    assert result.loss == pytest.approx(float(expected.detach()), rel=1e-5)


def test_a_loss_that_is_not_finite_updates_nothing() -> None:
    model = small_model().train()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizers = build_optimizers(model, OptimConfig())
    with pytest.raises(TrineError, match="not finite"):
        train_step(model, optimizers, [batch()], TrainConfig(batch_sequences=8), 1.0, 1.0)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) or name == "model.norm.weight"
    assert not optimizers.state_tensors()


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_chunked_cross_entropy_equals_the_plain_one(chunk: int, z_loss: float) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(60, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(33, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(-1, 33, (60,), generator=generator)
    loss, ce, z = chunked_cross_entropy(hidden, weight, targets, chunk=chunk, z_loss=z_loss, normalizer=50.0)
    logits = hidden @ weight.mT
    used = targets >= 0
    plain = F.cross_entropy(logits[used], targets[used], reduction="sum")
    square = logits[used].logsumexp(-1).square().sum()
    expected = (plain + z_loss * square) / 50
    assert float(ce) == pytest.approx(plain.item(), rel=1e-12)
    assert float(z) == pytest.approx(square.item(), rel=1e-12)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    ours = torch.autograd.grad(loss * 3, (hidden, weight))
    theirs = torch.autograd.grad(expected * 3, (hidden, weight))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


def test_no_targets_at_all_is_a_loss_of_zero() -> None:
    hidden = torch.randn(4, 8, requires_grad=True)
    weight = torch.randn(9, 8, requires_grad=True)
    loss, *_ = chunked_cross_entropy(hidden, weight, torch.full((4,), -1), chunk=2, z_loss=0.1, normalizer=1.0)
    loss.backward()
    assert loss.item() == 0.0
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_bf16_step_stays_near_fp32() -> None:
    losses = []
    for dtype in (None, torch.bfloat16):
        model = small_model().train()
        model.compute_dtype = dtype
        result: StepResult = train_step(
            model, build_optimizers(model, OptimConfig()), [batch()], TrainConfig(batch_sequences=8), 1.0, 1.0
        )
        losses.append(result.loss)
        assert all(p.dtype == torch.float32 for p in model.parameters())
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in model.parameters())
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)
    assert losses[0] != losses[1]
    assert math.isfinite(losses[1])
