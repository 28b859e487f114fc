"""A corpus and a tokenizer in, a folder of token shards out (format: `trine.data.shards`).

Each document becomes [begin-of-text] tokens [end-of-text], as far as the tokenizer has the two. A special token
written out in a text is encoded as text, so no document can end itself. A conversation becomes what the tokenizer's
chat template makes of it, with marks on its answers; one that the template does not take is left out and noted.
Encoding uses every core; memory holds one batch of documents.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from trine.data.chat import ChatRenderer, Unrenderable
from trine.data.config import PackConfig
from trine.data.conversations import from_json
from trine.data.corpus import read_ledger, read_rows
from trine.data.corpus_files import Rejected
from trine.data.document import BadRecord
from trine.data.shards import ShardWriter, token_dtype, write_index
from trine.data.tokenizer import OpenTokenizer, open_tokenizer, vocabulary_size
from trine.errors import BadInput
from trine.manifest import MANIFEST, publish, read_manifest
from trine.progress import Progress, silent

_REFUSED = "the chat template does not take it"


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
        told = any(source.get("conversations") for source in ledger["sources"])
        chats = Chats(tokenizer, ledger, folder) if told else None
        entries = {}
        for name, counts in ledger["sets"].items():
            dtype = token_dtype(vocabulary_size(opened.tokenizer))
            with ShardWriter(folder, name, dtype, config.shard_tokens) as writer:
                for rows in read_rows(corpus, name):
                    kept = rows if chats is None else chats.encode(rows, counts)
                    encode_rows(opened, kept, writer, places, by_source)
                    done += len(rows)
                    progress(done, total, "pack: documents")
            entries[name] = writer.summary()
            counts |= {key: entries[name][key] for key in ("tokens", "trained") if key in entries[name]}
        for source in ledger["sources"]:
            source["tokens"] = by_source[source["name"]]
        if chats is not None:
            chats.close()
        write_index(folder, entries, opened.token_bytes(), opened.bos, opened.eos, opened.sha256, list(places))
        shutil.copytree(tokenizer, folder / "tokenizer", ignore=shutil.ignore_patterns(MANIFEST))
        (folder / "ledger.json").write_text(json.dumps(ledger, indent=1, ensure_ascii=False) + "\n")
    return ledger


class Chats:
    """The conversations of a corpus on their way into shards; those refused are taken out of the ledger's counts."""

    def __init__(self, tokenizer: Path, ledger: dict[str, Any], folder: Path) -> None:
        self._renderer = ChatRenderer(tokenizer)
        self._ledger, self._rejected = ledger, Rejected(folder)
        self._sources = {source["name"]: source for source in ledger["sources"]}

    def encode(self, rows: list[dict[str, Any]], counts: dict[str, int]) -> list[dict[str, Any]]:
        """`rows` of the set that `counts` is about, each conversation with what it became under `rendered`."""
        told = [row for row in rows if row.get("messages") is not None]
        for row, one in zip(told, self._renderer.encode([from_json(row["messages"]) for row in told]), strict=True):
            if isinstance(one, Unrenderable):
                self._refuse(row, counts, str(one))
            else:
                row["rendered"] = one
        return [row for row in rows if row.get("messages") is None or "rendered" in row]

    def _refuse(self, row: dict[str, Any], counts: dict[str, int], reason: str) -> None:
        source, size = self._sources[row["source"]], len(row["text"].encode())
        for entry in (source, counts):
            entry["documents"] -= 1
            entry["bytes"] -= size
        source["dropped"][_REFUSED] = source["dropped"].get(_REFUSED, 0) + 1
        self._rejected.add(source["name"], BadRecord(row["path"], reason))
        if not source["documents"]:
            raise BadInput(f"{row['path']}: {reason}; the chat template takes no conversation of '{source['name']}'")

    def close(self) -> None:
        """Write what was refused into the ledger, in place of what the corpus stage refused."""
        self._rejected.close()
        self._ledger.pop("rejected", None)
        self._ledger |= self._rejected.entry()


def encode_rows(
    opened: OpenTokenizer,
    rows: list[dict[str, Any]],
    writer: ShardWriter,
    places: dict[str, int],
    by_source: Counter[str],
) -> None:
    """Append the documents of `rows` to the set, those with `rendered` as they are."""
    begin = [opened.bos] if opened.bos is not None else []
    end = [opened.eos] if opened.eos is not None else []
    texts = [row["text"] for row in rows if "rendered" not in row]
    encodings = iter(opened.tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    for row in rows:
        size, place = len(row["text"].encode()), places[row["source"]]
        if "rendered" in row:
            for one in row["rendered"]:
                writer.add(one.tokens, size, place, one.trained)
                by_source[row["source"]] += len(one.tokens)
                size = 0
            continue
        tokens = np.array([*begin, *next(encodings).ids, *end], dtype=np.int64)
        writer.add(tokens, size, place)
        by_source[row["source"]] += len(tokens)
