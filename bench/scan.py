"""`trine spectrum` and the published procedure, fp32 `torch.linalg.svdvals` of each matrix, on the same bf16 matrices.

    python bench/scan.py [--size small|full] [--rounds N] [--threads N] [--layers N] [--only shapes|model] [--json FILE]

Shapes: ours and svdvals of the matrix as it is stored and of its taller orientation, in turns, medians of the rounds,
reading and widening included; then each layer set as the sum over its matrices: a layer of Llama-3-8B and a sparse one
of Trinity-Mini (full), or of models of an eighth of their width (small). Rows: times faster; 1e-4 over the relative
difference of an SNR from an fp64 SVD's, by both measures. Model: `trine spectrum scan` in a fresh process on a model of
N such layers, embeddings and head, whose shards hold the same numbers (32 layers: 16 GB in TRINE_BENCH_DIR). Rows: 12
minutes, for less than 32 layers their part, over the time; 1 GiB over the largest anonymous memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from table import finish
from torch import Tensor

from trine.spectrum.measure import Measure, measure_matrix
from trine.spectrum.noise import calibrated, published
from trine.spectrum.singular import Values

Shape = tuple[int, int]
LLAMA: dict[Shape, int] = {(4096, 4096): 2, (1024, 4096): 2, (14336, 4096): 2, (4096, 14336): 1}
"""Shapes of a Llama-3-8B layer and how many it has."""
TRINITY: dict[Shape, int] = {
    (4096, 2048): 2, (512, 2048): 2, (2048, 4096): 1, (128, 2048): 1, (1024, 2048): 258, (2048, 1024): 129,
}  # fmt: skip
"""Of a sparse layer of Trinity-Mini: query and gate, key and value, output, router, 128 experts and a shared one."""
VOCABULARY, HIDDEN, LAYERS = 128256, 4096, 32
GOALS = {"as-stored": 5.0, "oriented": 2.5}
AGREEMENT, MEMORY_LIMIT, MINUTES = 1e-4, 1 << 30, 12.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "full"), default="full")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--only", choices=("shapes", "model"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    part = 8 if options.size == "small" else 1
    rows: list[dict[str, Any]] = []
    if options.only != "model":
        rows += shapes(options.size, part, options.rounds)
    if options.only != "shapes":
        with tempfile.TemporaryDirectory(dir=os.environ.get("TRINE_BENCH_DIR"), prefix="bench-scan-") as name:
            rows += model(Path(name), options.size, part, options.layers, options.threads)
    return finish(rows, options.json)


def shapes(size: str, part: int, rounds: int) -> list[dict[str, Any]]:
    """Rows of every shape, of its agreement, and of the layer sets."""
    sets = {"llama-3-8b-layer": LLAMA, "trinity-mini-layer": TRINITY}
    cut = {name: {(n // part, m // part): count for (n, m), count in one.items()} for name, one in sets.items()}
    seconds: dict[Shape, dict[str, float]] = {}
    rows = []
    for shape in dict.fromkeys(shape for one in cut.values() for shape in one):
        matrix, stem = drawn(shape), f"scan/{size}/{shape[0]}x{shape[1]}"
        seconds[shape] = found = compared(matrix, rounds)
        rows += [_row(f"{stem}/{kind}", found["ours"], found[kind], 1.0) for kind in GOALS]
        error = disagreement(matrix)
        ratio = AGREEMENT / max(error, 1e-12)
        rows.append({"name": f"{stem}/snr", "unit": "", "ours": error, "peer": None, "ratio": ratio, "goal": 1})
        shown = "  ".join(f"{kind} {one:8.3f} s" for kind, one in found.items())
        print(f"{shape[0]:6} x {shape[1]:5}  {shown}  SNR off by {error:.1e}", flush=True)
    for name, counts in cut.items():
        total = {kind: sum(seconds[shape][kind] * n for shape, n in counts.items()) for kind in ("ours", *GOALS)}
        rows += [_row(f"scan/{size}/{name}/{kind}", total["ours"], total[kind], goal) for kind, goal in GOALS.items()]
        print(f"{name}: " + "  ".join(f"{kind} {one:.2f} s" for kind, one in total.items()), flush=True)
    return rows


def drawn(shape: Shape) -> Tensor:
    """Noise and a signal of falling strength, in bf16, made in blocks of rows."""
    generator, rank = torch.Generator().manual_seed(shape[0] * 31 + shape[1]), min(shape) // 16
    right = torch.arange(1, rank + 1)[:, None] ** -0.7 * torch.randn(rank, shape[1], generator=generator)
    blocks = []
    for rows in torch.arange(shape[0]).split(4096):
        signal = torch.randn(len(rows), rank, generator=generator) @ right
        blocks.append((0.02 * (torch.randn(signal.shape, generator=generator) + signal)).bfloat16())
    return torch.cat(blocks)


def compared(matrix: Tensor, rounds: int) -> dict[str, float]:
    """Median seconds of ours, of svdvals as stored and of its better orientation."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    work: dict[str, Callable[[], Any]] = {
        "ours": lambda: measure_matrix(matrix, "calibrated"),
        "as-stored": lambda: torch.linalg.svdvals(matrix.float()),
        "oriented": lambda: torch.linalg.svdvals(tall.float()),
    }
    found: dict[str, list[float]] = {kind: [] for kind in work}
    for _ in range(rounds):
        for kind, run in work.items():
            began = time.perf_counter()
            run()
            found[kind].append(time.perf_counter() - began)
    return {kind: statistics.median(times) for kind, times in found.items()}


