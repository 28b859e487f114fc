"""Training steps of 16,384 tokens: trine's AFMoE beside transformers' on the same weights and tokens.

    python bench/train_step.py [--size small|large|all] [--rounds N] [--threads N] [--json FILE]

A step is four micro-batches of 4,096 tokens, gradient clipping and the optimizers: forward, backward and update as a
run makes them. Ours is `trine.train.step.train_step` on a model prepared as `trine train` prepares it. The peer is
the fastest of transformers' arms, experts (eager, grouped_mm) x (fp32, bf16 autocast) x (compiled or not), found by one
timed step each (an arm whose four micro-batches alone take longer than the best step is not timed further), with
torch.optim.Muon on 2-D matrices, the same update in a plain loop over expert matrices and fused AdamW on the rest
(batched_mm is left out: it copies expert weights per token). Then that arm and ours alternate.
Rows: `step` tokens/s; `peak_share` of our forward and backward in the bf16 matrix-product speed measured in this run;
`optimizer` seconds of an update alone. Figures are medians.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from table import finish
from torch.optim import _muon as torch_muon  # its Newton-Schulz, for the loop over expert matrices
from transformers import AfmoeForCausalLM

from trine.data.loader import Batch
from trine.model.afmoe import Afmoe
from trine.model.config import ModelConfig
from trine.model.flops import training_flops
from trine.model.hf import load_model, save_model
from trine.model.init import init_model
from trine.native.memory import kept_memory
from trine.optim.config import OptimConfig
from trine.optim.groups import build_optimizers
from trine.train.config import TrainConfig
from trine.train.fast import compile_blocks
from trine.train.meters import StepMeter
from trine.train.step import train_step

MICRO_BATCHES = 4


@dataclass(frozen=True)
class Size:
    name: str
    rows: int
    length: int
    model: ModelConfig


SMALL = Size("18.6M", 8, 512, ModelConfig(vocab_size=8192))
LARGE = Size(
    "166M",
    4,
    1024,
    ModelConfig(
        vocab_size=8192,
        hidden_size=512,
        num_hidden_layers=12,
        num_dense_layers=1,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        num_experts=32,
        num_experts_per_tok=4,
        moe_intermediate_size=256,
        intermediate_size=1536,
        sliding_window=512,
    ),
)
OPTIM = OptimConfig()
LR_FACTOR = 1e-3
"""The weights hardly move, so that every step does the same work."""
Arm = tuple[str, str, bool]


class Ours:
    """trine's step, with the memory and the compiled blocks of a long run."""

    def __init__(self, folder: Path, size: Size, tokens: torch.Tensor) -> None:
        model = load_model(folder)
        assert isinstance(model, Afmoe)
        self.model = model.train()
        self.model.compute_dtype = torch.bfloat16
        compile_blocks(self.model)
        self.config = TrainConfig(
            sequence_length=size.length,
            batch_sequences=MICRO_BATCHES * size.rows,
            micro_batch_sequences=size.rows,
        )
        self.optimizers = build_optimizers(self.model, OPTIM)
        self.batches = [Batch(one, targets_of(one), torch.zeros_like(one, dtype=torch.int32)) for one in tokens]

    def step(self, meter: StepMeter | None = None) -> float:
        return train_step(
            self.model, self.optimizers, self.batches, self.config, OPTIM.clip_norm, LR_FACTOR, meter
        ).loss

    def timed(self) -> dict[str, float]:
        """Seconds of a step and of its parts."""
        meter, started = StepMeter(torch.device("cpu")), time.perf_counter()
        self.step(meter)
        whole, laps = time.perf_counter() - started, meter.seconds
        passes = laps["forward"] + laps["backward"]
        return {"step": whole, "passes": passes, "update": seconds(lambda: self.optimizers.step(LR_FACTOR))}


class Theirs:
    """transformers' model in one arm, with torch's optimizers."""

    def __init__(self, folder: Path, arm: Arm, tokens: torch.Tensor) -> None:
        experts, dtype, compiled = arm
        self.model: Any = AfmoeForCausalLM.from_pretrained(
            folder, dtype=torch.float32, experts_implementation=experts
        ).train()
        self.forward = torch.compile(self.model) if compiled else self.model
        self.autocast, self.tokens = dtype == "bf16", tokens
        named = dict(self.model.named_parameters())
        outer = ("model.embed_tokens.weight", "lm_head.weight")
        matrices = {n: p for n, p in named.items() if p.dim() == 2 and n not in outer and "router" not in n}
        self.stacks = [p for p in named.values() if p.dim() == 3]
        self.momenta = [torch.zeros_like(p) for p in self.stacks]
        rest = [p for n, p in named.items() if n not in matrices and p.dim() != 3]
        self.muon = torch.optim.Muon(list(matrices.values()), lr=1e-6, weight_decay=0.01)
        self.adamw = torch.optim.AdamW(rest, lr=1e-6, fused=True)

    def step(self) -> float:
        loss = self.passes(self.tokens)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.update()
        return loss

    def timed(self) -> dict[str, float]:
        """Seconds of a step and of an update alone."""
        return {"step": seconds(self.step), "update": seconds(self.update)}

    def passes(self, micro_batches: torch.Tensor) -> float:
        self.model.zero_grad(set_to_none=True)
        total = 0.0
        for tokens in micro_batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                loss = self.forward(input_ids=tokens, labels=tokens, use_cache=False).loss
            (loss / MICRO_BATCHES).backward()
            total += float(loss) / MICRO_BATCHES
        return total

    @torch.no_grad()
    def update(self) -> None:
        self.muon.step()
        self.adamw.step()
        for stack, momenta in zip(self.stacks, self.momenta, strict=True):
            assert stack.grad is not None
            for matrix, gradient, momentum in zip(stack, stack.grad, momenta, strict=True):
                momentum.lerp_(gradient, 0.05)
                update = torch_muon._zeropower_via_newtonschulz(
                    gradient.lerp(momentum, 0.95), (3.4445, -4.775, 2.0315), 5, 1e-7
                )
                matrix.mul_(1 - 1e-8).add_(update, alpha=-1e-6)


