"""Tokens per second of CPU time that one thread packs into training batches; no peer, limits of our own.

python bench/loader.py [--rounds N] [--json FILE]

The set is 64 M tokens in documents of log-normal length (median 600 tokens); a batch is 8 sequences of 4,096.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from table import finish

from trine.data.loader import Stream, make_batch
from trine.data.pack import TokenStream
from trine.data.planned import PlannedStream, Stage
from trine.data.shards import ShardWriter, TokenSet, TokenShards, write_index

TOKENS, LENGTH, ROWS, BATCHES = 64_000_000, 4096, 8, 100
GOALS = {"loader/carry_over": 20e6, "loader/rsdb": 10e6}


def make_set(folder: Path) -> TokenSet:
    rng = np.random.default_rng(0)
    text = rng.integers(0, 32_000, TOKENS).astype("<u2")
    lengths = np.maximum(1, rng.lognormal(np.log(600), 1.0, TOKENS // 500)).astype(np.int64)
    ends = np.cumsum(lengths)
    with ShardWriter(folder, "train", text.dtype, 1 << 25) as writer:
        for document in np.split(text, ends[ends < TOKENS]):
            writer.add(document, len(document))
    write_index(folder, {"train": writer.summary()}, np.ones(32_000, np.uint16), None, None, "none")
    return TokenShards(folder).sets["train"]


def rate(stream: Stream, begin: int) -> float:
    """Tokens per CPU second over BATCHES batches from sequence `begin` on; the set lies in the page cache."""
    started = time.thread_time()
    for i in range(BATCHES):
        make_batch(stream, begin + i * ROWS, ROWS)
    return BATCHES * ROWS * LENGTH / (time.thread_time() - started)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rates: dict[str, list[float]] = {name: [] for name in GOALS}
    with tempfile.TemporaryDirectory() as folder:
        documents = make_set(Path(folder))
        streams = {
            "loader/carry_over": TokenStream(documents, LENGTH, 0),
            "loader/rsdb": PlannedStream(documents, [Stage(0, LENGTH, "rsdb")], 0),
        }
        for turn in range(-1, options.rounds):  # the first turn warms caches up
            for name, stream in streams.items():
                found = rate(stream, (turn + 1) * BATCHES * ROWS)
                if turn >= 0:
                    rates[name].append(found)
    rows = []
    for name, goal in GOALS.items():
        ours = statistics.median(rates[name])
        ratio = round(ours / goal, 3)
        rows.append({"name": name, "unit": "tok/s", "ours": round(ours), "peer": None, "ratio": ratio, "goal": 1.0})
        print(f"{name:18} {ours / 1e6:7.1f} M tok/s   goal {goal / 1e6:.0f} M   share {ratio}")
    return finish(rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