def disagreement(matrix: Tensor) -> float:
    """The larger relative difference of both measures' SNR from the same measure's of an fp64 SVD."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    exact = torch.linalg.svdvals(tall.double()).flip(0)
    values = Values(exact, 0, 1e-14 * exact, 0.0, "qr")
    rules: dict[Measure, Any] = {"calibrated": calibrated, "published": published}
    worst = 0.0
    for name, rule in rules.items():
        true, ours = rule(values, (matrix.shape[0], matrix.shape[1])).snr, measure_matrix(matrix, name).numbers["snr"]
        worst = max(worst, abs(ours - true) / true)
    return worst


def model(home: Path, size: str, part: int, layers: int, threads: int) -> list[dict[str, Any]]:
    """Rows of a whole scan through the command."""
    folder = home / "model"
    write_model(folder, part, layers)
    command = [str(Path(sys.executable).parent / "trine"), "spectrum", "scan", str(folder), "--device", "cpu"]
    seconds, memory = timed([*command, "--out", str(home / "scan.json")], threads)
    meta = json.loads((home / "scan.json").read_bytes())["meta"]
    print(f"model of {layers} layers: {seconds:.1f} s, {memory / 2**20:.0f} MiB anonymous, {meta['computed_by']}")
    limit, stem = 60 * MINUTES * layers / LAYERS, f"scan/{size}/model-{layers}-layers"
    room = {"unit": "bytes", "ours": memory, "peer": None, "ratio": MEMORY_LIMIT / memory, "goal": 1}
    return [_row(f"{stem}/limit", seconds, limit, 1), {"name": f"{stem}/memory", **room}]


def write_model(folder: Path, part: int, layers: int) -> None:
    """Layers of Llama-3-8B, or a `part` of their width, a shard each, and one of embeddings and head."""
    folder.mkdir()
    matrices = [drawn((n // part, m // part)) for (n, m), count in LLAMA.items() for _ in range(count)]
    kinds = ("q", "o", "k", "v", "gate", "up", "down")
    shards: list[dict[str, Tensor]] = [
        {f"model.layers.{i}.{kind}_proj.weight": one for kind, one in zip(kinds, matrices, strict=True)}
        for i in range(layers)
    ]
    outside = drawn((VOCABULARY // part, HIDDEN // part))
    shards.append({"model.embed_tokens.weight": outside, "lm_head.weight": outside})
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards):
        weight_map |= _shard(folder / f"model-{i:05}.safetensors", shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _shard(path: Path, tensors: dict[str, Tensor]) -> dict[str, str]:
    """Write one safetensors file; where each name lies."""
    entries, place = {}, 0
    for name, one in tensors.items():
        size = 2 * one.numel()
        entries[name] = {"dtype": "BF16", "shape": list(one.shape), "data_offsets": [place, place + size]}
        place += size
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for one in tensors.values():
            file.write(one.view(torch.int16).numpy().data)
    return dict.fromkeys(tensors, path.name)


def timed(command: list[str], threads: int) -> tuple[float, int]:
    """Wall seconds of a fresh process and its largest anonymous memory in bytes."""
    peak, began = 0, time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )
    while process.poll() is None:
        peak = max([peak, *_anonymous(process.pid)])
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {process.returncode}")
    return time.perf_counter() - began, peak


def _anonymous(process: int) -> Iterator[int]:
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return
    yield from (int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("RssAnon"))


def _row(name: str, ours: float, peer: float, goal: float) -> dict[str, Any]:
    return {"name": name, "unit": "s", "ours": ours, "peer": peer, "ratio": peer / ours, "goal": goal}


if __name__ == "__main__":
    sys.exit(main())
