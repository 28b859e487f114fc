"""A needle in a haystack: a number told somewhere in a long text, asked for at its end.

Source of the set-up: G. Kamradt's test of 2023 and its relatives in RULER (arXiv:2404.06654). The number is one of
`CHOICES` that the question names, so that guessing scores one in that many.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trine.errors import BadInput
from trine.evaluate.asking import Prompt, Scorer
from trine.evaluate.items import Item, prompt_hash, stage
from trine.progress import Progress, silent

CHOICES = 10
KEYS = "lighthouse orchard granary chapel quarry workshop stable library harbour mill cellar tower".split()
_SENTENCES = (
    "The road goes on past the field.",
    "In the morning the wind came from the west.",
    "Nobody had opened the door that day.",
    "The river is low at this time of the year.",
    "They walked until it was dark.",
    "A cart stood at the side of the house.",
    "The letter had been written in a hurry.",
    "There was bread on the table, and some cheese.",
)
_ANSWER_TOKENS = 8
_PURPOSE = 0x6E656564


@dataclass(frozen=True)
class Needle:
    """One question."""

    id: str
    depth: float
    needle: str
    question: str
    answer: str
    numbers: tuple[str, ...]
    stream: int


class NeedleTask:
    """`items` questions at each depth, each in a text that is `length` tokens of the model long in all."""

    metric, higher_is_better = "accuracy", True

    def __init__(
        self, name: str, length: int, depths: tuple[float, ...], items: int, seed: int = 0, hay: str | None = None
    ) -> None:
        """`depth` 0 is the text's beginning, 1 its end; `hay` is text to hide the needle in, cut at sentences."""
        self.name, self.length = name, length
        self.options = {"length": length, "depths": list(depths), "items": items, "seed": seed}
        self.sentences: list[str] = _sentences(hay) if hay else list(_SENTENCES)
        self._costs: dict[str, int] = {}
        self.needles = [_needle(depth, number, seed) for depth in depths for number in range(items)]

    def sizes(self) -> dict[str, int]:
        return {"items": len(self.needles), "requests": len(self.needles)}

    def about(self) -> dict[str, Any]:
        return {"kind": "needle", "chance": 1 / CHOICES, "hay": prompt_hash(*self.sentences)} | self.options

    def run(self, scorer: Scorer, progress: Progress = silent) -> list[Item]:
        if self.length > scorer.longest:
            raise BadInput(f"task '{self.name}': {self.length} tokens; the model reads {scorer.longest} at once")
        prompts = [Prompt(self.text(scorer, one), _ANSWER_TOKENS, ("\n",)) for one in self.needles]
        texts = scorer.complete(prompts, progress, f"{stage(self.name)}: needles")
        items = []
        for one, prompt, text in zip(self.needles, prompts, texts, strict=True):
            found = re.search(r"\d+", text)
            said = found.group() if found else ""
            items.append(
                Item(
                    one.id,
                    float(said == one.answer),
                    group=f"depth {one.depth:g}",
                    prompt=prompt_hash(one.needle, one.question, str(self.length)),
                    prediction=text.strip(),
                    target=one.answer,
                    more={"tokens": float(scorer.count(prompt.text))},
                )
            )
        return items

    def text(self, scorer: Scorer, one: Needle) -> str:
        """Hay around the needle and the question, as long as goes into `length` tokens with the answer."""
        rng = np.random.default_rng([_PURPOSE, self.options["seed"], one.stream, 1])
        ending, hay = f"\n{one.question}", []
        room = self.length - _ANSWER_TOKENS - scorer.count(one.needle + ending)
        for sentence in _drawn(self.sentences, rng):
            room -= self._cost(scorer, sentence)
            if room < 0:
                break
            hay.append(sentence)
        while hay:
            place = round(one.depth * len(hay))
            text = " ".join([*hay[:place], one.needle, *hay[place:]]) + ending
            if scorer.count(text) <= self.length - _ANSWER_TOKENS:
                return text
            hay.pop()
        raise BadInput(f"task '{self.name}': {self.length} tokens are too few for the needle and its question")

    def _cost(self, scorer: Scorer, sentence: str) -> int:
        if sentence not in self._costs:
            self._costs[sentence] = scorer.count(f" {sentence}")
        return self._costs[sentence]


def _needle(depth: float, number: int, seed: int) -> Needle:
    stream = round(depth * 1000) * 100_000 + number
    rng = np.random.default_rng([_PURPOSE, seed, stream, 0])
    key = KEYS[int(rng.integers(len(KEYS)))]
    numbers = tuple(str(one) for one in 1000 + rng.choice(9000, CHOICES, replace=False))
    answer = numbers[int(rng.integers(CHOICES))]
    question = (
        f"Which of the numbers {', '.join(numbers)} is the secret number of the {key}?\n"
        f"Answer: The secret number of the {key} is"
    )
    needle = f"The secret number of the {key} is {answer}."
    return Needle(f"depth-{depth:g}-{number}", depth, needle, question, answer, numbers, stream)


def _drawn(sentences: list[str], rng: np.random.Generator) -> Iterator[str]:
    """Sentences in their order from a place drawn, or in any order where they are few."""
    if len(sentences) > 100:
        place = int(rng.integers(len(sentences)))
        while True:
            yield sentences[place % len(sentences)]
            place += 1
    while True:
        yield from (sentences[i] for i in rng.permutation(len(sentences)))


def _sentences(text: str) -> list[str]:
    found = [" ".join(one.split()) for one in re.split(r"(?<=[.!?])\s+", text)]
    return [one for one in found if 10 < len(one) < 400] or [text]


def read_hay(path: Path) -> str:
    """Up to 8 MB of a text file. Raises BadInput."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(1 << 23)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from None
