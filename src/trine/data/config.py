"""Configs of the data stages: corpus, tokenizer, packed tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trine.config.base import Count, Frozen
from trine.errors import nearest

SetName = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
BUILTINS = ("builtin:python-docs",)


class SourceConfig(Frozen):
    """One origin of text: a file, a folder, a glob, or text that ships with Python."""

    name: str = SetName
    path: str = Field(min_length=1)
    """File, folder or glob of .txt .md .jsonl .parquet (also .gz, .zst), or builtin:python-docs."""
    licence: str = "unknown"
    """Recorded in the ledger."""
    set: str = Field(default="train", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
    """train, or the name of an evaluation set these documents are held out for."""
    include: tuple[str, ...] = ("*",)
    """Globs on the path below `path` (or the file name); a file must match one."""
    exclude: tuple[str, ...] = ()
    text_field: str = "text"
    """The text's key in JSONL, its column in Parquet."""
    documents: Literal["file", "line"] = "file"
    """In text files: one document per file, or one per non-empty line."""
    strip: Literal["none", "gutenberg"] = "none"
    """gutenberg: drop Project Gutenberg's header and footer."""

    @model_validator(mode="after")
    def _known_builtin(self) -> SourceConfig:
        if self.path.startswith("builtin:") and self.path not in BUILTINS:
            close = nearest(self.path, BUILTINS)
            raise ValueError(f"path '{self.path}' is not one of {', '.join(BUILTINS)}{close}")
        return self


class CorpusConfig(Frozen):
    """Text in, deduplicated documents and a ledger out."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    heldout_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training documents, chosen by the hash of their text, moved to the set `heldout`."""
    dedup: Literal["exact", "none"] = "exact"
    """exact: a text seen before is dropped; held-out texts win over training texts."""
    min_characters: Count = Field(default=1, ge=1)
    """Shorter documents are dropped, with that reason in the ledger."""
    max_document_bytes: Count = Field(default=8 << 20, ge=1 << 10)
    """A longer text is cut at line ends into several documents, so memory stays flat."""
    bad_files: Literal["stop", "skip"] = "stop"
    """What a file that cannot be read does: stop the stage (exit 2), or be skipped and listed in the ledger."""

    @model_validator(mode="after")
    def _names_differ(self) -> CorpusConfig:
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources are named '{name}'; names must differ")
        return self


class TokenizerConfig(Frozen):
    """A byte-level BPE with Trinity's pre-tokenizer, trained on the corpus, or one that exists."""

    path: str | None = None
    """An existing tokenizer.json (or a folder with one) to use instead of training one."""
    corpus: str | None = None
    """Folder of the corpus stage. Default: corpus/ in the run folder."""
    vocab_size: Count = Field(default=8192, ge=259)
    """256 bytes, the special tokens, and merges. Trinity: 200,000."""
    min_frequency: int = Field(default=2, ge=1)
    sample_bytes: Count | None = Field(default=10_000_000_000, ge=1)
    """Train on at most this much text, taken evenly over the corpus; null takes all."""


class PackConfig(Frozen):
    """Documents in, memory-mapped token shards out."""

    corpus: str | None = None
    """Folder of the corpus stage. Default: corpus/ in the run folder."""
    tokenizer: str | None = None
    """Folder of the tokenizer stage. Default: tokenizer/ in the run folder."""
    shard_tokens: Count = Field(default=100_000_000, ge=1024)
    """Tokens in one shard file, at most; a document is never cut by a shard."""
