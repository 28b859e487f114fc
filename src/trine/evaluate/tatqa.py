"""TAT-QA (Zhu et al. 2021, arXiv:2105.07624): questions on a report's table and paragraphs, by its own data file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trine.errors import BadInput
from trine.evaluate.answers import exact_match, f1_score, split_answer, write_answer
from trine.evaluate.asking import Likelihood, Prompt, Scorer
from trine.evaluate.items import Item, prompt_hash, stage
from trine.evaluate.numbers import SCALES
from trine.manifest import sha256_file
from trine.progress import Progress, silent

_INSTRUCTION = (
    "Answer from the table and the text. Give a number with its scale (percent, thousand, million, billion), and "
    "several answers separated by semicolons.\nExamples of answers: -12.6 million; 3.26 percent; 2019"
)
_ANSWER_TOKENS = 64


@dataclass(frozen=True)
class Question:
    """One question with what it is asked about."""

    id: str
    prompt: str
    kind: str
    spans: tuple[str, ...]
    scale: str


class TatQa:
    """Answers are generated, scored by exact match and F1, and the right answer's likelihood is kept beside."""

    def __init__(self, name: str, path: Path, limit: int | None = None, likelihood: bool = False) -> None:
        """With `likelihood`, bits per byte of the right answers is the metric, and nothing is generated."""
        self.name, self.path, self.limit, self.likelihood = name, path, limit, likelihood
        self.metric, self.higher_is_better = ("answer_bits_per_byte", False) if likelihood else ("exact_match", True)
        self.questions = read_questions(path)[:limit]

    def sizes(self) -> dict[str, int]:
        return {"items": len(self.questions), "requests": len(self.questions) * (1 if self.likelihood else 2)}

    def about(self) -> dict[str, Any]:
        return {"kind": "tat-qa", "sha256": sha256_file(self.path), "limit": self.limit, "metric": self.metric}

    def run(self, scorer: Scorer, progress: Progress = silent) -> list[Item]:
        targets = [write_answer(one.spans, one.scale) for one in self.questions]
        pairs = [(one.prompt, f" {target}") for one, target in zip(self.questions, targets, strict=True)]
        likely = scorer.likelihoods(pairs, progress, f"{stage(self.name)}: likelihoods")
        if self.likelihood:
            given = zip(self.questions, targets, likely, strict=True)
            return [answer_item(one.id, one.kind, one.prompt, target, found) for one, target, found in given]
        prompts = [Prompt(one.prompt, _ANSWER_TOKENS, ("\n",)) for one in self.questions]
        texts = scorer.complete(prompts, progress, f"{stage(self.name)} texts: answers")
        return [self._item(*one) for one in zip(self.questions, targets, likely, texts, strict=True)]

    def _item(self, one: Question, target: str, found: Likelihood, text: str) -> Item:
        said = split_answer(text, len(one.spans))
        return Item(
            one.id,
            exact_match(said, one.spans, one.scale),
            group=one.kind,
            prompt=prompt_hash(one.prompt),
            prediction=text.strip(),
            target=target,
            bytes=len(target.encode()),
            loglik=found.loglik,
            more={"f1": f1_score(said, one.spans, one.scale), "answer_bits_per_byte": bits(found.loglik, target)},
        )


def bits(loglik: float, text: str) -> float:
    """Per byte of `text`."""
    return -loglik / math.log(2) / len(text.encode())


def answer_item(name: str, group: str, prompt: str, target: str, found: Likelihood) -> Item:
    """An item scored by the bits that its right answer costs, weighted by bytes."""
    size = len(target.encode())
    return Item(name, bits(found.loglik, target), size, group, prompt_hash(prompt), None, target, size, found.loglik)


def read_questions(path: Path) -> list[Question]:
    """Every question of a TAT-QA file. Raises BadInput."""
    try:
        contexts = json.loads(path.read_text())
        return [_question(one, asked) for one in contexts for asked in one["questions"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: not a TAT-QA file ({type(error).__name__}: {error})") from None


def _question(context: dict[str, Any], asked: dict[str, Any]) -> Question:
    answer = asked["answer"]
    spans = tuple(text for one in (answer if isinstance(answer, list) else [answer]) if (text := str(one).strip()))
    if asked["scale"] not in SCALES:
        raise ValueError(f"question {asked['uid']}: scale {asked['scale']!r}")
    paragraphs = sorted(context["paragraphs"], key=lambda one: one["order"])
    text = "\n".join(one["text"] for one in paragraphs)
    rows = write_table(context["table"]["table"])
    prompt = f"{rows}\n\n{text}\n\n{_INSTRUCTION}\nQuestion: {asked['question']}\nAnswer:"
    return Question(asked["uid"], prompt, asked["answer_type"], spans, asked["scale"])


def write_table(rows: Sequence[Sequence[str]]) -> str:
    """A table as lines of cells with bars between."""
    return "\n".join(" | ".join(cell.strip() for cell in row) for row in rows)
