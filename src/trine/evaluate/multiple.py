"""Multiple choice from a file: which of a question's answers a model finds likeliest.

A line of the JSONL file holds `question`, `choices` (texts) and `answer` (the right one's place from 0, or its text).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trine.errors import BadInput
from trine.evaluate.asking import Scorer
from trine.evaluate.items import Item, prompt_hash, stage
from trine.manifest import sha256_file
from trine.progress import Progress, silent


@dataclass(frozen=True)
class Asked:
    """A question, its answers, and the right one's place."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int


class ChoiceTask:
    """Answers score by log-likelihood over their UTF-8 bytes, so that no length is favoured; a tie counts in part."""

    metric, higher_is_better = "accuracy", True

    def __init__(self, name: str, path: Path, limit: int | None = None) -> None:
        """Raises BadInput naming the line that is wrong."""
        self.name, self.path, self.limit = name, path, limit
        self.asked = _read(path)[:limit]

    def sizes(self) -> dict[str, int]:
        return {"items": len(self.asked), "requests": sum(len(one.choices) for one in self.asked)}

    def about(self) -> dict[str, Any]:
        chance = sum(1 / len(one.choices) for one in self.asked) / len(self.asked)
        return {"kind": "choices", "sha256": sha256_file(self.path), "limit": self.limit, "chance": chance}

    def run(self, scorer: Scorer, progress: Progress = silent) -> list[Item]:
        pairs = [(one.question, f" {choice}") for one in self.asked for choice in one.choices]
        found = iter(scorer.likelihoods(pairs, progress, f"{stage(self.name)}: answers"))
        items = []
        for one in self.asked:
            logliks = [next(found).loglik for _ in one.choices]
            rates = [value / len(choice.encode()) for value, choice in zip(logliks, one.choices, strict=True)]
            by_rate, by_sum = _won(rates, one.answer), _won(logliks, one.answer)
            items.append(
                Item(
                    one.id,
                    by_rate,
                    prompt=prompt_hash(one.question, *one.choices),
                    prediction=one.choices[rates.index(max(rates))],
                    target=one.choices[one.answer],
                    bytes=len(one.choices[one.answer].encode()),
                    loglik=logliks[one.answer],
                    more={"accuracy_by_sum": by_sum},
                )
            )
        return items


def _won(scores: list[float], answer: int) -> float:
    """1 for the best, less for a tie, NaN where a score is none."""
    if any(map(math.isnan, scores)):
        return math.nan
    best = max(scores)
    return (scores[answer] == best) / scores.count(best)


def _read(path: Path) -> list[Asked]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from None
    asked = [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not asked:
        raise BadInput(f"{path}: holds no question")
    return asked


def _parse(line: str, where: str) -> Asked:
    expected = 'expected {"question": text, "choices": [texts], "answer": place from 0, or text}'
    try:
        value = json.loads(line)
        question, choices, answer = value["question"], value["choices"], value["answer"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{where}: {expected} ({type(error).__name__}: {error})") from None
    texts = isinstance(choices, list) and len(choices) > 1 and all(isinstance(one, str) and one for one in choices)
    if not (isinstance(question, str) and texts):
        raise BadInput(f"{where}: {expected}, and at least two answers that are not empty")
    place = choices.index(answer) if answer in choices else answer
    if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(choices):
        raise BadInput(
            f"{where}: answer is {answer!r:.60}; expected one of its {len(choices)} choices or a place from 0"
        )
    return Asked(where.rpartition("/")[2], question, tuple(choices), place)
