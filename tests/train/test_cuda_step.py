"""What CUDA does differently in a step: it asks the device once.

The step runs on tensors that hold no numbers. Such a tensor raises where the host would need a value of it; operators
check types and shapes and compute nothing. The choices that follow from the device are made as on CUDA. Numbers of a
GPU are for bench/gpu.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.functional import cross_entropy, grouped_mm, scaled_dot_product_attention

from tests.model.shapes import small_config
from trine.data.loader import Batch
from trine.errors import Diverged
from trine.model.afmoe import Afmoe
from trine.moe.stacks import Stack
from trine.optim.config import OptimConfig
from trine.optim.groups import build_optimizers
from trine.optim.newton_schulz import coefficients
from trine.train import loss
from trine.train.config import TrainConfig
from trine.train.loss import chunked_cross_entropy
from trine.train.meters import StepMeter
from trine.train.step import train_step

ROWS, LENGTH = 2, 300
SIZES = {"hidden_size": 40, "sliding_window": 100}
"""No kernel of our own takes 40 columns."""


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def grouped(x: Tensor, stack: Stack, counts: Tensor) -> Tensor:
        return grouped_mm(x, stack.joined().transpose(1, 2), offs=counts.cumsum(0).to(torch.int32))

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor:
        """FlexAttention has a backward pass on CUDA only."""
        assert mask.shape[-2:] == (LENGTH, LENGTH)
        return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)

    monkeypatch.setattr("trine.model.attention.uses_flex", lambda device: True)
    monkeypatch.setattr("trine.model.attention.flex", attend)
    monkeypatch.setattr("trine.moe.experts.grouped_linear", grouped)
    monkeypatch.setattr("trine.train.loss._queued", lambda device: True)
    coefficients(OptimConfig().muon.ns_steps)  # made by the host, once in a process
    with FakeTensorMode():
        yield


def batch() -> Batch:
    tokens = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    return Batch(tokens, tokens.clone(), tokens.int())


def a_step(monkeypatch: pytest.MonkeyPatch, loss_sum: float) -> int:
    """One step of two micro-batches, in which the device reports that loss; how often it was asked."""
    asked: list[Any] = []

    def on_host(*tables: Any) -> Any:
        asked.append(tables)
        ones = [[[1.0 for _ in row] for row in table] for table in tables]
        ones[0][0][1] = loss_sum
        return ones

    monkeypatch.setattr("trine.train.step._on_host", on_host)
    model = Afmoe(small_config(**SIZES)).train()
    model.compute_dtype = torch.bfloat16
    model.recompute = True
    optimizers = build_optimizers(model, OptimConfig())
    config = TrainConfig(sequence_length=LENGTH, batch_sequences=2 * ROWS, micro_batch_sequences=ROWS)
    train_step(model, optimizers, [batch(), batch()], config, 1.0, 1.0)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    assert optimizers.state_tensors()
    return len(asked)


@pytest.mark.usefixtures("as_on_cuda")
def test_a_whole_step_asks_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert a_step(monkeypatch, 1.0) == 1
    with pytest.raises(DataDependentOutputException):
        float(torch.zeros(()))


@pytest.mark.usefixtures("as_on_cuda")
def test_nothing_is_updated_when_the_answer_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trine.optim.groups.Optimizers.step", lambda *_: pytest.fail("updated"))
    with pytest.raises(Diverged, match="not finite"):
        a_step(monkeypatch, float("nan"))


@pytest.mark.parametrize("compiled", [False, True])
def test_the_loss_over_all_rows_is_that_over_the_predicted_ones(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "_rows", lambda targets, multiple: (None, targets >= 0))
    monkeypatch.setattr(loss, "_compiled_softmax", lambda: loss._softmax)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(60, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(33, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(-1, 33, (60,), generator=generator)
    targets[20:40] = -1
    used = targets >= 0
    given = {"chunk": 16, "z_loss": 0.1, "compiled": compiled}
    ours, _, _ = chunked_cross_entropy(hidden, weight, targets, normalizer=used.sum(), **given)
    logits = (hidden @ weight.mT)[used]
    plain = cross_entropy(logits, targets[used]) + 0.1 * logits.logsumexp(-1).square().mean()
    assert ours.item() == pytest.approx(plain.item(), rel=1e-12)
    for one, other in zip(
        torch.autograd.grad(ours, (hidden, weight)), torch.autograd.grad(plain, (hidden, weight)), strict=True
    ):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


def test_a_meter_of_a_device_waits_only_when_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, waited = iter(range(100)), list[int]()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = next(clock)

        def synchronize(self) -> None:
            waited.append(self.at)

        def elapsed_time(self, end: Event) -> float:
            return 1000.0 * (end.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5)
    meter = StepMeter(torch.device("cuda"))
    for name in ("data", "forward", "backward", "forward", "backward", "optimizer"):
        meter.lap(name)
    assert not waited
    assert meter.seconds == {"data": 1.0, "forward": 2.0, "backward": 2.0, "optimizer": 1.0}
    assert waited == [6]
    assert meter.memory_bytes == 5
