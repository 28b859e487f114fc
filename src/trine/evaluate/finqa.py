"""FinQA (Chen et al. 2021, arXiv:2109.00122) and ConvFinQA (Chen et al. 2022, arXiv:2210.03849) by program execution.

A model writes a program or a number; what that gives is compared with the recorded result. Read are the data sets' own
JSON, ConvFinQA with its table as columns (`doc`, `dialogue`), and FinQA as CSV of prompts whose context was retrieved.
"""

from __future__ import annotations

import ast
import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trine.errors import BadInput
from trine.evaluate.asking import Likelihood, Prompt, Scorer
from trine.evaluate.items import Item, prompt_hash, stage
from trine.evaluate.programs import NoProgram, Table, Value, agrees, answer_of, execute, parse_program
from trine.evaluate.tatqa import answer_item, bits, write_table
from trine.manifest import sha256_file
from trine.progress import Progress, silent

_INSTRUCTION = (
    "Answer by a program of add, subtract, multiply, divide, exp, greater, table_max, table_min, table_sum, "
    "table_average over numbers, const_100 and #0 for an earlier step's result, or by a number.\n"
    "Examples: subtract(60.94, 25.14), divide(#0, 25.14) and table_max(net sales, none) and 35.8"
)
_PROGRAM_TOKENS = 64


@dataclass(frozen=True)
class Asked:
    """A question whose answer is a program's result."""

    id: str
    prompt: str
    group: str
    program: str
    target: Value
    table: Table
    recorded: bool
    """Whether the data says the result; else it is the program's."""


class ProgramTask:
    """Execution accuracy; the right program's likelihood is kept beside."""

    def __init__(self, name: str, kind: str, path: Path, limit: int | None = None, likelihood: bool = False) -> None:
        """`kind` is finqa or convfinqa; with `likelihood`, bits per byte of the right programs is the metric and
        nothing is generated. Raises BadInput."""
        self.name, self.kind, self.path, self.limit, self.likelihood = name, kind, path, limit, likelihood
        self.metric = "program_bits_per_byte" if likelihood else "execution_accuracy"
        self.higher_is_better = not likelihood
        self.asked = read_asked(path, kind)[:limit]

    def sizes(self) -> dict[str, int]:
        return {"items": len(self.asked), "requests": len(self.asked) * (1 if self.likelihood else 2)}

    def about(self) -> dict[str, Any]:
        """`agreeing`: the share of programs that, executed, give the result the data records."""
        recorded = [one for one in self.asked if one.recorded]
        good = sum(agrees(answer_of(one.program, one.table), one.target) for one in recorded)
        return {
            "kind": self.kind,
            "sha256": sha256_file(self.path),
            "limit": self.limit,
            "metric": self.metric,
            "recorded": len(recorded),
            "agreeing": good / len(recorded) if recorded else None,
        }

    def run(self, scorer: Scorer, progress: Progress = silent) -> list[Item]:
        pairs = [(one.prompt, f" {one.program}") for one in self.asked]
        likely = scorer.likelihoods(pairs, progress, f"{stage(self.name)}: likelihoods")
        if self.likelihood:
            given = zip(self.asked, likely, strict=True)
            return [answer_item(one.id, one.group, one.prompt, one.program, found) for one, found in given]
        prompts = [Prompt(one.prompt, _PROGRAM_TOKENS, ("\n",)) for one in self.asked]
        texts = scorer.complete(prompts, progress, f"{stage(self.name)} texts: programs")
        return [_item(*one) for one in zip(self.asked, likely, texts, strict=True)]


def _item(one: Asked, found: Likelihood, text: str) -> Item:
    said = "".join(text.split()).lower().rstrip(".")
    return Item(
        one.id,
        float(agrees(answer_of(text, one.table), one.target)),
        group=one.group,
        prompt=prompt_hash(one.prompt),
        prediction=text.strip(),
        target=one.program,
        bytes=len(one.program.encode()),
        loglik=found.loglik,
        more={
            "same_program": float(said == "".join(one.program.split()).lower()),
            "program_bits_per_byte": bits(found.loglik, one.program),
        },
    )


