"""TAT-QA, FinQA and ConvFinQA: numbers, metrics and programs by hand, and the gold answers of the real data."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.folders import RuleScorer
from trine.errors import BadInput
from trine.evaluate.answers import exact_match, f1_score, split_answer, write_answer
from trine.evaluate.catalog import Where, make_tasks
from trine.evaluate.finqa import ProgramTask, read_asked
from trine.evaluate.items import summary
from trine.evaluate.numbers import first_number, read_number
from trine.evaluate.programs import NoProgram, agrees, answer_of, execute, parse_program
from trine.evaluate.tatqa import TatQa, read_questions

NUMBERS = {
    "$1,496.5": (1496.5, ""),
    "(12.6)": (-12.6, ""),
    "$ (23)": (-23, ""),
    "-(5)": (-5, ""),
    "−298": (-298, ""),
    "$3.0 million": (3.0, "million"),
    "9.2% percent": (9.2, "percent"),
    "12 thousands.": (12, "thousand"),
    ".5": (0.5, ""),
}


def test_numbers_are_read_as_reports_write_them() -> None:
    for text, (value, scale) in NUMBERS.items():
        found = read_number(text)
        assert found is not None, text
        assert (found.value, found.scale) == (value, scale), text
    for text in ("", "a", "(5", "5 apples", "1,49", "3 million percent", "Q1 2019", "12-13"):
        assert read_number(text) is None, text
    cells = {"$ 2457": 2457, "27% ( 27 % )": 0.27, "-4.1 ( 4.1 )": -4.1, "( 12 )": -12, "2013": 2013}
    assert {text: first_number(text) for text in cells} == pytest.approx(cells)
    assert first_number("none") is None


@pytest.mark.parametrize(
    ("said", "gold", "scale", "match", "f1"),
    [
        ("-12.6 million", ["-12.6"], "million", 1, 1),
        ("-12600 thousand", ["-12.6"], "million", 1, 1),
        ("12.6 million", ["-12.6"], "million", 0, 0),  # the sign counts
        ("-12.6", ["-12.6"], "million", 0, 0),  # and so does the scale
        ("0.0326", ["3.26"], "percent", 1, 1),
        ("3.257 percent", ["3.26"], "percent", 1, 1),
        ("The costs plus a profit", ["costs plus a profit"], "", 1, 1),
        ("costs plus", ["costs plus profit"], "", 0, 0.8),  # precision 1, recall 2/3
        ("cost; profit", ["profit", "cost"], "", 1, 1),
        ("profit", ["profit", "cost"], "", 0, 0.5),
        ("profit of 12", ["profit of 13"], "", 0, 0),  # another number
        ("", ["profit"], "", 0, 0),
        ("2019", ["2019"], "", 1, 1),
        ("1,234 thousand; 5 thousand", ["5", "$1,234"], "thousand", 1, 1),
    ],
)
def test_answers_score_by_the_papers_definition(said: str, gold: list[str], scale: str, match: int, f1: float) -> None:
    spans = split_answer(said, len(gold))
    assert exact_match(spans, gold, scale) == match
    assert f1_score(spans, gold, scale) == pytest.approx(f1)


def test_spans_are_aligned_as_well_as_can_be() -> None:
    gold = ["red green blue", "red green"]
    # the first alone fits both; the best choice gives it to the first
    assert f1_score(["red green", "red green blue"], gold, "") == 1
    many = [f"word{i} other" for i in range(14)]
    assert f1_score(list(reversed(many)), many, "") == 1


TABLE = [["", "2019", "2018"], ["net sales, gross", "$ 12", "( 4 )"], ["costs", "3%", "none"]]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("subtract(60.94, 25.14), divide(#0, 25.14)", (60.94 - 25.14) / 25.14),
        ("add(1,234, const_m1)", 1233),
        ("multiply(6.9%, const_100)", 6.9),
        ("divide(3822, const_1000), exp(#0, const_2)", 3.822**2),
        ("table_sum(net sales, gross, none)", 8),
        ("table_average(Net sales, gross, none), table_max(net sales, gross, none), subtract(#1, #0)", 8),
        ("table_min(costs, none)", 0.03),
    ],
)
def test_programs_give_what_they_say(text: str, value: float) -> None:
    assert execute(parse_program(text), TABLE) == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    ["", "12", "add(1)", "add(1, 2", "divide(1, const_0)", "add(#0, 1)", "table_sum(sales, none)", "import(os, 1)",
     "greater(2, 1), add(#0, 1)", "exp(-1, 0.5)", "exp(10, 1000)", "add(one, 2)", "add(1, 2) and more"],
)  # fmt: skip
def test_what_is_no_program_gives_no_answer(text: str) -> None:
    with pytest.raises(NoProgram):
        execute(parse_program(text), TABLE)


def test_answers_agree_to_the_digits_they_show() -> None:
    assert agrees(answer_of("Program: subtract(2, 1)\nmore"), 1.0)
    assert agrees(answer_of("greater(1, 2)"), False)
    assert agrees(answer_of("Yes."), True)
    assert not agrees(answer_of("yes"), 1.0)
    for text, target, good in [
        ("142.4%", 1.42403, True),
        ("1.42", 1.42403, True),
        ("1.43", 1.42403, False),
        ("1", 1.42403, False),
        ("93", 93.0, True),
        ("-93", 93.0, False),
        ("0.0", 0.004, False),
    ]:
        assert agrees(answer_of(text), target) is good, text
    assert answer_of("about five") is None
    assert not agrees(None, 0.0)


def test_gold_answers_of_tat_qa_score_one_and_wrong_ones_nothing(trine_data: Path) -> None:
    path = trine_data / "finance" / "tat-qa" / "tatqa_dataset_dev.json"
    asked = read_questions(path)
    assert len(asked) == 1668
    told = {one.prompt: write_answer(one.spans, one.scale) for one in asked}
    task = TatQa("tat-qa", path, limit=200)
    figures = summary(task, task.run(RuleScorer(told.__getitem__)))
    assert figures["value"] == figures["metrics"]["f1"] == 1
    for one in asked:
        said = split_answer(write_answer(one.spans, one.scale), len(one.spans))
        assert exact_match(said, one.spans, one.scale) == 1, one
        assert f1_score(said, one.spans, one.scale) == pytest.approx(1), one
        if one.kind == "arithmetic":
            wrong = [f"{float(one.spans[0]) + 1:.2f} {one.scale}"]
            assert exact_match(wrong, one.spans, one.scale) == f1_score(wrong, one.spans, one.scale) == 0
    others = random.Random(0).sample(asked, 300)
    kept = [exact_match(a.spans, b.spans, b.scale) for a, b in zip(asked, others, strict=False) if a.spans != b.spans]
    assert sum(kept) <= 1
    wrong_task = TatQa("tat-qa", path, limit=50)
    assert summary(wrong_task, wrong_task.run(RuleScorer(lambda text: "I cannot tell")))["metrics"]["f1"] < 0.02


@pytest.mark.parametrize(
    ("kind", "name", "count"), [("convfinqa", "convfinqa_dev.json", 1490), ("finqa", "*.csv", 883)]
)
def test_gold_programs_score_one(trine_data: Path, kind: str, name: str, count: int) -> None:
    (path,) = (trine_data / "finance" / kind).glob(name)
    asked = read_asked(path, kind)
    assert len(asked) == count
    told = {one.prompt: f"{one.program}\n" for one in asked}
    task = ProgramTask(kind, kind, path)
    assert task.about()["agreeing"] in (1.0, None)  # of ConvFinQA's recorded results all, FinQA's CSV records none
    figures = summary(task, task.run(RuleScorer(told.__getitem__)))
    assert figures["value"] == figures["metrics"]["same_program"] == 1
    wrong = summary(task, task.run(RuleScorer(lambda text: "add(const_1, 0.98765)")))
    assert wrong["value"] == 0


def test_finqas_own_layout_is_read_and_likelihood_can_be_the_metric(tmp_path: Path) -> None:
    document: dict[str, Any] = {"pre_text": ["Sales grew."], "post_text": ["Thus."], "table": TABLE, "id": "a-1"}
    asked = {"question": "sum?", "program": "table_sum(net sales, gross, none)", "exe_ans": 8.0}
    (tmp_path / "finqa").mkdir()
    (tmp_path / "finqa" / "dev.json").write_text(json.dumps([document | {"qa": asked}]))
    notes = {"turn_program": ["12", "add(12, 1)"], "exe_ans_list": [12, 13], "dialogue_break": ["sales?", "and one?"]}
    (tmp_path / "convfinqa").mkdir()
    (tmp_path / "convfinqa" / "dev.json").write_text(json.dumps([document | {"annotation": notes}]))
    first, second = make_tasks(["finqa", "convfinqa:metric=likelihood"], Where(tmp_path))
    (item,) = first.run(RuleScorer(lambda text: "8"))
    assert item.score == 1
    assert item.more["same_program"] == 0
    one, two = second.run(RuleScorer(str))
    assert (one.group, two.group) == ("number", "one step")
    assert two.weight == len("add(12, 1)")
    assert second.metric == "program_bits_per_byte"
    (tmp_path / "finqa" / "dev.json").write_text('[{"id": 1}]')
    with pytest.raises(BadInput, match="not a finqa file"):
        make_tasks(["finqa"], Where(tmp_path))
    with pytest.raises(BadInput, match="metric is f1; expected answers or likelihood"):
        make_tasks(["convfinqa:metric=f1"], Where(tmp_path))
