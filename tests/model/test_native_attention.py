"""The attention kernels against masked softmax attention in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trine.model.afmoe import Afmoe
from trine.model.config import ModelConfig
from trine.model.init import init_model
from trine.model.native import native_attention, native_attention_applies

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(
    not native_attention_applies(64, CPU, torch.bfloat16), reason="no bf16 products, or no C compiler"
)

Shape = tuple[int, int, int, int, int]
"""Rows, length, heads, key heads, dim."""
CASES = [
    ((2, 160, 4, 2, 32), 0, 0),
    ((2, 160, 4, 4, 64), 40, 0),
    ((2, 300, 2, 1, 96), 0, 70),
    ((3, 257, 4, 2, 32), 50, 33),
    ((1, 37, 2, 1, 32), 256, 5),
    ((2, 1, 2, 2, 32), 1, 0),
]


def tensors(shape: Shape) -> list[Tensor]:
    """Query, key, value and a gradient, [rows, length, heads, dim] bf16."""
    rows, length, heads, groups, dim = shape
    torch.manual_seed(0)
    return [torch.randn(rows, length, n, dim).bfloat16() for n in (heads, groups, groups, heads)]


def documents(shape: Shape, size: int) -> Tensor | None:
    """Ids of documents of `size` tokens, other ones in each row, and padding at the end; None for size 0."""
    if not size:
        return None
    ids = (torch.arange(shape[1]) + torch.arange(shape[0]).unsqueeze(1) * 7) // size
    ids[:, -3:] = -1
    return ids.to(torch.int32)


def reference(given: list[Tensor], ids: Tensor | None, window: int) -> list[Tensor]:
    """Output and the gradients of query, key and value in float64."""
    *inputs, grad = (one.double() for one in given)
    query, key, value = (one.requires_grad_() for one in inputs)
    position = torch.arange(query.shape[1])
    distance = position.unsqueeze(1) - position
    seen = (distance >= 0)[None, None]
    if window:
        seen = seen & (distance < window)
    if ids is not None:
        seen = seen & (ids[:, None, :, None] == ids[:, None, None, :])
    by_head = (one.transpose(1, 2) for one in (query, key, value))
    out = F.scaled_dot_product_attention(*by_head, attn_mask=seen, enable_gqa=True).transpose(1, 2)
    out.backward(grad)
    return [out.detach(), *(one.grad for one in (query, key, value) if one.grad is not None)]


def results(given: list[Tensor], ids: Tensor | None, window: int) -> list[Tensor]:
    query, key, value = (one.clone().requires_grad_() for one in given[:3])
    out = native_attention(query, key, value, ids, window)
    out.backward(given[3])
    return [out.detach(), *(one.grad for one in (query, key, value) if one.grad is not None)]


@pytest.mark.parametrize(("shape", "window", "size"), CASES, ids=str)
def test_output_and_gradients_equal_float64(shape: Shape, window: int, size: int) -> None:
    given, ids = tensors(shape), documents(shape, size)
    for found, expected in zip(results(given, ids, window), reference(given, ids, window), strict=True):
        assert (found.double() - expected).norm() <= 0.005 * expected.norm() + 0.005


def test_layout_and_threads_move_no_bit() -> None:
    shape = (3, 257, 4, 2, 32)
    given, ids, threads = tensors(shape), documents(shape, 33), torch.get_num_threads()
    expected = results(given, ids, 50)
    strided = [one.transpose(1, 2).contiguous().transpose(1, 2) for one in given]
    torch.set_num_threads(3)
    found = results(strided, ids, 50)
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_operator_is_registered_rightly() -> None:
    query, key, value, _ = (one.requires_grad_() for one in tensors((2, 40, 4, 2, 32)))
    torch.library.opcheck(torch.ops.trine.attention, (query, key, value, documents((2, 40, 4, 2, 32), 9), 16))


@pytest.mark.parametrize("size", [0, 21])
def test_the_model_equals_its_masked_form(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(
        vocab_size=64,
        hidden_size=64,
        head_dim=32,
        num_hidden_layers=4,
        num_dense_layers=4,  # no router, in which a rounding can select another expert
        intermediate_size=64,
        sliding_window=16,
    )
    model = Afmoe(config)
    init_model(model, seed=0)
    model.compute_dtype = torch.bfloat16
    tokens, ids = torch.randint(0, 64, (2, 100)), documents((2, 100, 1, 1, 1), size)
    with torch.no_grad():
        native, _ = model.hidden(tokens, ids)
        monkeypatch.setattr("trine.model.attention.native_attention_applies", lambda *_: False)
        masked, _ = model.hidden(tokens, ids)
    assert not torch.equal(native, masked)
    assert (native.float() - masked.float()).norm() <= 0.02 * masked.float().norm()
