"""Sources in, a corpus out: cleaned, deduplicated documents in Parquet, and the ledger of what was kept and dropped.

A corpus folder holds, for each set, `SET-0000i.parquet` with the columns `text`, `source`, `path`, `messages` (of
conversations alone) and the fields that sources keep, and `ledger.json`; where there are any, `rejected.jsonl` (records
of conversations that were refused), `quarantine.jsonl` (what could not be read) and `dropped.parquet`. Documents
stream; memory holds a row group (at most about 64 MiB of text) per set, 16 bytes of hash per distinct document (about
100 bytes in a Python set), and what the steps of cleaning say they hold.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trine.data.cleaning import Cleaning
from trine.data.config import CorpusConfig, SourceConfig
from trine.data.corpus_files import DroppedFile, Rejected, SetWriter
from trine.data.document import BadRecord, Document, Dropped, Unwanted, cut
from trine.data.heldout import set_of
from trine.data.readings import (
    SKIP_HINT,
    Record,
    reading_order,
    records_of,
    refuse_bad,
    usable_files,
)
from trine.data.sources import BadFile
from trine.data.survey import Survey
from trine.errors import BadInput
from trine.manifest import publish, read_manifest
from trine.progress import Progress, silent


def build_corpus(config: CorpusConfig, out: Path, progress: Progress = silent) -> dict[str, Any]:
    """Read every source, clean, drop duplicates and publish the corpus folder `out`. Returns the ledger.

    What is held out is read first, so that it, or a near-duplicate of it, is never trained on. Raises BadInput, with
    every file that is seen to be bad before reading, and writes nothing then.
    """
    ordered = sorted(config.sources, key=lambda source: source.set == "train")
    files, bad = usable_files(ordered, config)
    with publish(out, "corpus") as folder:
        survey = Survey(config, folder / "survey")
        survey.read(ordered, files, progress)
        building = _Building(config, folder, bad, survey)
        order = reading_order(config, ordered)
        done, total = 0, sum(len(files[source.name]) for source, _ in order)
        for source, held in order:
            for path in files[source.name]:
                progress(done, total, f"corpus: files, {building.documents:,} documents")
                building.read(source, path, held)
                done += 1
        progress(total, total, f"corpus: files, {building.documents:,} documents")
        ledger = building.close([source.name for source in config.sources])
        (folder / "ledger.json").write_text(json.dumps(ledger, indent=1, ensure_ascii=False) + "\n")
    return ledger


class _Building:
    """A corpus in the making: writers by set, hashes seen, counts by source."""

    def __init__(self, config: CorpusConfig, folder: Path, bad: list[tuple[str, Path, str]], survey: Survey) -> None:
        self.config, self.folder, self.cleaning = config, folder, Cleaning(config, survey)
        self.duplicates = survey.duplicates or set[bytes]()
        self.fields = tuple(dict.fromkeys(name for source in config.sources for name in source.kept))
        self.writers: dict[str, SetWriter] = {}
        self.seen: set[bytes] = set()
        self.entries = {source.name: _entry(source) for source in config.sources}
        self.hashes = {source.name: hashlib.sha256() for source in config.sources}
        self.dropped = {source.name: Counter[str]() for source in config.sources}
        self.quarantined = Counter[str]()
        self.rejected, self.quarantine = Rejected(folder), Rejected(folder, "quarantine")
        self.dropped_file = DroppedFile(folder) if config.write_dropped else None
        self.skipped: list[dict[str, str]] = []
        self.documents = 0
        for source, path, reason in bad:
            self._bad_file(source, path, reason)

    def read(self, source: SourceConfig, path: Path | None, held: bool | None) -> None:
        """Take a file's documents, all or by whether they are held out; what is wrong counts once."""
        try:
            if self.config.bad_files == "skip" and path is not None:
                for record in records_of(source, path):
                    refuse_bad(source, record)
            for record in records_of(source, path):
                self._record(source, record, held)
        except BadFile as error:
            if self.config.bad_files == "stop":
                raise BadInput(f"{error}\n{SKIP_HINT}") from None
            if not held:
                self._bad_file(source.name, path or Path(), str(error))
            return
        self.entries[source.name]["files"] += path is not None and not held

    def _record(self, source: SourceConfig, record: Record, held: bool | None) -> None:
        if isinstance(record, Document):
            whole = record.messages is not None
            for piece in (record,) if whole else cut(record, self.config.max_document_bytes):
                self._place(source, piece, held)
            return
        if self.config.bad_files != "quarantine":
            refuse_bad(source, record)
        if held:
            return
        self.entries[source.name]["documents_in"] += 1
        if isinstance(record, Unwanted):
            self.dropped[source.name][record.reason] += 1
        elif source.chat is not None:
            self.dropped[source.name]["no usable conversation"] += 1
            self.rejected.add(source.name, record)
        else:
            self.quarantined[source.name] += 1
            self.quarantine.add(source.name, record)

    def _place(self, source: SourceConfig, document: Document, held: bool | None) -> None:
        """Clean a document and write it into its set, or note why not."""
        name = set_of(self.config, source, document)
        if held is not None and held == (name == "train"):
            return
        self.entries[source.name]["documents_in"] += 1
        try:
            passed = self._cleaned(source, document, name)
        except Exception as error:
            if self.config.bad_files != "quarantine":
                raise
            self.quarantined[source.name] += 1
            self.quarantine.add(source.name, BadRecord(document.path, f"{type(error).__name__}: {error}"))
            return
        if isinstance(passed, Dropped):
            self.dropped[source.name][passed.reason] += 1
            if self.dropped_file is not None:
                self.dropped_file.add(source.name, document.path, passed.reason, passed.detail, document.text)
            return
        self._write(source, passed, name)

    def _cleaned(self, source: SourceConfig, document: Document, name: str) -> Document | Dropped:
        too_short = Dropped("shorter than min_characters")
        if len(document.text.strip()) < self.config.min_characters:
            return too_short
        if document.messages is not None and len(document.text.encode()) > self.config.max_document_bytes:
            return Dropped("longer than max_document_bytes")
        if self.config.dedup == "exact":
            digest = document.digest()[:16]
            if digest in self.seen:
                return Dropped("exact duplicate")
            self.seen.add(digest)
        if self.duplicates and document.key(source.name) in self.duplicates:
            return Dropped("near-duplicate")
        passed = self.cleaning(document, train=name == "train")
        if isinstance(passed, Document) and len(passed.text.strip()) < self.config.min_characters:
            return too_short
        return passed

    def _write(self, source: SourceConfig, document: Document, name: str) -> None:
        if name not in self.writers:
            self.writers[name] = SetWriter(self.folder, name, self.fields)
        entry = self.entries[source.name]
        entry["bytes"] += self.writers[name].add(document, source.name)
        entry["documents"] += 1
        self.documents += 1
        self.hashes[source.name].update(document.digest())

    def _bad_file(self, source: str, path: Path, reason: str) -> None:
        if self.config.bad_files != "quarantine":
            self.skipped.append({"path": str(path), "reason": reason})
            return
        self.entries[source]["documents_in"] += 1
        self.quarantined[source] += 1
        self.quarantine.add(source, BadRecord(str(path), reason))

    def close(self, order: Iterable[str]) -> dict[str, Any]:
        """Finish every file; the ledger, sources in `order`."""
        sets = {name: self.writers[name].close() for name in sorted(self.writers)}
        self.rejected.close()
        self.quarantine.close()
        if self.dropped_file is not None:
            self.dropped_file.close()
        if "train" not in sets:
            raise BadInput("no training document is left; is every source held out, or every text too short?")
        for name, entry in self.entries.items():
            entry |= {"sha256": self.hashes[name].hexdigest(), "dropped": dict(self.dropped[name])}
            if self.config.bad_files == "quarantine":
                entry["quarantined"] = self.quarantined[name]
        figures = self.cleaning.figures()
        return (
            {"sources": [self.entries[name] for name in order], "sets": sets, "skipped_files": self.skipped}
            | ({"cleaning": figures} if figures else {})
            | self.quarantine.entry()
            | self.rejected.entry()
        )


def _entry(source: SourceConfig) -> dict[str, Any]:
    chat = {} if source.chat is None else {"conversations": True}
    return chat | {
        "name": source.name,
        "set": source.set,
        "path": source.path,
        "licence": source.licence,
        "files": 0,
        "documents_in": 0,
        "documents": 0,
        "bytes": 0,
    }


def read_ledger(corpus: Path) -> dict[str, Any]:
    """The ledger of a corpus folder. Raises BadInput for another folder."""
    read_manifest(corpus, "corpus")
    return json.loads((corpus / "ledger.json").read_text())


def read_rows(corpus: Path, name: str, batch_rows: int = 256) -> Iterator[list[dict[str, Any]]]:
    """Rows (`text`, `source`, `path`, and `messages` or None) of one set, in order, in batches."""
    for path in sorted(corpus.glob(f"{name}-{'[0-9]' * 5}.parquet")):
        try:
            for batch in pq.ParquetFile(path).iter_batches(batch_rows):
                yield batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise BadInput(f"{path}: cannot be read ({str(error).splitlines()[0]}); build the corpus again") from None
