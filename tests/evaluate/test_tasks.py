"""Bits per byte of folders, multiple choice, items' figures, and a run that was killed between tasks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.evaluate.folders import RuleScorer, write_llama
from trine.errors import BadInput
from trine.evaluate.asking import Scorer
from trine.evaluate.catalog import Where, make_tasks
from trine.evaluate.items import Item, Task, standard_error, summary
from trine.evaluate.multiple import ChoiceTask
from trine.evaluate.runner import partial_folder, publish_results, run_tasks
from trine.evaluate.scorer import ModelScorer
from trine.evaluate.text import PIECE_BYTES, TextTask
from trine.manifest import verify
from trine.progress import Progress, silent


def write_library(folder: Path) -> Path:
    (folder / "plays").mkdir(parents=True)
    (folder / "plays" / "one.txt").write_text("A play.\n" * 4000)
    (folder / "prose").mkdir()
    (folder / "prose" / "two.txt").write_text("naïve 日本 😀\n" * 20)
    rows = [{"text": f"row {i} says so", "form": "10-K" if i % 2 else "8-K"} for i in range(4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return folder


def test_text_costs_what_its_tokens_cost_and_counts_by_class(tmp_path: Path) -> None:
    task = TextTask("library", write_library(tmp_path / "library"), kind="form")
    items = task.run(RuleScorer(str))
    assert {one.group for one in items} == {"plays", "prose", "10-K", "8-K"}
    assert len([one for one in items if one.group == "plays"]) == math.ceil(32000 / PIECE_BYTES)
    characters = sum(len(one.text) for one, _ in task.texts)
    size = sum(len(one.text.encode()) for one, _ in task.texts)
    figures = summary(task, items)
    assert figures["value"] == pytest.approx(characters / size)  # a bit for each character
    assert figures["groups"]["plays"]["value"] == pytest.approx(1)
    prose = "naïve 日本 😀\n"
    assert figures["groups"]["prose"]["value"] == pytest.approx(len(prose) / len(prose.encode()))
    assert sum(one.weight for one in items) == size
    assert task.sizes() == {"items": len(items), "requests": 6, "bytes": size}


def test_text_of_a_model_is_its_rolling_likelihood_over_its_bytes(tmp_path: Path) -> None:
    scorer = ModelScorer(write_llama(tmp_path / "model"))
    file = tmp_path / "text.txt"
    file.write_text("the model reads a café, then naïve 日本 text\n" * 900)
    task = TextTask("text", file)
    items = task.run(scorer)
    assert len(items) > 2
    (whole,) = scorer.rolling([file.read_text()])
    size = file.stat().st_size
    assert summary(task, items)["value"] == pytest.approx(-whole.logp.sum() / math.log(2) / size)
    assert TextTask("text", file, limit=2).sizes()["items"] == 2
    assert TextTask("text", file, most_bytes=1000).sizes()["bytes"] <= 1000


def test_standard_errors_are_the_plain_ones_and_those_of_a_ratio() -> None:
    rng = np.random.default_rng(0)
    scores, weights = rng.normal(2, 1, 400), rng.integers(1, 50, 400)
    assert standard_error(scores.tolist(), [1.0] * 400) == pytest.approx(scores.std(ddof=1) / 20)
    draws = rng.integers(0, 400, (4000, 400))
    spread = ((scores * weights)[draws].sum(1) / weights[draws].sum(1)).std()
    assert standard_error(scores.tolist(), weights.tolist()) == pytest.approx(spread, rel=0.05)
    assert standard_error([1.0], [1.0]) is None


def test_choices_take_the_likeliest_answer_and_share_ties(tmp_path: Path) -> None:
    file = tmp_path / "choices.jsonl"
    lines = [{"question": "2 + 2 =", "choices": ["3", "4", "5"], "answer": 1}]
    lines += [{"question": "Sky?", "choices": ["green", "blue"], "answer": "blue"}]
    file.write_text("".join(json.dumps(one) + "\n" for one in lines))
    task = ChoiceTask("choices", file)
    assert task.sizes() == {"items": 2, "requests": 5}
    right = RuleScorer(str, lambda question, answer: answer in (" 4", " blue"))
    assert [one.score for one in task.run(right)] == [1, 1]
    wrong = RuleScorer(str, lambda question, answer: answer in (" 3", " green"))
    assert [one.score for one in task.run(wrong)] == [0, 0]
    assert task.about()["chance"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    file.write_text('{"question": "a", "choices": ["same", "same2"], "answer": 2}\n')
    with pytest.raises(BadInput, match=r"choices.jsonl:1: answer is 2; expected one of its 2"):
        ChoiceTask("choices", file)


class Counted:
    """A task of one item that notes when it runs, and may be cut short."""

    metric, higher_is_better = "accuracy", True

    def __init__(self, name: str, ran: list[str], fails: bool = False, score: float = 1.0) -> None:
        self.name, self.ran, self.fails, self.score = name, ran, fails, score

    def sizes(self) -> dict[str, int]:
        return {"items": 1, "requests": 1}

    def about(self) -> dict[str, object]:
        return {"kind": "counted"}

    def run(self, scorer: Scorer, progress: Progress = silent) -> list[Item]:
        if self.fails:
            raise KeyboardInterrupt
        self.ran.append(self.name)
        return [Item("0", self.score)]


def test_a_killed_run_goes_on_with_the_tasks_that_are_left(tmp_path: Path) -> None:
    out, ran, scorer = tmp_path / "scores", [], RuleScorer(str)
    work, model = partial_folder(out), {"folder": "m"}
    tasks: list[Task] = [Counted("a", ran), Counted("b", ran, fails=True)]
    with pytest.raises(KeyboardInterrupt):
        run_tasks(scorer, tasks, work, {"model": 1})
    assert not out.exists()
    with pytest.raises(BadInput, match="another evaluation"):
        run_tasks(scorer, tasks, work, {"model": 2})
    finished = run_tasks(scorer, [Counted("a", ran), Counted("b", ran, score=math.nan)], work, {"model": 1})
    assert ran == ["a", "b"]
    record = publish_results(out, finished, model)
    verify(out, "evaluation")
    assert not work.exists()
    assert json.loads((out / "results.json").read_text()) == record
    rows = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    assert [(one["task"], one["score"]) for one in rows] == [("a", 1.0), ("b", None)]
    assert record["tasks"]["b"]["not_finite"] == 1
    assert record["tasks"]["b"]["value"] is None


def test_everything_missing_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("some text\n")
    (one,) = make_tasks(["notes:bytes=4"], Where(tmp_path))
    assert one.sizes()["bytes"] == 4
    with pytest.raises(BadInput) as error:
        make_tasks(["nothing", "notes:bites=4", "notes:limit=none", "choices"], Where(tmp_path))
    text = str(error.value)
    assert "task 'nothing'" in text
    assert "no option 'bites'" in text
    assert "did you mean 'bytes'" in text
    assert "limit is none; expected a whole number" in text
    assert "no choices.jsonl below" in text
    with pytest.raises(BadInput, match="asked for twice"):
        make_tasks(["notes", "notes"], Where(tmp_path))


def test_a_task_may_have_a_name_of_its_own(tmp_path: Path) -> None:
    library = write_library(tmp_path / "library")
    first, second = make_tasks((f"{library}/plays:as=plays", f"{library}:as=all,limit=2"), Where())
    assert (first.name, second.name) == ("plays", "all")
    with pytest.raises(BadInput, match="expected letters, digits"):
        make_tasks((f"{library}:as=a/b",), Where())
    with pytest.raises(BadInput, match="task 'same' is asked for twice"):
        make_tasks((f"{library}/plays:as=same", f"{library}/prose:as=same"), Where())
