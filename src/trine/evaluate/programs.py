"""Programs over reports, in the language of FinQA (Chen et al. 2021, arXiv:2109.00122, section 3), read and executed.

A program is steps separated by commas: `subtract(60.94, 25.14), divide(#0, 25.14)`. Arguments are numbers, `const_100`
(and `const_m1` for -1), `#n` for what step n gave; of table steps (`table_max(net sales, none)`) a row's name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trine.evaluate.numbers import first_number, read_number

Value = float | bool
Table = Sequence[Sequence[str]]
"""Rows of cells; the first of a row is its name."""
MATH: dict[str, Callable[[float, float], Value]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "exp": lambda a, b: a**b,
    "greater": lambda a, b: a > b,
}
TABLE: dict[str, Callable[[list[float]], float]] = {
    "table_max": max,
    "table_min": min,
    "table_sum": math.fsum,
    "table_average": lambda row: math.fsum(row) / len(row),
}
_NAME = re.compile(r"\s*,?\s*([a-z_]+)\s*\(")
_DECIMALS = 5
"""Digits to which the data sets record results."""


@dataclass(frozen=True)
class Step:
    """One operation and its arguments."""

    name: str
    arguments: tuple[str, ...]


class NoProgram(ValueError):
    """A text that is no program, or one that cannot be executed."""


def parse_program(text: str) -> list[Step]:
    """The steps of a program. Raises NoProgram."""
    steps, place = [], 0
    text = text.strip().rstrip(".;")
    while place < len(text):
        found = _NAME.match(text, place)
        if not found or found[1] not in (*MATH, *TABLE):
            raise NoProgram(f"at '{text[place : place + 30]}': no operation")
        end = _closing(text, found.end())
        steps.append(Step(found[1], _arguments(found[1], text[found.end() : end])))
        place = end + 1
    if not steps:
        raise NoProgram("no step")
    return steps


def _closing(text: str, place: int) -> int:
    """Where the parenthesis that is open before `place` closes."""
    depth = 1
    for i in range(place, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise NoProgram("a parenthesis is not closed")


def _arguments(name: str, inside: str) -> tuple[str, ...]:
    if name in TABLE:
        row, comma, last = inside.rpartition(",")
        return ((row if comma and last.strip() == "none" else inside).strip(),)
    parts = [one.strip() for one in re.split(r",\s+|,(?!\d{3}\b)", inside)]
    if len(parts) != 2:
        raise NoProgram(f"{name}({inside}): two arguments are expected")
    return tuple(parts)


def execute(steps: Sequence[Step], table: Table = ()) -> Value:
    """What the last step gives: a number, or yes or no of `greater`. Raises NoProgram."""
    results: list[Value] = []
    for step in steps:
        try:
            if step.name in TABLE:
                results.append(TABLE[step.name](_row(step.arguments[0], table)))
            else:
                first, second = (_operand(one, results) for one in step.arguments)
                results.append(MATH[step.name](first, second))
        except (ArithmeticError, ValueError, TypeError) as error:
            raise NoProgram(f"{step.name}({', '.join(step.arguments)}): {error}") from None
        last = results[-1]
        if isinstance(last, complex) or not math.isfinite(last):
            raise NoProgram(f"{step.name}({', '.join(step.arguments)}): gives no number")
    return results[-1]


def _operand(text: str, results: Sequence[Value]) -> float:
    if text.startswith("#"):
        if not text[1:].isdigit() or int(text[1:]) >= len(results):
            raise NoProgram(f"{text}: no such step before")
        value = results[int(text[1:])]
        if isinstance(value, bool):
            raise NoProgram(f"{text}: is yes or no")
        return value
    if text.startswith("const_"):
        text = text.removeprefix("const_").replace("m", "-")
    number = read_number(text)
    if number is None:
        raise NoProgram(f"'{text}' is no number")
    return number.plain


def _row(name: str, table: Table) -> list[float]:
    rows = [row for row in table if row and _same(row[0]) == _same(name)]
    if not rows:
        raise NoProgram(f"the table has no row '{name}'")
    found = [value for cell in rows[0][1:] if (value := first_number(cell)) is not None]
    if not found:
        raise NoProgram(f"row '{name}' holds no number")
    return found


def _same(text: str) -> str:
    return " ".join(text.lower().split())


def answer_of(text: str, table: Table = ()) -> Value | str | None:
    """What a model's text says: a program's result, a number as text, yes or no; None for none of these."""
    line = next((one.strip() for one in text.splitlines() if one.strip()), "")
    line = re.sub(r"^(program|answer)\s*:\s*", "", line, flags=re.IGNORECASE)
    if "(" in line and line[:1].isalpha():
        try:
            return execute(parse_program(line), table)
        except NoProgram:
            return None
    if line.lower().rstrip(".") in ("yes", "no"):
        return line.lower().startswith("yes")
    return line if read_number(line) else None


def agrees(answer: Value | str | None, target: Value) -> bool:
    """Whether an answer is the recorded result.

    Results of programs count to five decimals. A number as text counts to the decimals that it shows, of at least two
    digits where it is not exact.
    """
    if answer is None or isinstance(answer, bool) or isinstance(target, bool):
        return isinstance(answer, bool) and isinstance(target, bool) and answer == target
    if not isinstance(answer, str):
        return abs(answer - target) <= max(10.0**-_DECIMALS, 1e-7 * abs(target))
    number = read_number(answer)
    if number is None:
        return False
    if math.isclose(number.plain, target, rel_tol=1e-9, abs_tol=1e-9):
        return True
    decimals = number.decimals + (2 if number.scale == "percent" else 0)
    shown = number.digits >= 2 and number.scale in ("", "percent")
    return shown and round(target, decimals) == round(number.plain, decimals)