def targets_of(tokens: torch.Tensor) -> torch.Tensor:
    return torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], -1)], 1)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def best_arm(folder: Path, tokens: torch.Tensor) -> Arm:
    """The fastest arm by one timed step, after a micro-batch that compiles and warms up; the likely ones first."""
    found: dict[Arm, float] = {}
    for arm in product(("grouped_mm", "eager"), ("bf16", "fp32"), (True, False)):
        peer = Theirs(folder, arm, tokens)
        peer.passes(tokens[:1])
        least = MICRO_BATCHES * seconds(lambda peer=peer: peer.passes(tokens[:1]))
        slow = bool(found) and least > min(found.values())
        found[arm] = least if slow else seconds(peer.step)
        print(f"  transformers {name_of(arm):28} {'over ' if slow else ''}{found[arm]:.2f} s", flush=True)
        del peer
        torch.compiler.reset()
        gc.collect()
    return min(found, key=lambda arm: found[arm])


def name_of(arm: Arm) -> str:
    experts, dtype, compiled = arm
    return f"{experts}, {dtype}{', compiled' if compiled else ''}"


def gemm_peak() -> float:
    """FLOP/s of the fastest of twenty 2048 x 2048 x 2048 products in bf16."""
    left = torch.randn(2048, 2048).bfloat16()
    return 2 * 2048**3 / min(seconds(lambda: left @ left) for _ in range(20))


def compare(size: Size, rounds: int) -> list[dict[str, Any]]:
    """The rows of one size."""
    torch.manual_seed(0)
    model = Afmoe(size.model)
    init_model(model, seed=0)
    tokens = torch.randint(0, 8192, (MICRO_BATCHES, size.rows, size.length))
    print(f"{size.name}: {sum(p.numel() for p in model.parameters()):,} parameters")
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder) / "model")
        del model
        arm = best_arm(Path(folder) / "model", tokens)
        peer, ours = Theirs(Path(folder) / "model", arm, tokens), Ours(Path(folder) / "model", size, tokens)
    first, second = ours.step(), peer.step()
    assert abs(first - second) < 0.02, f"losses differ: {first} and {second}"
    peak = gemm_peak()
    own, others = [], []
    for _ in range(rounds):
        with kept_memory(torch.device("cpu")):
            ours.step()  # brings back the memory that a run would have kept
            own.append(ours.timed())
        others.append(peer.timed())
    print(f"  fastest arm: {name_of(arm)}; bf16 product peak {peak / 1e9:,.0f} GFLOP/s")
    mine, theirs = median_of(own, "step"), median_of(others, "step")
    step_tokens = tokens.numel()
    share = step_tokens * training_flops(ours.model, size.length) / median_of(own, "passes") / peak
    rows = [
        row(f"step/{size.name}", "tokens/s", step_tokens / mine, step_tokens / theirs, theirs / mine, 2.5),
        row(f"peak_share/{size.name}", "of peak", share, None, share, 0.55),
    ]
    if size is LARGE:
        mine, theirs = median_of(own, "update"), median_of(others, "update")
        rows.append(row(f"optimizer/{size.name}", "s", mine, theirs, theirs / mine, 1.5))
    return rows


def median_of(rounds: list[dict[str, float]], part: str) -> float:
    return statistics.median(one[part] for one in rounds)


def row(name: str, unit: str, ours: float, peer: float | None, ratio: float, goal: float) -> dict[str, Any]:
    short = None if peer is None else float(f"{peer:.4g}")
    return {
        "name": name,
        "unit": unit,
        "ours": float(f"{ours:.4g}"),
        "peer": short,
        "ratio": round(ratio, 3),
        "goal": goal,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "large", "all"), default="all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes = {"small": [SMALL], "large": [LARGE], "all": [SMALL, LARGE]}[options.size]
    rows = [one for size in sizes for one in compare(size, options.rounds)]
    print(
        f"{'row':20} {'unit':>9} {'trine':>9} {'transformers':>12} {'ratio':>6} {'goal':>5}  {options.threads} threads"
    )
    for one in rows:
        peer = "" if one["peer"] is None else f"{one['peer']:g}"
        print(f"{one['name']:20} {one['unit']:>9} {one['ours']:9g} {peer:>12} {one['ratio']:6} {one['goal']:5}")
    finish(rows, options.json)


if __name__ == "__main__":
    main()
