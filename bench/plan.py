"""How near `trine plan` comes to what training takes: peak memory within 5 %, median step time within 15 %.

    python bench/plan.py [--only NAME ...] [--json FILE]

For each configuration the plan is asked of the installed command, and a fresh process trains on tokens it never saw.
Memory is the largest anonymous memory of that process (smaps_rollup, every 5 ms and at the end of each part of a step)
less its value after imports, over the first steps; time is the median of the steps after them, which are not sampled.
Nothing here imports the estimator. `ratio` is the limit over the deviation. Quiet machine, about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from table import finish

SAMPLED, TIMED = 4, 5
MEMORY_LIMIT, TIME_LIMIT = 0.05, 0.15
VOCABULARY = 8192
_MIB = 2**20
_AFMOE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "moe_intermediate_size": 256,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_experts": 32,
}
_LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 640,
    "intermediate_size": 1728,
    "num_hidden_layers": 12,
    "num_attention_heads": 10,
    "num_key_value_heads": 5,
    "head_dim": 64,
    "max_position_embeddings": 8192,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "afmoe-18M-muon": {"model": {"vocab_size": VOCABULARY}, "length": 512, "rows": 16},
    "afmoe-166M-muon": {"model": _AFMOE, "length": 1024, "rows": 2},
    "afmoe-166M-adamw-recompute": {"model": _AFMOE, "length": 512, "rows": 4, "adamw": True, "recompute": True},
    "afmoe-166M-long": {"model": _AFMOE, "length": 4096, "rows": 1, "recompute": True},
    "llama-70M-adamw": {"llama": _LLAMA, "length": 512, "rows": 6, "adamw": True},
    "llama-130M-muon-recompute": {
        "llama": _LLAMA
        | {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 8},
        "length": 1024,
        "rows": 1,
        "recompute": True,
    },
}


def write_config(folder: Path, case: dict[str, Any]) -> Path:
    """The case as a config file, its model (for a Llama shape) and its tokens beside it."""
    train: dict[str, Any] = {
        "tokens": str(folder / "tokens"),
        "steps": SAMPLED + TIMED,
        "sequence_length": case["length"],
        "batch_sequences": 2 * case["rows"],
        "micro_batch_sequences": case["rows"],
        "recompute": case.get("recompute", False),
        "eval": {"sets": []},
        "checkpoint_every_steps": SAMPLED + TIMED,
    }
    config: dict[str, Any] = {"train": train, "optim": {"matrices": "adamw" if case.get("adamw") else "muon"}}
    if "llama" in case:
        from transformers import LlamaConfig, LlamaForCausalLM

        LlamaForCausalLM(LlamaConfig(**case["llama"])).save_pretrained(folder / "start")
        train["init_from"] = str(folder / "start")
    else:
        config["model"] = case["model"]
    write_tokens(folder / "tokens")
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))
    return path


def write_tokens(folder: Path) -> None:
    """A token folder of documents whose words are distributed as in text (Zipf)."""
    from trine.data.shards import ShardWriter, token_dtype, write_index
    from trine.manifest import publish

    rng = np.random.default_rng(0)
    with publish(folder, "tokens") as out:
        with ShardWriter(out, "train", token_dtype(VOCABULARY), 10**8) as writer:
            for _ in range(1000):
                tokens = rng.zipf(1.2, int(rng.integers(50, 1500))) % (VOCABULARY - 2) + 2
                writer.add(np.concatenate(([0], tokens, [1])), 4 * len(tokens))
        token_bytes = np.full(VOCABULARY, 4, dtype=np.uint16)
        write_index(out, {"train": writer.summary()}, token_bytes, bos=0, eos=1, tokenizer_sha256="none")


def predicted(config: Path) -> dict[str, Any]:
    """What the command says, run as a user runs it."""
    program = Path(sys.executable).with_name("trine")
    done = subprocess.run([program, "plan", config, "--json"], capture_output=True, text=True, check=False)
    plan = json.loads(done.stdout)
    if "memory" not in plan:
        raise SystemExit(f"trine plan failed: {plan['error']}")
    if plan["time"] is None:
        raise SystemExit(f"trine plan: {plan['note'] or 'cannot fit'}; a quiet machine with 8 GiB free is needed")
    return plan


def anonymous() -> int:
    """Anonymous memory of this process, bytes."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/self/smaps_rollup tells no anonymous memory")


class Sampler(threading.Thread):
    """The largest anonymous memory, sampled until stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.base, self.most, self.done = anonymous(), 0, threading.Event()

    def sample(self) -> None:
        self.most = max(self.most, anonymous() - self.base)

    def run(self) -> None:
        while not self.done.wait(0.005):
            self.sample()


def measure(config: Path, out: Path) -> None:
    """Train in this process and print its memory and step time."""
    from trine.config.load import load_config
    from trine.model.config import ModelConfig
    from trine.recipe import Config
    from trine.train import loop, meters

    import transformers.models.llama.modeling_llama  # noqa: F401  # isort: skip

    sampler = Sampler()

    class Observer(loop.Unwatched):
        def on_step(self, record: dict[str, Any]) -> None:
            if record["step"] == SAMPLED:
                sampler.done.set()

    class Meter(meters.StepMeter):
        def lap(self, name: str) -> None:
            super().lap(name)
            if not sampler.done.is_set():
                sampler.sample()
                self._began = time.perf_counter()

    loop.StepMeter = Meter
    loaded = load_config(Config, config).config
    assert loaded.train is not None
    sampler.start()
    model = loaded.model or ModelConfig()
    loop.fit(model, loaded.optim, loaded.train, Path(loaded.train.tokens or ""), out, Observer())
    sampler.sample()
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    seconds = [one["seconds"] for one in records[SAMPLED:]]
    print(json.dumps({"memory": sampler.most, "seconds": statistics.median(seconds), "all": seconds}))


def compare(name: str, case: dict[str, Any]) -> list[dict[str, Any]]:
    """The two rows of a case."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent)
        config = write_config(folder, case)
        plan = predicted(config)
        command = [sys.executable, __file__, "--measure", str(config), str(folder / "run")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
    real = json.loads(done.stdout.splitlines()[-1])
    memory = plan["memory"]["peak"], real["memory"]
    seconds = plan["time"]["step_seconds"], real["seconds"]
    print(
        f"{name:28} {memory[0] / _MIB:9,.0f} {memory[1] / _MIB:9,.0f} {memory[0] / memory[1] - 1:+7.1%}   "
        f"{seconds[0]:7.2f} {seconds[1]:7.2f} {seconds[0] / seconds[1] - 1:+7.1%}   "
        f"{plan['time']['probe']['layers']} layers in {plan['time']['probe']['seconds']:.0f} s",
        flush=True,
    )
    return [row(f"plan_memory/{name}", *memory, MEMORY_LIMIT), row(f"plan_time/{name}", *seconds, TIME_LIMIT)]


def row(name: str, planned: float, measured: float, limit: float) -> dict[str, Any]:
    """A row: the deviation held against its limit."""
    off = max(abs(planned / measured - 1), 1e-4)
    ratio = round(limit / off, 3)
    return {"name": name, "unit": "relative deviation", "ours": off, "peer": None, "ratio": ratio, "goal": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
        return
    print(f"{'':28} {'planned':>9} {'measured':>9} {'MiB':>7}   {'planned':>7} {'measured':>7} {'s':>7}   probe")
    rows = [one for name in options.only for one in compare(name, CONFIGS[name])]
    finish(rows, options.json)


if __name__ == "__main__":
    main()
