"""Answers with units and scales, scored as TAT-QA defines it: exact match, and F1 that minds numbers.

Source: Zhu et al. 2021 (arXiv:2105.07624), section 5.1, over Dua et al. 2019 (arXiv:1903.00161), section 5: words in a
bag, spans aligned one to one, the sign of a number kept, and F1 0 unless number times scale is the answer's.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import cache

from trine.evaluate.numbers import SCALES, Number, read_number

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_DECIMALS = 2
"""Digits to which computed answers are recorded, in their own scale."""
_MOST_ALIGNED = 12


def split_answer(text: str, wanted: int = 2) -> list[str]:
    """The spans of a model's line: parts between semicolons, or the whole where one span is wanted."""
    parts = [text] if wanted == 1 else text.split(";")
    return [one.strip() for one in parts if one.strip()]


def write_answer(spans: Sequence[str], scale: str) -> str:
    """An answer as one line, each number with its scale."""
    return "; ".join(_scaled(one, scale) for one in spans)


def _scaled(span: str, scale: str) -> str:
    number = read_number(span)
    return span if number is None or not scale or number.scale == scale else f"{span.strip()} {scale}"


def exact_match(predicted: Sequence[str], gold: Sequence[str], scale: str) -> float:
    """1 when both say the same spans, in any order; else 0."""
    if len(predicted) != len(gold):
        return 0.0
    left = list(gold)
    for one in predicted:
        match = next((other for other in left if _equal(one, other, scale)), None)
        if match is None:
            return 0.0
        left.remove(match)
    return 1.0


def f1_score(predicted: Sequence[str], gold: Sequence[str], scale: str) -> float:
    """Mean F1 of words over the best alignment of spans; a span without partner counts 0."""
    if not predicted or not gold:
        return float(not predicted and not gold)
    table = [[_span_f1(one, other, scale) for other in gold] for one in predicted]
    return _aligned(table) / max(len(predicted), len(gold))


def _equal(predicted: str, gold: str, scale: str) -> bool:
    wanted, said = read_number(gold), read_number(predicted)
    if wanted is None or said is None:
        return wanted is None and said is None and _words(predicted) == _words(gold)
    return _same_number(said, wanted, wanted.scale or scale)


def _same_number(said: Number, wanted: Number, scale: str) -> bool:
    value = said.plain / SCALES[scale]
    decimals = max(_DECIMALS, wanted.decimals)
    return round(value - wanted.value, decimals + 3) == 0 or round(value, decimals) == round(wanted.value, decimals)


def _span_f1(predicted: str, gold: str, scale: str) -> float:
    if read_number(gold) is not None or read_number(predicted) is not None:
        return float(_equal(predicted, gold, scale))
    said, wanted = _words(predicted), _words(gold)
    numbers = {one for one in wanted if _is_number(one)}
    if numbers and not numbers & {one for one in said if _is_number(one)}:
        return 0.0
    shared = sum((Counter(said) & Counter(wanted)).values())
    if not shared:
        return float(said == wanted)
    precision, recall = shared / len(said), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def _is_number(word: str) -> bool:
    return read_number(word) is not None


def _words(text: str) -> list[str]:
    """Lower case, no articles, no punctuation at the edges of words; numbers as values with their signs."""
    words = []
    for word in re.split(r"[\s–—-]+(?!\d)|\s+", _ARTICLES.sub(" ", text.lower())):
        number = read_number(word) if any(one.isdigit() for one in word) else None
        bare = f"{number.plain:g}" if number else "".join(one for one in word if one not in string.punctuation)
        if bare:
            words.append(bare)
    return words


def _aligned(table: Sequence[Sequence[float]]) -> float:
    """The largest sum over a one-to-one choice of cells; beyond a dozen columns, best cells first."""
    if len(table) < len(table[0]):
        table = list(zip(*table, strict=True))
    columns = len(table[0])
    if columns > _MOST_ALIGNED:
        return _greedy(table)

    @cache
    def best(row: int, used: int) -> float:
        if row == len(table):
            return 0.0
        found = best(row + 1, used)
        for column in range(columns):
            if not used >> column & 1:
                found = max(found, table[row][column] + best(row + 1, used | 1 << column))
        return found

    return best(0, 0)


def _greedy(table: Sequence[Sequence[float]]) -> float:
    cells = sorted(((value, i, j) for i, row in enumerate(table) for j, value in enumerate(row)), reverse=True)
    rows, columns, total = set(), set(), 0.0
    for value, i, j in cells:
        if i not in rows and j not in columns:
            rows.add(i)
            columns.add(j)
            total += value
    return total
