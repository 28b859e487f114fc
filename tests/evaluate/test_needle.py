"""Needles: where they lie, how long the text is, 1.0 for a scorer that copies and chance for one that guesses."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from tests.evaluate.folders import RuleScorer, write_afmoe
from trine.errors import BadInput
from trine.evaluate.catalog import Where, make_tasks
from trine.evaluate.items import summary
from trine.evaluate.needle import CHOICES, NeedleTask
from trine.evaluate.scorer import ModelScorer


def copies(text: str) -> str:
    """Reads the needle and says its number."""
    key = re.findall(r"The secret number of the (\w+) is$", text)[0]
    told = re.findall(rf"The secret number of the {key} is (\d+)\.", text)
    return f" {told[0]}.\n"


def guesses(text: str) -> str:
    """One of the question's numbers, drawn."""
    named = re.findall(r"Which of the numbers (.*) is the secret", text)[0].split(", ")
    return f" {random.Random(text).choice(named)}"


@pytest.mark.parametrize("length", [80, 1000])
def test_one_that_copies_scores_one_and_one_that_guesses_chance(length: int) -> None:
    task = NeedleTask("needle", length, (0.0, 0.5, 1.0), 300)
    assert summary(task, task.run(RuleScorer(copies)))["value"] == 1.0
    guessed = summary(task, task.run(RuleScorer(guesses)))
    assert guessed["value"] == pytest.approx(1 / CHOICES, abs=4 * guessed["standard_error"])
    assert 0.005 < guessed["standard_error"] < 0.015
    assert summary(task, task.run(RuleScorer(lambda text: "I do not know")))["value"] == 0


@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_the_needle_lies_at_its_depth_in_a_text_of_the_length(depth: float) -> None:
    scorer = RuleScorer(copies)
    task = NeedleTask("needle", 500, (depth,), 5)
    for one in task.needles:
        text = task.text(scorer, one)
        assert 470 <= scorer.count(text) <= 500 - 8
        hay, _, question = text.rpartition("\nWhich")
        assert hay.count(one.needle) == 1
        assert len(re.findall(one.answer, text)) == 2  # in the needle and among the numbers to choose from
        assert "Answer:" in question
        place = scorer.count(hay[: hay.index(one.needle)]) / (scorer.count(hay) - scorer.count(one.needle))
        assert place == pytest.approx(depth, abs=0.05)


def test_the_same_seed_asks_the_same_and_options_are_read(tmp_path: Path) -> None:
    (tmp_path / "hay.txt").write_text("Hay is dry grass. It is cut in June! Is it not?\n" * 60)
    (one,) = make_tasks(["needle:length=300,items=2,depth=0.5 1,hay=hay.txt"], Where(tmp_path))
    (same,) = make_tasks(["needle:length=300,items=2,depth=0.5 1,hay=hay.txt"], Where(tmp_path))
    (other,) = make_tasks(["needle:length=300,items=2,depth=0.5 1,seed=3"], Where(tmp_path))
    assert isinstance(one, NeedleTask)
    assert isinstance(same, NeedleTask)
    assert isinstance(other, NeedleTask)
    assert one.needles == same.needles
    assert one.needles[0] != other.needles[0]
    assert len(one.needles) == 4
    assert "cut in June" in one.text(RuleScorer(copies), one.needles[0])
    with pytest.raises(BadInput, match="expected numbers from 0 to 1"):
        make_tasks(["needle:depth=2"], Where())


def test_texts_longer_than_the_model_reads_are_refused(tmp_path: Path) -> None:
    scorer = ModelScorer(write_afmoe(tmp_path / "model"))
    with pytest.raises(BadInput, match="4096 tokens; the model reads 96 at once"):
        NeedleTask("needle", 4096, (0.5,), 1).run(scorer)
    with pytest.raises(BadInput, match="too few for the needle"):
        NeedleTask("needle", 60, (0.5,), 1).run(scorer)
