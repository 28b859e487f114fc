"""The experts' kernels against the same sums in float64."""

from __future__ import annotations

import pytest
import torch

from trine.moe.experts import Experts
from trine.moe.native import native_available, native_experts
from trine.moe.stacks import Stack

pytestmark = pytest.mark.skipif(not native_available(), reason="no bf16 products, or no C compiler")


def case(width: int, inner: int, experts: int, k: int, tokens: int) -> tuple[Experts, list[torch.Tensor], torch.Tensor]:
    """Experts, [x, selected, weights] and a gradient; the last expert is never selected where there is a choice."""
    torch.manual_seed(0)
    module = Experts(experts, width, inner)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    skew = torch.linspace(2, 0, experts)
    if experts > k:
        skew[-1] = -1e9
    selected = (torch.randn(tokens, experts) + skew).topk(k, -1).indices
    x = torch.randn(tokens, width).bfloat16().requires_grad_()
    return module, [x, selected, torch.rand(tokens, k).requires_grad_()], torch.randn(tokens, width).bfloat16()


def reference(module: Experts, inputs: list[torch.Tensor], grad: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradients in float64, of weights rounded to bf16."""
    x, selected, weights = inputs
    x, weights = x.detach().double().requires_grad_(), weights.detach().double().requires_grad_()
    gate_up, down = (p.detach().bfloat16().double().requires_grad_() for p in module.parameters())
    out = torch.zeros_like(x)
    for token in range(x.shape[0]):
        for place, expert in enumerate(selected[token].tolist()):
            gate, up = (gate_up[expert] @ x[token]).chunk(2)
            hidden = torch.nn.functional.silu(gate) * up * weights[token, place]
            out = out.index_add(0, torch.tensor([token]), (down[expert] @ hidden)[None])
    out.backward(grad.double())
    grads = [x.grad, weights.grad, gate_up.grad, down.grad]
    return [out.detach(), *(one for one in grads if one is not None)]


def stacks(module: Experts) -> tuple[Stack, Stack]:
    return module.stack("gate_up_proj"), module.stack("down_proj")


def results(module: Experts, inputs: list[torch.Tensor], grad: torch.Tensor) -> list[torch.Tensor]:
    module.zero_grad()
    x, selected, weights = (one.detach().requires_grad_(one.is_floating_point()) for one in inputs)
    out = native_experts(x, *stacks(module), selected, weights)
    assert out is not None
    out.backward(grad)
    found = [out.detach(), x.grad, weights.grad, *(p.grad for p in module.parameters())]
    return [one for one in found if one is not None]


SHAPES = [(32, 32, 1, 1, 1), (64, 32, 4, 2, 37), (96, 64, 5, 1, 300), (32, 96, 8, 8, 33), (64, 32, 3, 2, 700)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients_equal_the_float64_sums(shape: tuple[int, int, int, int, int]) -> None:
    module, inputs, grad = case(*shape)
    for found, expected in zip(results(module, inputs, grad), reference(module, inputs, grad), strict=True):
        assert (found.double() - expected).norm() <= 0.006 * expected.norm()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bf16_weights_give_the_bits_of_the_fp32_weights_they_equal(shape: tuple[int, int, int, int, int]) -> None:
    module, (x, selected, weights), _ = case(*shape)
    module.bfloat16()
    assert native_experts(x, *stacks(module), selected, weights) is None
    with torch.no_grad():
        found = native_experts(x, *stacks(module), selected, weights)
        expected = native_experts(x, *stacks(module.float()), selected, weights)
    assert found is not None
    assert expected is not None
    assert torch.equal(found, expected)


def test_an_expert_without_tokens_has_zero_gradients() -> None:
    module, inputs, grad = case(64, 32, 4, 2, 37)
    *_, gate_up, down = results(module, inputs, grad)
    assert not gate_up[-1].any()
    assert not down[-1].any()
    assert gate_up[:-1].flatten(1).any(1).all()


def test_threads_move_no_bit() -> None:
    module, inputs, grad = case(64, 32, 4, 2, 700)
    threads = torch.get_num_threads()
    found = []
    for count in (1, 3):
        torch.set_num_threads(count)
        found.append(results(module, inputs, grad))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_products_of_torch_on_the_same_thread_stay_right() -> None:
    """The kernels give back the tile shapes that another library had set up."""
    module, inputs, grad = case(64, 32, 4, 2, 37)
    left, right = torch.randn(192, 256).bfloat16(), torch.randn(256, 160).bfloat16()
    before = left @ right
    results(module, inputs, grad)
    assert torch.equal(left @ right, before)


def test_the_operator_is_registered_rightly() -> None:
    module, (x, selected, weights), _ = case(64, 32, 4, 2, 37)
    module.split("gate_up_proj", torch.arange(8) % 3 == 0)
    gate_up, down = stacks(module)
    torch.library.opcheck(torch.ops.trine.experts, (x, *gate_up, *down, selected, weights))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_frozen_matrices_get_no_gradient_and_the_others_the_same(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    (module, inputs, grad), (other, *_) = case(*shape), case(*shape)
    out, x, weights, gate_up, _ = results(module, inputs, grad)
    other.gate_up_proj.data, other.down_proj.data = (p.data.to(dtype) for p in (other.gate_up_proj, other.down_proj))
    chosen, experts = torch.arange(2 * shape[2]) % 3 == 0, shape[2]
    other.split("gate_up_proj", chosen)
    other.down_proj.requires_grad_(False)
    found = results(other, inputs, grad)
    expected = out, x, weights, gate_up.view(2 * experts, shape[1], -1)[chosen]
    for one, like in zip(found, expected, strict=True):
        assert torch.equal(one, like)
    assert other.down_proj.grad is None


def test_where_it_does_not_apply() -> None:
    module, (x, selected, weights), _ = case(64, 32, 4, 2, 37)
    assert native_experts(x.float(), *stacks(module), selected, weights) is None
    odd, half = Experts(4, 64, 48), Experts(4, 64, 32).bfloat16()
    assert native_experts(x, *stacks(odd), selected, weights) is None
    assert native_experts(x, *stacks(half), selected, weights) is None
