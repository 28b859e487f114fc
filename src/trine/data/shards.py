"""Tokens on disk: one writer, one memory-mapped reader.

A token folder holds, for each set (`train`, `heldout`, ...) and shard number s:

    SET-0000s.bin   the tokens of the shard's documents, one after the other, without padding or header;
                    little-endian uint16 when the vocabulary has at most 65,536 entries, else uint32
    SET-0000s.idx   little-endian uint64 [documents + 1]: where each document begins in the .bin, counted in
                    tokens, and last the number of tokens
    SET-0000s.src   little-endian uint16 [documents]: each document's place in the index's list of sources; there
                    when the folder names its sources
    SET-0000s.msk   a bit per token, the first in the lowest bit of the first byte: 1 for a token to train on, 0 for
                    one that is only read; there when the shard has one of the latter
    token_bytes.bin little-endian uint16 [vocabulary]: UTF-8 bytes a token stands for, 0 for special tokens
    index.json      {"dtype", "vocab_size", "tokenizer_sha256", "bos", "eos", "sources": [NAME],
                    "sets": {SET: {"tokens", "documents", "bytes", "shards": [{"file", "tokens", "documents"}]}}};
                    sets and shards with a .msk also have "trained", the number of its ones (of a set: over all
                    shards)

`tokenizer/` (a copy), `ledger.json` and `manifest.json` make the folder complete. A document is never cut
by a shard. Reading needs numpy only; the tokens are mapped, never loaded whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from trine.errors import BadInput

_SET = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16 for at most 65,536 tokens, else uint32, little-endian."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class ShardWriter:
    """Appends the documents of one set to shard files in `folder`."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype[Any], shard_tokens: int) -> None:
        self._folder, self._name, self._dtype, self._limit = folder, name, dtype, shard_tokens
        self._offsets: list[int] = [0]
        self._sources: list[int] = []
        self._untrained: list[np.ndarray] = []
        self._file = None
        self.shards: list[dict[str, Any]] = []
        self.bytes = 0

    def add(self, tokens: np.ndarray, text_bytes: int, source: int = 0, trained: np.ndarray | None = None) -> None:
        """Append one document: its `tokens`, the bytes of text they stand for, the place of its source, and which of
        the tokens to train on (bool; None: all)."""
        if self._file is not None and self._offsets[-1] + len(tokens) > self._limit:
            self._close_shard()
        if self._file is None:
            self._file = (self._folder / f"{self._stem()}.bin").open("wb")
        self._file.write(np.ascontiguousarray(tokens, dtype=self._dtype).tobytes())
        if trained is not None:
            self._untrained.append(self._offsets[-1] + np.flatnonzero(~trained))
        self._offsets.append(self._offsets[-1] + len(tokens))
        self._sources.append(source)
        self.bytes += text_bytes

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._close_shard()

    def summary(self) -> dict[str, Any]:
        """The set's entry of index.json."""
        masked = any("trained" in shard for shard in self.shards)
        trained = sum(shard.get("trained", shard["tokens"]) for shard in self.shards)
        return {
            "tokens": sum(shard["tokens"] for shard in self.shards),
            **({"trained": trained} if masked else {}),
            "documents": sum(shard["documents"] for shard in self.shards),
            "bytes": self.bytes,
            "shards": self.shards,
        }

    def _stem(self) -> str:
        return f"{self._name}-{len(self.shards):05}"

    def _close_shard(self) -> None:
        assert self._file is not None
        self._file.close()
        self._file = None
        stem = self._stem()
        (self._folder / f"{stem}.idx").write_bytes(np.asarray(self._offsets, dtype="<u8").tobytes())
        (self._folder / f"{stem}.src").write_bytes(np.asarray(self._sources, dtype="<u2").tobytes())
        tokens, documents = self._offsets[-1], len(self._offsets) - 1
        shard = {"file": f"{stem}.bin", "tokens": tokens, "documents": documents}
        if untrained := sum(map(len, self._untrained)):
            bits = np.ones(tokens, dtype=bool)
            bits[np.concatenate(self._untrained)] = False
            (self._folder / f"{stem}.msk").write_bytes(np.packbits(bits, bitorder="little").tobytes())
            shard["trained"] = tokens - untrained
        self.shards.append(shard)
        self._offsets, self._sources, self._untrained = [0], [], []


