"""The steps a document passes after it was read: each hands on a document, or says why it is dropped.

Order: quality, personal data, evaluation sets, near-duplicates, boilerplate. What drops whole documents cheaply comes
first; a document dropped later than boilerplate could take the one kept copy of a paragraph with it, so that is last.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from trine.data.config import CorpusConfig
from trine.data.document import Document, Dropped
from trine.data.survey import Survey


class Step(Protocol):
    """One step; it may remember documents that passed it before."""

    def __call__(self, document: Document, /) -> Document | Dropped: ...

    def figures(self) -> dict[str, Any]:
        """What the step did, for the ledger."""
        ...


class Cleaning:
    """The steps that a config switches on; without any, every document passes as it is."""

    def __init__(self, config: CorpusConfig, survey: Survey) -> None:
        self._steps = dict(_steps(config, survey))

    def __call__(self, document: Document, *, train: bool) -> Document | Dropped:
        """`document` after every step; evaluation sets are looked for in what is trained on alone."""
        for name, step in self._steps.items():
            if name == "decontaminate" and not train:
                continue
            passed = step(document)
            if isinstance(passed, Dropped):
                return passed
            document = passed
        return document

    def figures(self) -> dict[str, Any]:
        """What the steps did, by step."""
        return {name: step.figures() for name, step in self._steps.items()}


def _steps(config: CorpusConfig, survey: Survey) -> Iterator[tuple[str, Step]]:
    if config.quality is not None:
        from trine.data.quality import Quality

        yield "quality", Quality(config.quality)
    if config.personal != "off":
        from trine.data.personal import PersonalData

        yield "personal", PersonalData(config.personal, config.personal_kinds)
    if config.decontaminate is not None:
        from trine.data.decontaminate import Decontamination

        assert survey.grams is not None
        yield "decontaminate", Decontamination(config.decontaminate, survey.grams)
    if config.near_duplicates is not None and config.near_duplicates.executor is None:
        from trine.data.near import NearDuplicateStep

        yield "near_duplicates", NearDuplicateStep(config.near_duplicates, named=config.write_dropped)
    if config.boilerplate is not None:
        from trine.data.boilerplate import RepeatedParagraphs

        assert survey.repeated is not None
        yield "boilerplate", RepeatedParagraphs(config.boilerplate, survey.repeated)
