"""The attention of compiled blocks against torch's plain form in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from trine.model.flash import flash_attention


def mask_of(length: int, keys: int, window: int | None, documents: int) -> torch.Tensor:
    query, key = torch.arange(length)[:, None] + keys - length, torch.arange(keys)[None]
    seen = (query >= key) & (query - key < (window or keys))
    ids = torch.arange(keys) * documents // keys
    seen &= (ids[None] == ids[keys - length :, None]) | (query == key)
    return torch.zeros(1, 1, length, keys, dtype=torch.float64).masked_fill(~seen, float("-inf"))


@pytest.mark.parametrize(
    ("length", "keys", "window", "documents"),
    [
        (7, 7, None, 0),
        (300, 300, None, 0),
        (300, 300, None, 5),
        (300, 300, 90, 1),
        (300, 300, 200, 3),
        (256, 256, 128, 2),
        (200, 400, 200, 1),
        (96, 192, 96, 3),
        (2500, 2500, 700, 4),
    ],
)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_output_and_gradients_equal_the_plain_form(
    length: int, keys: int, window: int | None, documents: int, groups: int
) -> None:
    generator = torch.Generator().manual_seed(length + groups)
    sizes = [(2, 4, length, 8), (2, groups, keys, 8), (2, groups, keys, 8), (2, 4, length, 8)]
    query, key, value, upstream = (torch.randn(*one, generator=generator, dtype=torch.float64) for one in sizes)
    inputs = [one.requires_grad_() for one in (query, key, value)]
    mask = mask_of(length, keys, window, documents) if documents else None
    ours = flash_attention(query, key, value, mask, window)
    with sdpa_kernel(SDPBackend.MATH):
        plain = scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
    assert torch.allclose(ours, plain, rtol=1e-10, atol=1e-12)
    for mine, theirs in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(plain, inputs, upstream), strict=True
    ):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-11)


def torch_attention(inputs: list[torch.Tensor]) -> torch.Tensor:
    query, key, value = inputs
    return scaled_dot_product_attention(query, key, value, is_causal=True)


def test_bf16_gradients_are_as_close_to_float64_as_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(1, 4, 400, 16, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]
    rounded = [one.detach().bfloat16().requires_grad_() for one in exact]
    reference = torch.autograd.grad(torch_attention(exact).sum(), exact)
    ours = torch.autograd.grad(flash_attention(rounded[0], rounded[1], rounded[2], None, None).float().sum(), rounded)
    torchs = torch.autograd.grad(torch_attention(rounded).float().sum(), rounded)
    for mine, theirs, true in zip(ours, torchs, reference, strict=True):
        assert (mine - true).norm() <= 1.5 * (theirs - true).norm() + 1e-3 * true.norm()
