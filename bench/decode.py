"""New tokens per second after prompts of 512: trine's generation beside transformers' on the same weights.

    python bench/decode.py [--threads N] [--rounds N] [--json FILE]

166 M parameters in bf16, greedy, 128 new tokens for 1 prompt and for 16, reading the prompts included. The peer is
AfmoeForCausalLM.generate with the fastest of its settings, found by one timed call each after a warm-up: experts
(eager, grouped_mm) x cache (dynamic, static) x compiled or not; batched_mm is left out, because it copies an expert's
weights for every token of the prompt (12 s where the others take 0.3). Then that setting and ours alternate; medians,
of the peer the faster of that and its time alone, before ours ran in the process.
Ours must find the likeliest next token of the prompts, as transformers makes it in fp32, at least as often as the peer.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from table import finish
from transformers import AfmoeForCausalLM
from transformers.generation.configuration_utils import CompileConfig

from trine.model.afmoe import Afmoe
from trine.model.config import ModelConfig
from trine.model.decode import generate
from trine.model.hf import load_model, save_model
from trine.model.init import init_model

CONFIG = ModelConfig(
    vocab_size=8192,
    hidden_size=512,
    num_hidden_layers=12,
    num_attention_heads=8,
    num_key_value_heads=4,
    num_experts=32,
    moe_intermediate_size=256,
    intermediate_size=1536,
    sliding_window=512,
)
PROMPT, NEW, GOAL = 512, 128, 3.0
Setting = tuple[str, str, bool]
SETTINGS: list[Setting] = [
    (experts, cache, compiled)
    for experts, (cache, compiled) in product(
        ("eager", "grouped_mm"), (("dynamic", False), ("static", False), ("static", True))
    )
]


def ours(model: Any, prompts: torch.Tensor, new: int = NEW) -> list[list[int]]:
    """Each prompt's new tokens."""
    found: list[list[int]] = [[] for _ in prompts]
    for fresh in generate(model, prompts.tolist(), new):
        for row, token in fresh.items():
            found[row].append(token)
    return found


def theirs(folder: Path, setting: Setting) -> Callable[[torch.Tensor], list[list[int]]]:
    """transformers with one setting of experts, cache and compilation."""
    experts, cache, compiled = setting
    peer: Any = AfmoeForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, experts_implementation=experts).eval()
    options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    options |= {"cache_implementation": "static"} if cache == "static" else {}
    options |= {"disable_compile": not compiled}
    if compiled:
        compilation: Any = CompileConfig(fullgraph=False)
        compilation._compile_all_devices = True  # transformers compiles on accelerators alone otherwise
        options["compile_config"] = compilation

    @torch.no_grad()
    def run(prompts: torch.Tensor) -> list[list[int]]:
        return peer.generate(prompts, attention_mask=torch.ones_like(prompts), **options)[:, PROMPT:].tolist()

    return run


def seconds(call: Callable[[torch.Tensor], object], prompts: torch.Tensor) -> float:
    started = time.perf_counter()
    call(prompts)
    return time.perf_counter() - started


def fastest(
    folder: Path, prompts: torch.Tensor, settings: list[Setting]
) -> tuple[float, Setting, Callable[[torch.Tensor], list[list[int]]]]:
    """The peer's best setting for these prompts, each timed once after a warm-up."""
    found = []
    for experts, cache, compiled in settings:
        call = theirs(folder, (experts, cache, compiled))
        call(prompts)
        found.append((seconds(call, prompts), (experts, cache, compiled), call))
        print(
            f"  transformers {experts:10} {cache:7} {'compiled' if compiled else '':8} {found[-1][0]:7.2f} s",
            flush=True,
        )
        torch.compiler.reset()
    return min(found, key=lambda one: one[0])


@torch.no_grad()
def likeliest(folder: Path, prompts: torch.Tensor) -> list[int]:
    """The token that each prompt goes on with, in fp32."""
    exact: Any = AfmoeForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return [int(exact(one[None]).logits[0, -1].argmax()) for one in prompts]


def measure(folder: Path, rows: int, rounds: int, setting: Setting | None) -> dict[str, Any]:
    prompts = torch.randint(0, 8192, (rows, PROMPT), generator=torch.Generator().manual_seed(rows))
    alone, setting, peer = fastest(folder, prompts, SETTINGS if setting is None else [setting])
    model = load_model(folder, "bfloat16")
    exact = likeliest(folder, prompts)
    found = ours(model, prompts), peer(prompts)
    right, others = (sum(a[0] == b for a, b in zip(one, exact, strict=True)) for one in found)
    assert right >= others, f"the likeliest next token of {rows} prompts: ours {right}, transformers {others} right"
    times = [(seconds(lambda p: ours(model, p), prompts), seconds(peer, prompts)) for _ in range(rounds)]
    mine, others = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"  medians: ours {mine:.2f} s, transformers {others:.2f} s, alone {alone:.2f} s", flush=True)
    speed = [rows * NEW / mine, rows * NEW / min(others, alone)]
    return {
        "name": f"decode/batch{rows}",
        "unit": "tokens/s",
        "ours": round(speed[0], 1),
        "peer": round(speed[1], 1),
        "ratio": round(speed[0] / speed[1], 3),
        "goal": GOAL,
        "setting": " ".join(map(str, setting)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--peer", nargs=3, metavar=("EXPERTS", "CACHE", "COMPILED"), help="skip the search")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch._dynamo.config.recompile_limit = 64  # the peer's layers differ by numbers that are compiled in
    setting = (options.peer[0], options.peer[1], options.peer[2] == "yes") if options.peer else None
    with tempfile.TemporaryDirectory() as name:
        model = Afmoe(CONFIG)
        init_model(model, seed=0)
        save_model(model, Path(name) / "model")
        rows = [measure(Path(name) / "model", batch, options.rounds, setting) for batch in options.batch]
    print(f"{'row':18} {'trine':>8} {'transformers':>12} {'ratio':>6} {'goal':>5}   {options.threads} threads")
    for row in rows:
        print(f"{row['name']:18} {row['ours']:8} {row['peer']:12} {row['ratio']:6} {row['goal']:5}   {row['setting']}")
    return finish(rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
