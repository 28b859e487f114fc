"""Multiple choice by log-likelihood: whether a model finds the right answer likelier than wrong ones.

Questions are held-out conversations: what comes before the first answer, that answer, and answers of other
conversations of the same source. Of plain text they are places: a passage, the one that follows, and others of the same
text. Chance is one in as many as there are to choose from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from trine.data.shards import TokenSet
from trine.errors import BadInput
from trine.evaluate.bits import token_nll

if TYPE_CHECKING:
    from trine.model.hf import LanguageModel

_PURPOSE = 0x63686F69
"""Sets these draws apart from others with the same seed."""


@dataclass(frozen=True)
class Question:
    """Token ids, int64."""

    prompt: np.ndarray
    answers: tuple[np.ndarray, ...]
    """The right one first."""


@dataclass(frozen=True)
class ChoiceResult:
    """How often the right answer scored best; a tie counts in part."""

    accuracy: float
    chance: float
    questions: int
    standard_error: float
    """Of the accuracy, by the questions' number."""


def questions(held: TokenSet, length: int, most: int, seed: int, wrong: int = 3) -> list[Question]:
    """Up to `most` questions, from the set's beginning, each with `wrong` wrong answers drawn by `seed` and its place.

    Questions and answers of more than `length` / 2 tokens are left out, and so are answers that say the same as the
    right one. Raises BadInput where the set holds no answers, or a source too few of them.
    """
    if held.trained is None:
        raise BadInput("a set without conversations has no answers to choose from; pack sources with `chat`")
    found: dict[int, list[tuple[int, np.ndarray, np.ndarray]]] = {}
    for document in range(len(held.lengths)):
        prompt, answer = _first_answer(held, document)
        if len(prompt) and 0 < len(answer) <= length // 2 >= len(prompt):
            found.setdefault(int(held.sources[document]), []).append((document, prompt, answer))
    made: list[tuple[int, Question]] = []
    for number, group in found.items():
        different = {answer.tobytes() for _, _, answer in group}
        if len(different) <= wrong:
            name = held.source_names[number] if held.source_names else "the set"
            raise BadInput(f"{name}: {len(different)} held-out answer(s), expected at least {wrong + 1} to choose from")
        for document, prompt, answer in group:
            others, seen = [], {answer.tobytes()}
            for place in np.random.default_rng([_PURPOSE, seed, document]).permutation(len(group)):
                other = group[place][2]
                if len(others) < wrong and other.tobytes() not in seen:
                    seen.add(other.tobytes())
                    others.append(other)
            made.append((document, Question(prompt, (answer, *others))))
    return [question for _, question in sorted(made, key=lambda one: one[0])[:most]]


