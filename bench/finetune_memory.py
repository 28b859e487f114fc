"""How near `trine plan` comes to the memory of fine-tuning: in full, Spectrum-50, Spectrum-25, LoRA; within 5 %.

    python bench/finetune_memory.py [--only NAME ...] [--seconds 20] [--json FILE]

Each is asked of the installed command, then run by a fresh process that starts from the same bf16 folder. Memory is as
`bench/plan.py` measures it: the largest anonymous memory of that process (smaps_rollup, every 5 ms and at the end of
each part of a step) less its value after imports, over the first steps. Nothing here imports the estimator. Spectrum-p
trains p per cent of the layers of each type of matrix, drawn. `ratio` is the limit over the deviation. About five
minutes on a quiet machine; on a busy one `--seconds` gives the plan the time for as many layers as it has there.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from plan import MEMORY_LIMIT, SAMPLED, VOCABULARY, measure, row, write_tokens
from table import finish

_MIB = 2**20
_LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 8192,
}
CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "spectrum-50": {"only": 50},
    "spectrum-25": {"only": 25},
    "lora-16": {"lora": {"rank": 16}},
}


def write_start(folder: Path) -> list[str]:
    """A Llama of 151 M parameters in bf16; the names of its blocks' matrices."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model: Any = LlamaForCausalLM(LlamaConfig(**_LLAMA))
    model.to(torch.bfloat16)
    model.save_pretrained(folder)
    return [name for name, one in model.named_parameters() if one.dim() == 2 and ".layers." in name]


def selected(names: list[str], per_cent: int) -> list[str]:
    """So many of the layers of each type."""
    types = defaultdict[str, list[str]](list)
    for name in names:
        types[name.split(".", 3)[-1]].append(name)
    draw = random.Random(per_cent)
    return [name for group in types.values() for name in draw.sample(group, len(group) * per_cent // 100)]


def write_config(folder: Path, case: dict[str, Any], names: list[str]) -> Path:
    """The case as a config file."""
    train: dict[str, Any] = {
        "tokens": str(folder / "tokens"),
        "init_from": str(folder / "start"),
        "steps": SAMPLED + 1,
        "sequence_length": 256,
        "batch_sequences": 4,
        "micro_batch_sequences": 2,
        "eval": {"sets": []},
        "checkpoint_every_steps": SAMPLED + 1,
    }
    if "only" in case:
        train["only"] = str(folder / "selection")
        (folder / "selection").write_text("".join(f"{name}\n" for name in selected(names, case["only"])))
    if "lora" in case:
        train["lora"] = case["lora"]
    path = folder / "config.yaml"
    path.write_text(json.dumps({"train": train, "optim": {"matrices": "adamw"}}))
    return path


def predicted(config: Path, seconds: float) -> dict[str, Any]:
    """What `trine plan` says, run as a user runs it but for its patience."""
    code = (
        "import sys, trine.estimate.trial as trial; from trine.cli.main import main;"
        "trial.BUDGET_SECONDS = float(sys.argv.pop(1)); sys.exit(main())"
    )
    command = [sys.executable, "-c", code, str(seconds), "plan", str(config), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    plan = json.loads(done.stdout or json.dumps({"error": done.stderr}))
    if plan.get("time") is None:
        raise SystemExit(f"trine plan: {plan.get('error') or plan.get('note') or 'cannot fit'}")
    return plan


def compare(name: str, folder: Path, names: list[str], seconds: float) -> dict[str, Any]:
    """The row of a case."""
    config = write_config(folder, CASES[name], names)
    plan = predicted(config, seconds)
    command = [sys.executable, __file__, "--measure", str(config), str(folder / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    measured = json.loads(done.stdout.splitlines()[-1])["memory"]
    memory = plan["memory"]
    kinds = "  ".join(f"{(memory[kind] or 0) / _MIB:9,.0f}" for kind in ("weights", "gradients", "optimizer"))
    print(
        f"{name:12} {memory['peak'] / _MIB:9,.0f} {measured / _MIB:9,.0f} {memory['peak'] / measured - 1:+7.1%}  "
        f"{kinds}  {memory['activations'] / _MIB:9,.0f}  {plan['time']['probe']['layers']} layers",
        flush=True,
    )
    return row(f"finetune_memory/{name}", memory["peak"], measured, MEMORY_LIMIT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seconds", type=float, default=20.0, help="of the plan's probes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        import peft  # noqa: F401

        measure(*options.measure)
        return
    heads = "".join(f"  {kind:>9}" for kind in ("weights", "gradients", "optimizer"))
    print(f"{'':12} {'planned':>9} {'measured':>9} {'MiB':>7}{heads}  activations")
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent)
        names = write_start(folder / "start")
        write_tokens(folder / "tokens")
        rows = [compare(name, folder, names, options.seconds) for name in options.only]
    finish(rows, options.json)


if __name__ == "__main__":
    main()
