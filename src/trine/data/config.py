"""Configs of the data stages: corpus, tokenizer, packed tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trine.config.base import Count, Frozen
from trine.errors import nearest

SetName = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
BUILTINS = ("builtin:python-docs",)


class ChatConfig(Frozen):
    """Where a record holds its conversation. With nothing named, the keys of each file's first record tell: a list of
    messages under `messages` or `conversations`, or one of the known pairs of question and answer."""

    conversation: str | None = None
    """Key of the list of messages, each with `role` and `content`, or with `from` and `value`."""
    question: str | None = None
    """Key of the question or instruction, where a record is one question and one answer."""
    context: str | None = None
    """Key of a text that follows the question where it is not blank."""
    answer: str | None = None
    system: str | None = None
    """Key of the system message; a record in which it is blank or absent has none."""

    @model_validator(mode="after")
    def _one_kind(self) -> ChatConfig:
        pair = (self.question, self.answer)
        if (self.question is None) != (self.answer is None):
            raise ValueError("question and answer belong together; name both keys, or neither")
        if self.conversation is not None and any(pair):
            raise ValueError("conversation and question with answer exclude each other")
        if not any(pair) and self.context is not None:
            raise ValueError("context follows a question; name question and answer as well")
        return self


class SourceConfig(Frozen):
    """One origin of text or conversations: a file, a folder, a glob, or text that ships with Python."""

    name: str = SetName
    path: str = Field(min_length=1)
    """File, folder or glob of .txt .md .jsonl .parquet (also .gz, .zst), or builtin:python-docs; with `chat`, of
    .jsonl .json .parquet."""
    licence: str = "unknown"
    """Recorded in the ledger."""
    set: str = Field(default="train", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
    """train, or the name of an evaluation set these documents are held out for."""
    include: tuple[str, ...] = ("*",)
    """Globs on the path below `path` (or the file name); a file must match one."""
    exclude: tuple[str, ...] = ()
    text_field: str = "text"
    """The text's key in JSONL, its column in Parquet."""
    chat: ChatConfig | None = None
    """The records are conversations, trained on their answers alone. `{}` finds out how each file holds them."""
    documents: Literal["file", "line"] = "file"
    """In text files: one document per file, or one per non-empty line."""
    strip: Literal["none", "gutenberg"] = "none"
    """gutenberg: drop Project Gutenberg's header and footer."""

    @model_validator(mode="after")
    def _known_builtin(self) -> SourceConfig:
        if self.path.startswith("builtin:") and self.path not in BUILTINS:
            close = nearest(self.path, BUILTINS)
            raise ValueError(f"path '{self.path}' is not one of {', '.join(BUILTINS)}{close}")
        if self.path in BUILTINS and self.chat is not None:
            raise ValueError(f"chat: {self.path} is text and holds no conversation")
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
    """A longer text is cut at line ends into several documents, so memory stays flat; a longer conversation is
    dropped."""
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
    special_tokens: tuple[str, ...] = ()
    """More special tokens for a tokenizer trained here, such as those of a chat template. Those of chatml are added
    when it is the template."""
    chat_template: str | None = None
    """How conversations become text: chatml, plain, or a Jinja file. Default: the one in the folder `path`; else, where
    the corpus holds conversations, chatml, or plain for an existing tokenizer without chatml's tokens."""
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
