"""Tokens per second of a forward and backward pass: trine's AFMoE beside transformers' on the same weights.

    python bench/train_step.py [--threads N] [--rounds N] [--json FILE]

Both compute the mean cross-entropy of the same tokens (8 x 512) and every parameter's gradient, bf16 matrix
products with fp32 parameters. transformers runs under bf16 autocast with its eager experts, the faster of its
expert implementations at this size. Rounds alternate; the table holds medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AfmoeForCausalLM

from trine.model.afmoe import Afmoe
from trine.model.config import ModelConfig
from trine.model.hf import save_model
from trine.model.init import init_model
from trine.train.loss import chunked_cross_entropy

CONFIG = ModelConfig(vocab_size=8192)
ROWS, LENGTH = 8, 512


def ours(model: Afmoe, tokens: torch.Tensor) -> Callable[[], float]:
    """Forward and backward of trine's model."""
    targets = torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], -1)], 1).flatten()
    model.compute_dtype = torch.bfloat16

    def step() -> float:
        model.zero_grad(set_to_none=True)
        hidden, _ = model.hidden(tokens)
        count = float((targets >= 0).sum())
        loss, *_ = chunked_cross_entropy(
            hidden.flatten(0, 1), model.output_weight, targets, chunk=1024, z_loss=0.0, normalizer=count
        )
        loss.backward()
        return float(loss)

    return step


def theirs(model: Any, tokens: torch.Tensor) -> Callable[[], float]:
    """Forward and backward of transformers' model."""

    def step() -> float:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        return float(loss)

    return step


def seconds(step: Callable[[], float]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    model = Afmoe(CONFIG)
    init_model(model, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder) / "model")
        peer = AfmoeForCausalLM.from_pretrained(
            Path(folder) / "model", dtype=torch.float32, experts_implementation="eager"
        )
    tokens = torch.randint(0, 8192, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    mine, other = ours(model, tokens), theirs(peer, tokens)
    a, b = mine(), other()
    assert abs(a - b) < 0.02, f"losses differ: {a} and {b}"
    times = [(seconds(mine), seconds(other)) for _ in range(options.rounds)]
    speed = [ROWS * LENGTH / statistics.median(column) for column in zip(*times, strict=True)]
    row = {
        "name": "forward_backward/18.6M",
        "unit": "tokens/s",
        "ours": round(speed[0]),
        "peer": round(speed[1]),
        "ratio": round(speed[0] / speed[1], 3),
        "goal": 1.0,
    }
    print(f"{'row':24} {'trine':>8} {'transformers':>12} {'ratio':>6} {'goal':>5}   {options.threads} threads")
    print(f"{row['name']:24} {row['ours']:8} {row['peer']:12} {row['ratio']:6} {row['goal']:5}")
    if options.json:
        options.json.write_text(json.dumps({"rows": [row]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
