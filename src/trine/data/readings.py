"""Which files a corpus reads, in which order, and what each one's records are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trine.data.chat_sources import read_conversations
from trine.data.config import CorpusConfig, SourceConfig
from trine.data.document import BadRecord, Document, Unwanted
from trine.data.filings import read_filings
from trine.data.heldout import held_out_first
from trine.data.python_docs import python_docs
from trine.data.sources import BadFile, endings_of, inspect, list_files, read_documents
from trine.errors import BadInput

Record = Document | BadRecord | Unwanted
Files = dict[str, list[Path | None]]
"""By source; None stands for what is built in."""
SKIP_HINT = "nothing was written; mend or remove it, or leave such files out with --corpus.bad_files skip"
_SHOWN = 20


def usable_files(sources: list[SourceConfig], config: CorpusConfig) -> tuple[Files, list[tuple[str, Path, str]]]:
    """Files by source (None for what is built in), after a look at each one's head; bad ones raise together, or come
    back with source and reason."""
    files: Files = {}
    bad: list[tuple[str, Path, str]] = []
    for source in sources:
        if source.path.startswith("builtin:"):
            files[source.name] = [None]
            continue
        files[source.name] = []
        for path in list_files(source):
            try:
                inspect(path, endings_of(source))
                files[source.name].append(path)
            except BadFile as error:
                bad.append((source.name, path, str(error)))
    if bad and config.bad_files == "stop":
        lines = [text for _, _, text in bad[:_SHOWN]]
        if len(bad) > _SHOWN:
            lines.append(f"... and {len(bad) - _SHOWN} more")
        raise BadInput("\n".join([*lines, SKIP_HINT]))
    return files, bad


def reading_order(config: CorpusConfig, sources: list[SourceConfig]) -> list[tuple[SourceConfig, bool | None]]:
    """(source, which of its documents) in the order of reading: True takes those held out, False the others, None all.

    Sets other than `train` come first. A training source is read twice where what is held out of it must come before
    the rest, for that to win over near-duplicates or documents of the same text.
    """
    training = [source for source in sources if source.set == "train"]
    others: list[tuple[SourceConfig, bool | None]] = [(one, None) for one in sources if one.set != "train"]
    if not held_out_first(config):
        return others + [(one, None) for one in training]
    return others + [(one, True) for one in training] + [(one, False) for one in training]


def records_of(source: SourceConfig, path: Path | None) -> Iterator[Record]:
    """The records of one file, or of what is built in."""
    if path is None:
        return python_docs()
    if source.filings is not None:
        return read_filings(source, path)
    return read_documents(source, path) if source.chat is None else read_conversations(source, path)


def refuse_bad(source: SourceConfig, record: Record) -> None:
    """Raise BadFile for a record that makes its file bad: a conversation may be refused alone."""
    if isinstance(record, BadRecord) and source.chat is None:
        raise BadFile(f"{record.path}: {record.reason}")