class TokenSet:
    """One set's documents, memory-mapped over all its shards."""

    def __init__(
        self, folder: Path, entry: dict[str, Any], dtype: np.dtype[Any], source_names: tuple[str, ...] = ()
    ) -> None:
        self.source_names = source_names
        self.tokens, self.documents, self.bytes = entry["tokens"], entry["documents"], entry["bytes"]
        self.trained: int | None = entry.get("trained")
        """Tokens to train on; None: all, as in sets without conversations."""
        self._maps: list[np.ndarray] = []
        self._masks: list[np.ndarray | None] = []
        starts, shard_of, sources = [], [], []
        for number, shard in enumerate(entry["shards"]):
            path = folder / Path(shard["file"]).name
            index = path.with_suffix(".idx")
            _check_size(path, shard["tokens"] * dtype.itemsize)
            _check_size(index, (shard["documents"] + 1) * 8)
            offsets = np.fromfile(index, dtype="<u8").astype(np.int64)
            self._maps.append(np.memmap(path, dtype=dtype, mode="r"))
            self._masks.append(_map_mask(path.with_suffix(".msk"), shard))
            starts.append(offsets)
            shard_of.append(np.full(shard["documents"], number, dtype=np.int32))
            if source_names:
                sources.append(_read_sources(path.with_suffix(".src"), shard["documents"], len(source_names)))
        self._shard = np.concatenate(shard_of) if shard_of else np.zeros(0, np.int32)
        self._begin = np.concatenate([o[:-1] for o in starts]) if starts else np.zeros(0, np.int64)
        self.lengths = np.concatenate([np.diff(o) for o in starts]) if starts else np.zeros(0, np.int64)
        """Tokens of each document, int64 [documents]."""
        self.sources = np.concatenate(sources) if sources else np.zeros(len(self.lengths), np.int64)
        """Place in `source_names` of each document, int64 [documents]; 0 where no source is named."""

    @cached_property
    def source_tokens(self) -> np.ndarray:
        """Tokens of each source, int64 [sources]."""
        counts = np.zeros(max(1, len(self.source_names)), dtype=np.int64)
        np.add.at(counts, self.sources, self.lengths)
        return counts[: len(self.source_names)]

    def read(self, document: int, begin: int, end: int) -> np.ndarray:
        """Tokens [begin, end) of one document, as stored."""
        first = self._begin[document]
        return self._maps[self._shard[document]][first + begin : first + end]

    def read_trained(self, document: int, begin: int, end: int) -> np.ndarray:
        """Whether to train on each of the tokens [begin, end) of one document, bool."""
        mask = self._masks[self._shard[document]]
        if mask is None:
            return np.ones(end - begin, dtype=bool)
        first = self._begin[document] + begin
        bits = np.unpackbits(mask[first // 8 : (first + end - begin + 7) // 8], bitorder="little")
        return bits[first % 8 : first % 8 + end - begin].astype(bool)

    def as_targets(self, tokens: np.ndarray, document: int, begin: int) -> np.ndarray:
        """`tokens` of a document from `begin` on as targets, int64: -1 for those that are not trained on."""
        targets = tokens.astype(np.int64)
        if self.trained is not None:
            targets[~self.read_trained(document, begin, begin + len(tokens))] = -1
        return targets


def _map_mask(path: Path, shard: dict[str, Any]) -> np.ndarray | None:
    if "trained" not in shard:
        return None
    _check_size(path, -(-shard["tokens"] // 8))
    return np.memmap(path, dtype=np.uint8, mode="r")


def _read_sources(path: Path, documents: int, names: int) -> np.ndarray:
    _check_size(path, documents * 2)
    sources = np.fromfile(path, dtype="<u2").astype(np.int64)
    if documents and sources.max() >= names:
        raise BadInput(f"{path}: names source {sources.max()}, the index lists {names}; pack it again")
    return sources


def _check_size(path: Path, expected: int) -> None:
    if not path.is_file():
        raise BadInput(f"{path}: missing; the token folder is not whole, pack it again")
    if path.stat().st_size != expected:
        found = path.stat().st_size
        raise BadInput(f"{path}: {found} bytes, the index says {expected}; the file is damaged, pack it again")


class TokenShards:
    """A token folder: `sets` by name, the vocabulary, what each token weighs in bytes."""

    def __init__(self, folder: Path) -> None:
        """Open `folder`. Raises BadInput naming the file when something is missing or damaged."""
        self.folder = folder
        path = folder / "index.json"
        try:
            index = json.loads(path.read_text())
            self.dtype = np.dtype({"uint16": "<u2", "uint32": "<u4"}[index["dtype"]])
            self.vocab_size: int = index["vocab_size"]
            self.bos: int | None = index["bos"]
            self.eos: int | None = index["eos"]
            self.tokenizer_sha256: str = index["tokenizer_sha256"]
            entries: dict[str, Any] = index["sets"]
            self.source_names = tuple(map(str, index.get("sources", ())))
        except OSError as error:
            raise BadInput(f"{path}: cannot be read ({error.strerror}); expected a token folder") from None
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{path}: not the index of a token folder ({error!r})") from None
        for name in entries:
            if not _SET.match(name):
                raise BadInput(f"{path}: '{name}' is not a set's name")
        self.sets = {name: TokenSet(folder, entry, self.dtype, self.source_names) for name, entry in entries.items()}

    @cached_property
    def token_bytes(self) -> torch.Tensor:
        """UTF-8 bytes of each token, int64 [vocab_size]."""
        path = self.folder / "token_bytes.bin"
        _check_size(path, self.vocab_size * 2)
        return torch.from_numpy(np.fromfile(path, dtype="<u2").astype(np.int64))


def write_index(
    folder: Path,
    sets: dict[str, dict[str, Any]],
    token_bytes: np.ndarray,
    bos: int | None,
    eos: int | None,
    tokenizer_sha256: str,
    sources: Sequence[str] = (),
) -> None:
    """Write index.json and token_bytes.bin; `token_bytes` has one entry per token of the vocabulary, `sources` the
    names that documents were added under."""
    vocab_size = len(token_bytes)
    index = {
        "dtype": token_dtype(vocab_size).name,
        "vocab_size": vocab_size,
        "tokenizer_sha256": tokenizer_sha256,
        "bos": bos,
        "eos": eos,
        "sources": list(sources),
        "sets": sets,
    }
    (folder / "token_bytes.bin").write_bytes(np.asarray(token_bytes, dtype="<u2").tobytes())
    (folder / "index.json").write_text(json.dumps(index, indent=1) + "\n")