def passages(held: TokenSet, length: int, most: int, seed: int, wrong: int = 3) -> list[Question]:
    """Up to `most` places of a set of plain text, drawn by `seed`: what stands there, what follows, and `wrong` other
    passages of the same text, of `length` / 4, and `length` / 8 tokens each.

    Raises BadInput where no text is long enough.
    """
    size = max(1, length // 8)
    prompt = 2 * size
    places = [
        (document, begin)
        for document, tokens in enumerate(held.lengths)
        for begin in range(0, int(tokens) - prompt - size + 1, prompt + size)
    ]
    made: list[tuple[int, int, Question]] = []
    for place in np.random.default_rng([_PURPOSE, seed]).permutation(len(places)):
        document, begin = places[place]
        end = begin + prompt
        right = held.read(document, end, end + size).astype(np.int64)
        others = _elsewhere(held, document, (begin, end + size), right, wrong, seed)
        if len(made) < most and len(others) == wrong:
            before = held.read(document, begin, end).astype(np.int64)
            made.append((document, begin, Question(before, (right, *others))))
    if not made:
        raise BadInput(f"no held-out text is long enough for {1 + wrong} passages of {size} tokens to choose from")
    return [question for _, _, question in sorted(made, key=lambda one: one[:2])]


def _elsewhere(
    held: TokenSet, document: int, taken: tuple[int, int], right: np.ndarray, count: int, seed: int
) -> list[np.ndarray]:
    """Up to `count` passages as long as `right` from outside of `taken`, each another text."""
    size, found = len(right), dict[bytes, np.ndarray]()
    begins = [
        at for at in range(0, int(held.lengths[document]) - size + 1, size) if not taken[0] - size < at < taken[1]
    ]
    for at in np.random.default_rng([_PURPOSE, seed, document, taken[0]]).permutation(len(begins)):
        if len(found) == count:
            break
        other = held.read(document, begins[at], begins[at] + size).astype(np.int64)
        if other.tobytes() != right.tobytes():
            found.setdefault(other.tobytes(), other)
    return list(found.values())


def _first_answer(held: TokenSet, document: int) -> tuple[np.ndarray, np.ndarray]:
    """What comes before the first run of trained tokens, and that run."""
    length = int(held.lengths[document])
    tokens, trained = held.read(document, 0, length).astype(np.int64), held.read_trained(document, 0, length)
    begin = int(trained.argmax()) if trained.any() else length
    end = begin + int((~trained[begin:]).argmax()) if not trained[begin:].all() else length
    return tokens[:begin], tokens[begin:end]


@torch.no_grad()
def choice_accuracy(
    model: LanguageModel, asked: Sequence[Question], token_bytes_V: Tensor, chunk: int, rows: int = 8
) -> ChoiceResult:
    """Answers score by log-likelihood given the question over their UTF-8 bytes, so that no length is favoured.

    `rows` question-answer pairs are read at a time, `chunk` positions have their logits. Raises BadInput for none.
    """
    if not asked:
        raise BadInput("no questions to score; what is held out is too little or too long")
    pairs = [(one.prompt, answer) for one in asked for answer in one.answers]
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    scores = np.empty(len(pairs))
    for first in range(0, len(order), rows):
        places = order[first : first + rows]
        scores[places] = _scores(model, [pairs[i] for i in places], token_bytes_V, chunk)
    won, first = 0.0, 0
    for one in asked:
        mine = scores[first : first + len(one.answers)]
        won += float(mine[0] == mine.max()) / int((mine == mine.max()).sum())
        first += len(one.answers)
    accuracy = won / len(asked)
    chance = sum(1 / len(one.answers) for one in asked) / len(asked)
    return ChoiceResult(accuracy, chance, len(asked), math.sqrt(accuracy * (1 - accuracy) / len(asked)))


def _scores(
    model: LanguageModel, pairs: Sequence[tuple[np.ndarray, np.ndarray]], token_bytes_V: Tensor, chunk: int
) -> list[float]:
    """log p(answer | prompt) in nats per byte of the answer."""
    length = max(len(prompt) + len(answer) for prompt, answer in pairs) - 1
    tokens = torch.zeros(len(pairs), length, dtype=torch.int64)
    ids = torch.full((len(pairs), length), -1, dtype=torch.int32)
    targets = torch.full((len(pairs), length), -1, dtype=torch.int64)
    for row, (prompt, answer) in enumerate(pairs):
        whole = torch.from_numpy(np.concatenate([prompt, answer]))
        tokens[row, : len(whole) - 1], ids[row, : len(whole) - 1] = whole[:-1], 0
        targets[row, len(prompt) - 1 : len(whole) - 1] = whole[len(prompt) :]
    device = model.output_weight.device
    hidden, _ = model.hidden(tokens.to(device), ids.to(device))
    wanted = targets >= 0
    nll = torch.zeros(targets.shape, dtype=torch.float64)
    nll[wanted] = token_nll(hidden[wanted.to(device)], model.output_weight, targets[wanted].to(device), chunk).cpu()
    size = torch.where(wanted, token_bytes_V.cpu()[targets.clamp(min=0)], 0).sum(1).clamp(min=1)
    return (-nll.sum(1) / size).tolist()
