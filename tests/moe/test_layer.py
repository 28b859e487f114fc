"""Router, experts and statistics against plain formulas, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trine.moe.experts import Experts
from trine.moe.grouped import grouped_linear
from trine.moe.layer import SparseMoE
from trine.moe.stacks import Stack, whole
from trine.moe.stats import StepStats, layer_health, max_violation

D, M, E, K = 16, 8, 6, 2


@pytest.fixture
def moe() -> SparseMoE:
    torch.manual_seed(0)
    layer = SparseMoE(D, M, E, K, 1, 1.7).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.3)
    layer.expert_bias = 0.2 * torch.randn(E, dtype=torch.float64)
    return layer


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return (F.silu(x @ gate.mT) * (x @ up.mT)) @ down.mT


def obvious(moe: SparseMoE, x_ND: Tensor) -> Tensor:
    """Token by token, expert by expert."""
    shared = moe.shared_experts
    out = swiglu(x_ND, shared.gate_proj.weight, shared.up_proj.weight, shared.down_proj.weight)
    rows = []
    for x in x_ND:
        scores = 1 / (1 + torch.exp(-(moe.router.gate.weight @ x)))
        chosen = sorted(range(E), key=lambda e: -(scores[e] + moe.expert_bias[e]).item())[:K]
        total = sum(scores[e] for e in chosen)
        row = torch.zeros(D, dtype=x.dtype)
        for e in chosen:
            gate, up = moe.experts.gate_up_proj[e].chunk(2)
            row = row + 1.7 * scores[e] / total * swiglu(x, gate, up, moe.experts.down_proj[e])
        rows.append(row)
    return out + torch.stack(rows)


def test_forward_and_gradients_equal_the_token_by_token_form(moe: SparseMoE) -> None:
    x = torch.randn(2, 9, D, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 9, D, dtype=torch.float64)
    out, _ = moe(x, None, with_loss=False)
    expected = obvious(moe, x.flatten(0, 1)).view_as(x)
    assert torch.allclose(out, expected, rtol=1e-10, atol=1e-12)
    leaves = [x, *moe.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad((out * weight).sum(), leaves),
        torch.autograd.grad((expected * weight).sum(), leaves),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-10)


def stack_linear(x: torch.Tensor, weight: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    return grouped_linear(x, whole(weight), counts)


def split_linear(x: torch.Tensor, weight: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The same by halves, those of odd places being frozen."""
    halves = weight.view(8, -1, weight.shape[-1])
    where = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    return grouped_linear(x, Stack(halves[::2], halves[1::2].detach(), where), counts)