def read_asked(path: Path, kind: str) -> list[Asked]:
    """Every question of a file. Raises BadInput."""
    reader = {"finqa": _finqa_csv if path.suffix == ".csv" else _finqa, "convfinqa": _convfinqa}[kind]
    try:
        found = list(reader(path))
    except (OSError, ValueError, KeyError, TypeError, SyntaxError) as error:
        raise BadInput(f"{path}: not a {kind} file ({type(error).__name__}: {error})") from None
    if not found:
        raise BadInput(f"{path}: holds no question")
    return found


def _prompt(context: str, question: str) -> str:
    return f"{context}\n\n{_INSTRUCTION}\nQuestion: {question}\nProgram:"


def _target(value: Any) -> Value:
    return value.lower() == "yes" if isinstance(value, str) else float(value)


def _finqa(path: Path) -> Iterator[Asked]:
    for one in json.loads(path.read_text()):
        asked = one["qa"]
        context = "\n".join([*one["pre_text"], write_table(one["table"]), *one["post_text"]])
        prompt = _prompt(context, asked["question"])
        yield Asked(
            one["id"], prompt, _kind(asked["program"]), asked["program"], _target(asked["exe_ans"]), one["table"], True
        )


def _finqa_csv(path: Path) -> Iterator[Asked]:
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), start=1):
            text = row["text"]
            context = text.partition("Contexts:")[2].partition("Table:")[0]
            table = ast.literal_eval(text.partition("Table:")[2].partition("Possible Operations:")[0].strip())
            question = text.partition("Question:")[2].partition("Output:")[0].strip()
            program = text.partition("Output:")[2].replace("</s>", "").strip()
            try:
                target = execute(parse_program(program), table)
            except NoProgram as error:
                raise ValueError(f"row {number}: {program}: {error}") from None
            prompt = _prompt(f"{context.strip()}\n{write_table(table)}", question)
            yield Asked(f"{number}", prompt, _kind(program), program, target, table, False)


def _kind(program: str) -> str:
    steps = program.count("(")
    return "number" if steps == 0 else "one step" if steps == 1 else "several steps"


def _convfinqa(path: Path) -> Iterator[Asked]:
    """A turn is asked with the turns before it and their answers."""
    content = json.loads(path.read_text())
    dialogues = [one for part in content.values() for one in part] if isinstance(content, dict) else content
    for one in dialogues:
        turns, before, table, questions = _dialogue(one)
        told = ""
        for number, (question, (program, target)) in enumerate(zip(questions, turns, strict=True)):
            prompt = _prompt(before, f"{told}{question}")
            yield Asked(f"{one['id']}#{number}", prompt, _kind(program), program, target, table, True)
            told += f"{question}\nProgram: {program}\nQuestion: "


Turns = Sequence[tuple[str, Value]]


def _dialogue(one: dict[str, Any]) -> tuple[Turns, str, Table, list[str]]:
    """Programs with results, the document, its table, and the questions, of either layout."""
    if "dialogue" in one:
        document, said = one["doc"], one["dialogue"]
        table = _from_columns(document["table"])
        before = "\n".join([document["pre_text"], write_table(table), document["post_text"]])
        turns = [*zip(said["turn_program"], map(_target, said["executed_answers"]), strict=True)]
        return turns, before, table, said["conv_questions"]
    notes, table = one["annotation"], one["table"]
    before = "\n".join([*one["pre_text"], write_table(table), *one["post_text"]])
    turns = [*zip(notes["turn_program"], map(_target, notes["exe_ans_list"]), strict=True)]
    return turns, before, table, notes["dialogue_break"]


def _from_columns(columns: dict[str, dict[str, Any]]) -> list[list[str]]:
    names = list(dict.fromkeys(name for one in columns.values() for name in one))
    return [["", *columns]] + [[name, *(f"{one.get(name, '')}" for one in columns.values())] for name in names]
