"""What must be known of all documents before the first can be cleaned: counted in a reading of its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from trine.data.config import CorpusConfig, SourceConfig
from trine.data.document import Document
from trine.data.heldout import set_of
from trine.data.readings import SKIP_HINT, Files, records_of
from trine.data.sources import BadFile
from trine.data.words import Hashes
from trine.errors import BadInput
from trine.progress import Progress

if TYPE_CHECKING:
    from trine.data.boilerplate import ParagraphCount
    from trine.data.decontaminate import EvaluationGrams


class Survey:
    """Paragraphs that companies repeat, the n-grams of evaluation sets with how common they are in training, and, where
    many machines look for them, near-duplicates."""

    def __init__(self, config: CorpusConfig, folder: Path) -> None:
        """`folder`: for what does not stay in memory; removed when the reading is done."""
        self._config, self._folder = config, folder
        self.duplicates: set[bytes] | None = None
        self._paragraphs: ParagraphCount | None = None
        self.repeated: Hashes | None = None
        self.grams: EvaluationGrams | None = None
        if config.boilerplate is not None:
            from trine.data.boilerplate import ParagraphCount

            self._paragraphs = ParagraphCount(config.boilerplate, folder / "paragraphs")

    def read(self, sources: list[SourceConfig], files: Files, progress: Progress) -> None:
        """Read evaluation sets, and every document where something has to be counted."""
        if self._config.decontaminate is not None:
            from trine.data.decontaminate import EvaluationGrams

            progress(0, None, "evaluation sets: reading")
            self.grams = EvaluationGrams(self._config.decontaminate)
        chosen = [(source, path) for source in sources if self._needs(source) for path in files[source.name]]
        for done, (source, path) in enumerate(chosen):
            progress(done, len(chosen), "survey: files")
            try:
                for record in records_of(source, path):
                    if isinstance(record, Document):
                        self._count(source, record)
            except BadFile as error:
                if self._config.bad_files == "stop":
                    raise BadInput(f"{error}\n{SKIP_HINT}") from None
        if self._paragraphs is not None:
            self.repeated = self._paragraphs.repeated()
        if self._config.near_duplicates is not None and self._config.near_duplicates.executor is not None:
            self.duplicates = self._on_many(sources, files, progress)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _on_many(self, sources: list[SourceConfig], files: Files, progress: Progress) -> set[bytes]:
        try:
            from trine.data.near_many import find_duplicates
        except ImportError as error:
            raise BadInput(
                f"near_duplicates.executor needs datatrove: pip install 'trine[cluster]' ({error})"
            ) from None
        progress(0, None, "near-duplicates: tasks of datatrove")
        return find_duplicates(self._config, sources, files, self._folder)

    def _needs(self, source: SourceConfig) -> bool:
        return (self._paragraphs is not None and bool(source.kept)) or (self._counts_grams() and source.set == "train")

    def _counts_grams(self) -> bool:
        return self._config.decontaminate is not None and self._config.decontaminate.common_in is not None

    def _count(self, source: SourceConfig, document: Document) -> None:
        if self._paragraphs is not None:
            self._paragraphs.add(document)
        if self.grams is not None and self._counts_grams() and set_of(self._config, source, document) == "train":
            self.grams.count(document)