def loop_linear(x: torch.Tensor, weight: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    parts = x.split(counts.tolist())
    return torch.cat([part @ one.mT for part, one in zip(parts, weight, strict=True)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("counts", [[3, 0, 5, 1], [0, 0, 9, 0], [9, 0, 0, 0], [130, 0, 70, 64]])
def test_grouped_product_equals_the_loop(dtype: torch.dtype, counts: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sum(counts), 16, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(4, 24, 16, generator=generator).to(dtype).requires_grad_()
    upstream = torch.randn(sum(counts), 24, generator=generator).to(dtype)
    results = []
    for form in (loop_linear, stack_linear, split_linear):
        out = form(x, weight, torch.tensor(counts))
        results.append([out, *torch.autograd.grad(out, (x, weight), upstream)])
    frozen = results[0][2].view(8, 12, 16).clone()
    frozen[1::2] = 0
    for ours, expected in ((results[1], results[0]), (results[2], [*results[0][:2], frozen.view(4, 24, 16)])):
        for one, other in zip(ours, expected, strict=True):
            close = 2e-2 if dtype == torch.bfloat16 else 1e-5
            assert torch.allclose(one.float(), other.float(), rtol=2e-2, atol=close)


def test_no_product_is_made_for_the_gradient_of_frozen_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def counted(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        made.append(left.shape[0])
        return plain(left, right, out=out)

    plain = torch.mm
    monkeypatch.setattr(torch, "mm", counted)
    x, weight, counts = torch.randn(9, 16, requires_grad=True), torch.randn(4, 24, 16), torch.tensor([3, 0, 5, 1])
    for form, trained, products in ((stack_linear, False, 0), (stack_linear, True, 4), (split_linear, True, 4)):
        made.clear()
        form(x, weight.clone().requires_grad_(trained), counts).sum().backward()
        assert sum(rows in (12, 24) for rows in made) == products


def test_a_split_stack_has_the_state_dict_of_the_hub() -> None:
    torch.manual_seed(0)
    one, other = (Experts(4, 16, 8) for _ in range(2))
    for parameter in (*one.parameters(), *other.parameters()):
        torch.nn.init.normal_(parameter)
    before, kept = one.gate_up_proj.detach().clone(), one.down_proj.detach().clone()
    for module in (one, other):
        module.split("gate_up_proj", torch.tensor([True, False, False, False, True, True, False, False]))
    state = one.state_dict()
    assert set(state) == {f"{e}.{kind}.weight" for e in range(4) for kind in ("gate_proj", "up_proj")} | {"down_proj"}
    for e in range(4):
        assert torch.equal(state[f"{e}.gate_proj.weight"], before[e, :8])
        assert torch.equal(state[f"{e}.up_proj.weight"], before[e, 8:])
    other.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), one.parameters(), strict=True))
    trained = {name: list(p.shape) for name, p in one.named_parameters() if p.requires_grad}
    assert trained == {"down_proj": [4, 16, 8], "gate_up_proj_split.trained": [3, 8, 16]}
    assert torch.equal(other.down_proj, kept)
    del state["2.up_proj.weight"]
    with pytest.raises(RuntimeError, match="gate_up_proj_split"):
        other.load_state_dict(state)


def test_statistics_equal_plain_counting(moe: SparseMoE) -> None:
    x = torch.randn(3, 7, D, dtype=torch.float64)
    valid = torch.ones(3, 7, dtype=torch.bool)
    valid[1, 4:] = False
    valid[2] = False
    _, stats = moe(x, valid, with_loss=True)
    counts, entropy, balance = [0] * E, 0.0, []
    for row in range(3):
        f, p, tokens = [0.0] * E, [0.0] * E, 0
        for t in range(7):
            if not valid[row, t]:
                continue
            tokens += 1
            scores = (moe.router.gate.weight @ x[row, t]).sigmoid()
            share = scores / scores.sum()
            entropy -= sum(float(s) * math.log(float(s)) for s in share)
            for e in (scores + moe.expert_bias).topk(K).indices.tolist():
                counts[e] += 1
                f[e] += E / K
            p = [a + float(s) for a, s in zip(p, share, strict=True)]
        if tokens:
            balance.append(sum(a / tokens * b / tokens for a, b in zip(f, p, strict=True)))
    assert stats.counts_E.tolist() == counts
    assert int(stats.tokens) == 11
    assert float(stats.entropy_sum) == pytest.approx(entropy, rel=1e-9)
    assert float(stats.balance_loss) == pytest.approx(sum(balance) / len(balance), rel=1e-9)


def test_balance_loss_is_one_for_a_uniform_router_and_has_a_gradient(moe: SparseMoE) -> None:
    x = torch.randn(2, 50, D, dtype=torch.float64)
    _, stats = moe(x, None, with_loss=True)
    stats.balance_loss.backward()
    assert moe.router.gate.weight.grad is not None
    assert moe.router.gate.weight.grad.abs().max() > 0
    with torch.no_grad():
        moe.router.gate.weight.zero_()
        _, uniform = moe(x, None, with_loss=True)
    assert float(uniform.balance_loss) == pytest.approx(1.0)


def test_the_bias_selects_but_never_weighs(moe: SparseMoE) -> None:
    x = torch.randn(5, D, dtype=torch.float64)
    plain = moe.router(x, torch.zeros(E, dtype=torch.float64))
    moved = moe.router(x, torch.full((E,), 3.0, dtype=torch.float64))
    assert torch.equal(plain.weights_NK, moved.weights_NK)
    forced = torch.zeros(E, dtype=torch.float64)
    forced[4] = 10
    assert (moe.router(x, forced).experts_NK[:, 0] == 4).all()
    assert torch.allclose(moe.router(x, forced).weights_NK.sum(1), torch.full((5,), 1.7, dtype=torch.float64))


def test_health_names_layers_and_counts_dead_experts() -> None:
    torch.manual_seed(0)
    moe = SparseMoE(D, M, E, K, 1, 1.0)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_()
        moe.expert_bias[0] = -10
    stats = StepStats()
    for _ in range(2):
        stats.add([moe(torch.randn(1, 20, D), None, with_loss=False)[1]])
    figures = [[float(one) for one in row] for row in stats.figures([moe.expert_bias])]
    (health,) = layer_health([3], figures)
    assert (health.layer, health.dead) == (3, 1)
    assert health.bias_spread == pytest.approx(10)
    assert health.max_vio == pytest.approx(float(max_violation(stats.counts[0])))
    assert int(stats.counts[0].sum()) == 2 * 20 * K
    assert 0 < health.entropy <= math.log(E)


def test_max_violation_of_nothing_is_zero() -> None:
    assert max_violation(torch.zeros(4)) == 0.0
    assert max_violation(torch.tensor([4, 0, 0, 0])) == 3.0
