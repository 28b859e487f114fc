"""`trine merge` and mergekit 0.1.5 on the same models: wall time, start-up included, outputs on the disk, and memory.

    python bench/merge.py [--size small|half|full] [--methods ties linear ...] [--rounds N] [--json FILE]

Four Llama-shaped bf16 models are generated (full: 953 M parameters, 1.9 GB each in 4 shards; fine-tunes are the base
plus noise of standard deviation 0.002). Each method runs in fresh processes, in turns, page cache warm, medians of the
rounds; mergekit's output is flushed to the disk within its time, as trine's is by trine. `floor` is a fresh process of
numpy that averages the same bytes in chunks, hashes and flushes the output. Rows: times faster than mergekit; for the
cheap methods 1.5 floors over ours; 1 GiB over trine's largest anonymous memory; 3 s over planning 44,000 tensors.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from table import finish

SIZES = {"small": (512, 4, 1408, 8000), "half": (1536, 12, 4096, 16000), "full": (2048, 16, 5632, 32000)}
"""Hidden size, layers, FFN size, vocabulary."""
GOALS = {
    "linear": 3, "slerp": 3, "nuslerp": 3, "task_arithmetic": 3, "model_stock": 3, "passthrough": 3, "karcher": 6,
    "multislerp": 6, "dare_ties": 12, "ties": 35, "breadcrumbs": 35, "sce": 35, "della": 35,
}  # fmt: skip
CHEAP = ("linear", "slerp", "nuslerp", "task_arithmetic", "model_stock", "passthrough")
MEMORY_LIMIT, PLAN_LIMIT, PLAN_TENSORS = 1 << 30, 3.0, 44_000
_PARAMETERS = {
    "linear": {"weight": 0.4},
    "nuslerp": {"weight": 0.5},
    "task_arithmetic": {"weight": 0.4},
    "karcher": {},
    "multislerp": {"weight": 0.4},
    "dare_ties": {"weight": 0.4, "density": 0.5},
    "ties": {"weight": 0.4, "density": 0.5},
    "breadcrumbs": {"weight": 0.4, "density": 0.9, "gamma": 0.01},
    "della": {"weight": 0.4, "density": 0.5, "epsilon": 0.1},
}
_SHARED = {"slerp": {"t": 0.4}, "sce": {"select_topk": 0.5}}
_INPUTS = {"slerp": 1, "nuslerp": 2, "passthrough": 1}
_WITHOUT_BASE = ("linear", "karcher", "multislerp", "passthrough", "nuslerp")
_FLOOR = """
import hashlib, json, os, struct, sys
import numpy as np
folders, out = sys.argv[1:-1], sys.argv[-1]
os.mkdir(out)
for name in sorted(n for n in os.listdir(folders[0]) if n.endswith(".safetensors")):
    files = [open(os.path.join(f, name), "rb", buffering=0) for f in folders]
    heads = [struct.unpack("<Q", f.read(8))[0] for f in files]
    head = [f.read(n) for f, n in zip(files, heads)][0]
    digest = hashlib.sha256()
    with open(os.path.join(out, name), "wb", buffering=0) as target:
        target.write(struct.pack("<Q", heads[0]) + head)
        raw, wide, total = np.empty(1 << 20, "u2"), np.empty(1 << 20, "f4"), np.empty(1 << 20, "f4")
        while count := files[0].readinto(raw) // 2:
            for i, file in enumerate(files):
                if i:
                    file.readinto(raw[:count])
                np.left_shift(raw[:count], 16, out=wide[:count].view("u4"), dtype="u4")
                wide *= np.float32(1 / len(files))
                np.add(total, wide, out=total) if i else np.copyto(total, wide)
            bits = total[:count].view("u4")
            piece = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("u2")
            digest.update(piece.data)
            target.write(piece.data)
        os.fsync(target.fileno())
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--methods", nargs="+", choices=list(GOALS), default=list(GOALS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only-trine", action="store_true", help="Skip the peer: no rows, for work on speed.")
    parser.add_argument("--models", type=Path, help="Folder of models that an earlier call left, or to leave them in.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("TRINE_BENCH_DIR"), prefix="bench-merge-") as name:
        home = options.models or Path(name)
        if not (home / "c").is_dir():
            generate(home, *SIZES[options.size])
        for method in options.methods:
            rows += compare(home, method, options.size, options.rounds, not options.only_trine)
        if not options.only_trine:
            rows.append(plan_row(Path(name)))
    return 0 if options.only_trine else finish(rows, options.json)


def generate(home: Path, hidden: int, layers: int, ffn: int, vocabulary: int) -> None:
    """base, a, b, c: the models."""
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for i in range(layers):
        stem = f"model.layers.{i}."
        shapes |= {f"{stem}self_attn.{one}_proj.weight": (hidden, hidden) for one in "qkvo"}
        shapes |= {f"{stem}mlp.{one}_proj.weight": (ffn, hidden) for one in ("gate", "up")}
        shapes[f"{stem}mlp.down_proj.weight"] = (hidden, ffn)
        shapes |= {f"{stem}{one}_layernorm.weight": (hidden,) for one in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": ffn, "num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64,
        "vocab_size": vocabulary, "dtype": "bfloat16", "tie_word_embeddings": False, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048, "hidden_act": "silu",
    }  # fmt: skip
    names = list(shapes)
    shards = [names[len(names) * i // 4 : len(names) * (i + 1) // 4] for i in range(4)]
    for seed, model in enumerate(("base", "a", "b", "c")):
        folder = home / model
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        weight_map = {}
        for i, shard in enumerate(shards, 1):
            file = f"model-{i:05}-of-{len(shards):05}.safetensors"
            weight_map |= dict.fromkeys(shard, file)
            _write_shard(folder / file, {name: shapes[name] for name in shard}, seed)
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_shard(path: Path, shapes: dict[str, tuple[int, ...]], seed: int) -> None:
    entries, place = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for name, shape in shapes.items():
            values = _normal(name, 0, shape) * np.float32(0.02)
            if seed:
                values += _normal(name, seed, shape) * np.float32(0.002)
            bits = values.view(np.uint32)
            file.write(((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16).tobytes())


def _normal(name: str, seed: int, shape: tuple[int, ...]) -> Any:
    rng = np.random.Generator(np.random.SFC64([seed, *name.encode()]))
    return rng.standard_normal(shape, dtype=np.float32)


def config_of(home: Path, method: str) -> Path:
    """The method's config over the generated models."""
    models = [str(home / one) for one in ("a", "b", "c")[: _INPUTS.get(method, 3)]]
    entries = [{"model": one} | ({"parameters": given} if (given := _PARAMETERS.get(method)) else {}) for one in models]
    config: dict[str, Any] = {"merge_method": method, "models": entries, "dtype": "bfloat16"}
    if method not in _WITHOUT_BASE:
        config["base_model"] = str(home / "base")
    if method in _SHARED:
        config["parameters"] = _SHARED[method]
    path = home / f"{method}.yaml"
    path.write_text(json.dumps(config))
    return path


def compare(home: Path, method: str, size: str, rounds: int, peer: bool) -> list[dict[str, Any]]:
    """One method's rows."""
    config = config_of(home, method)
    bin_folder = Path(sys.executable).parent
    inputs = [home / one for one in ("a", "b", "c")[: _INPUTS.get(method, 3)]]
    inputs += [home / "base"] if method not in _WITHOUT_BASE else []
    kinds: dict[str, list[str]] = {"trine": [str(bin_folder / "trine"), "merge", str(config)]}
    if peer:
        kinds["mergekit"] = [str(bin_folder / "mergekit-yaml"), str(config)]
        kinds["floor"] = [sys.executable, "-c", _FLOOR, *map(str, inputs)]
    found: dict[str, list[tuple[float, int]]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, command in kinds.items():
            warm(inputs)
            found[kind].append(timed([*command, str(home / "out")], home / "out", flush=kind == "mergekit"))
    seconds = {kind: statistics.median(one for one, _ in runs) for kind, runs in found.items()}
    memory = max(peak for _, peak in found["trine"])
    shown = "  ".join(f"{kind} {one:6.2f} s" for kind, one in seconds.items())
    print(f"{method:16} {shown}  anonymous {memory / 2**20:4.0f} MiB", flush=True)
    if not peer:
        return []
    ours, stem = seconds["trine"], f"merge/{size}/{method}"
    rows = [_row(stem, "s", ours, seconds["mergekit"], seconds["mergekit"] / ours, GOALS[method])]
    if method in CHEAP:
        rows.append(_row(f"{stem}/floor", "s", ours, None, 1.5 * seconds["floor"] / ours, 1))
    rows.append(_row(f"{stem}/memory", "bytes", memory, None, MEMORY_LIMIT / memory, 1))
    return rows


def warm(folders: list[Path]) -> None:
    """Read the models, so that the page cache holds them."""
    buffer = bytearray(1 << 22)
    for path in (one for folder in folders for one in folder.iterdir()):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def timed(command: list[str], out: Path, flush: bool) -> tuple[float, int]:
    """Wall seconds of a fresh process, until its output is on the disk, and its largest anonymous memory in bytes."""
    peak, began = 0, time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None:
        peak = max(peak, _anonymous(process.pid))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\n{process.stderr.read().decode() if process.stderr else ''}")
    if flush:
        for path in out.glob("*.safetensors"):
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
    seconds = time.perf_counter() - began
    shutil.rmtree(out)
    return seconds, peak


def _anonymous(process: int) -> int:
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    line = next((one for one in text.splitlines() if one.startswith("RssAnon")), "RssAnon: 0")
    return int(line.split()[1]) * 1024


def plan_row(home: Path) -> dict[str, Any]:
    """Planning of 44,000 tensors of three models of experts."""
    names = [f"model.layers.{i // 800}.mlp.experts.{i % 800}.up_proj.weight" for i in range(PLAN_TENSORS)]
    entries = {
        name: {"dtype": "BF16", "shape": [2], "data_offsets": [4 * i, 4 * i + 4]} for i, name in enumerate(names)
    }
    header = json.dumps(entries).encode()
    for model in ("m1", "m2", "m3"):
        (home / model).mkdir()
        (home / model / "model.safetensors").write_bytes(
            struct.pack("<Q", len(header)) + header + bytes(4 * PLAN_TENSORS)
        )
    models = [{"model": str(home / model), "parameters": {"weight": 1}} for model in ("m1", "m2", "m3")]
    path = home / "plan.yaml"
    path.write_text(json.dumps({"merge_method": "linear", "models": models}))
    command = [str(Path(sys.executable).parent / "trine"), "merge", str(path), str(home / "planned"), "--dry-run"]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    print(f"{'planning':16} trine {seconds:6.2f} s", flush=True)
    return _row("merge/plan-44000", "s", seconds, None, PLAN_LIMIT / seconds, 1)


def _row(name: str, unit: str, ours: float, peer: float | None, ratio: float, goal: float) -> dict[str, Any]:
    return {"name": name, "unit": unit, "ours": ours, "peer": peer, "ratio": ratio, "goal": goal}


if __name__ == "__main__":
    sys.exit(main())
