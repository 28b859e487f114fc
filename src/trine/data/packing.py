"""A corpus and a tokenizer in, a folder of token shards out (format: `trine.data.shards`).

Each document becomes [begin-of-text] tokens [end-of-text], as far as the tokenizer has the two. A special token
written out in a text is encoded as text, so no document can end itself. Encoding uses every core; memory holds
one batch of documents.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from trine.data.config import PackConfig
from trine.data.corpus import read_ledger, read_rows
from trine.data.shards import ShardWriter, token_dtype, write_index
from trine.data.tokenizer import OpenTokenizer, open_tokenizer, vocabulary_size
from trine.manifest import MANIFEST, publish, read_manifest
from trine.progress import Progress, silent


def pack_corpus(
    config: PackConfig, corpus: Path, tokenizer: Path, out: Path, progress: Progress = silent
) -> dict[str, Any]:
    """Encode every set of `corpus` and publish the token folder `out`. Returns the ledger with token counts."""
    ledger = read_ledger(corpus)
    read_manifest(tokenizer, "tokenizer")
    opened = open_tokenizer(tokenizer)
    opened.tokenizer.encode_special_tokens = True
    total = sum(one["documents"] for one in ledger["sets"].values())
    by_source: Counter[str] = Counter()
    places = {source["name"]: place for place, source in enumerate(ledger["sources"])}
    done = 0
    with publish(out, "tokens") as folder:
        entries = {}
        for name, counts in ledger["sets"].items():
            dtype = token_dtype(vocabulary_size(opened.tokenizer))
            with ShardWriter(folder, name, dtype, config.shard_tokens) as writer:
                for rows in read_rows(corpus, name):
                    encode_rows(opened, rows, writer, places, by_source)
                    done += len(rows)
                    progress(done, total, "pack: documents")
            entries[name] = writer.summary()
            counts["tokens"] = entries[name]["tokens"]
        for source in ledger["sources"]:
            source["tokens"] = by_source[source["name"]]
        write_index(folder, entries, opened.token_bytes(), opened.bos, opened.eos, opened.sha256, list(places))
        shutil.copytree(tokenizer, folder / "tokenizer", ignore=shutil.ignore_patterns(MANIFEST))
        (folder / "ledger.json").write_text(json.dumps(ledger, indent=1, ensure_ascii=False) + "\n")
    return ledger


def encode_rows(
    opened: OpenTokenizer,
    rows: list[dict[str, str]],
    writer: ShardWriter,
    places: dict[str, int],
    by_source: Counter[str],
) -> None:
    begin = [opened.bos] if opened.bos is not None else []
    end = [opened.eos] if opened.eos is not None else []
    encodings = opened.tokenizer.encode_batch_fast([row["text"] for row in rows], add_special_tokens=False)
    for row, encoding in zip(rows, encodings, strict=True):
        tokens = np.array([*begin, *encoding.ids, *end], dtype=np.int64)
        writer.add(tokens, len(row["text"].encode()), places[row["source"]])
        by_source[row["source"]] += len(tokens)
