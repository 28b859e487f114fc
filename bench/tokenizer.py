"""Megabytes of text per second through the packing stage's encoder, beside the tokenizers library's own batches.

    python bench/tokenizer.py [--megabytes N] [--rounds N] [--json FILE]

Ours is `trine.data.packing.encode_rows` on the batches that the corpus reader makes, begin and end tokens, byte counts
and the shard file included. The peer is `Tokenizer.encode_batch_fast` on the same texts in one list, its tokens thrown
away. Both use every core and the same tokenizer, Trinity's pre-tokenizer with 8,192 entries trained on the text.
The text is Python's own documentation, repeated to the size asked for. Rounds alternate; medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from table import finish

from trine.data.config import CorpusConfig, SourceConfig, TokenizerConfig
from trine.data.corpus import build_corpus, read_rows
from trine.data.packing import encode_rows
from trine.data.shards import ShardWriter, token_dtype
from trine.data.tokenizer import OpenTokenizer, open_tokenizer, train_tokenizer, vocabulary_size

GOAL = 0.9
Rows = list[dict[str, str]]


def ours(opened: OpenTokenizer, batches: list[Rows], folder: Path) -> float:
    started = time.perf_counter()
    dtype = token_dtype(vocabulary_size(opened.tokenizer))
    with ShardWriter(folder, "train", dtype, 100_000_000) as writer:
        for rows in batches:
            encode_rows(opened, rows, writer, {"python": 0}, Counter())
    return time.perf_counter() - started


def theirs(opened: OpenTokenizer, texts: list[str]) -> float:
    started = time.perf_counter()
    opened.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = SourceConfig(name="python", path="builtin:python-docs")
        build_corpus(CorpusConfig(sources=(source,)), folder / "corpus")
        train_tokenizer(TokenizerConfig(), folder / "corpus", folder / "tokenizer")
        opened = open_tokenizer(folder / "tokenizer")
        opened.tokenizer.encode_special_tokens = True
        once = list(read_rows(folder / "corpus", "train"))
        size = sum(len(row["text"].encode()) for rows in once for row in rows)
        batches = once * max(1, round(options.megabytes * 1e6 / size))
        size *= len(batches) // len(once)
        texts = [row["text"] for rows in batches for row in rows]
        times = []
        for turn in range(-1, options.rounds):  # the first turn warms caches up
            out = folder / f"round-{turn + 1}"
            out.mkdir()
            found = ours(opened, batches, out), theirs(opened, texts)
            times += [found] if turn >= 0 else []
    mine, peer = (size / 1e6 / statistics.median(column) for column in zip(*times, strict=True))
    row = {
        "name": "tokenizer/encode",
        "unit": "MB/s",
        "ours": round(mine, 2),
        "peer": round(peer, 2),
        "ratio": round(mine / peer, 3),
        "goal": GOAL,
    }
    print(f"{'row':18} {'trine':>8} {'tokenizers':>10} {'ratio':>6} {'goal':>5}   {size / 1e6:.0f} MB")
    print(f"{row['name']:18} {row['ours']:8} {row['peer']:10} {row['ratio']:6} {row['goal']:5}")
    return finish([row], options.json)


if __name__ == "__main__":
    sys.exit(main())
