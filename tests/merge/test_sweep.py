"""Searches as pure functions, Pareto fronts against their definition, sweeps taken up where they were killed."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trine.errors import BadInput, TrineError
from trine.merge.search import Point, search
from trine.merge.sweep import pareto, score, sweep
from trine.merge.sweep_config import SweepConfig

CMA = {
    "score": "s {model}",
    "search": "cma",
    "vary": (
        {"at": "parameters.weight", "low": 0.0, "high": 4.0},
        {"at": "parameters.lambda", "low": -1.0, "high": 1.0},
    ),
    "evaluations": 90,
}


def points_of(config: SweepConfig, value: dict[str, float] | None = None) -> list[Point]:
    """Every point of a search for the minimum of a tilted bowl at (3, -0.5)."""
    finder, found = search(config), []
    batch = next(finder)
    try:
        while True:
            found += batch
            batch = finder.send([-((x - 3) ** 2) - 10 * (y + 0.5) ** 2 - (x - 3) * (y + 0.5) for x, y in batch])
    except StopIteration:
        return found


def test_cma_finds_the_minimum_within_its_bounds_and_repeats_itself() -> None:
    found = np.array(points_of(SweepConfig.model_validate(CMA)))
    assert found.shape == (90, 2)
    assert found.min(axis=0)[1] >= -1
    assert found.min(axis=0)[0] >= 0
    assert found.max(axis=0)[0] <= 4
    assert found.max(axis=0)[1] <= 1
    np.testing.assert_allclose(found[-6:].mean(axis=0), [3, -0.5], atol=0.15)
    np.random.seed(5)
    np.testing.assert_array_equal(points_of(SweepConfig.model_validate(CMA)), found)
    assert not np.array_equal(points_of(SweepConfig.model_validate(CMA | {"seed": 1})), found)
    after = np.random.random()
    np.random.seed(5)
    assert after == np.random.random()


def test_cma_keeps_to_its_evaluations() -> None:
    for count in (1, 5, 7):
        config = SweepConfig.model_validate(CMA | {"evaluations": count, "population": 6})
        assert len(points_of(config)) == count


@given(st.lists(st.lists(st.one_of(st.none(), st.integers(0, 4)), min_size=2, max_size=2), max_size=12))
def test_the_front_is_what_nothing_dominates(scores: list[list[float | None]]) -> None:
    found = pareto(scores, ["max", "min"])
    for i, mine in enumerate(scores):
        beaten = None in mine or any(
            None not in other
            and other[0] >= mine[0]  # type: ignore[operator]
            and other[1] <= mine[1]  # type: ignore[operator]
            and other != mine
            for other in scores
        )
        assert (i in found) == (not beaten)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"search": "grid"}, "has no values"),
        ({"score": "s"}, "has no {model}"),
        ({"vary": ({"at": "a", "low": 1.0, "high": 0.0},)}, "low below high"),
        ({"vary": ({"at": "a", "low": 0.0, "high": 1.0, "start": 2.0},)}, "outside"),
    ],
)
def test_mistakes_are_said(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SweepConfig.model_validate(CMA | change)


def test_scores_are_read_from_the_last_line(tmp_path: Path) -> None:
    def run(code: str) -> dict[str, float | None]:
        (tmp_path / "s.py").write_text(code)
        words = f"'{sys.executable}' '{tmp_path}/s.py' {{model}}"
        return score(words, tmp_path / "m", tmp_path / "log", ["t.a.bits", "n"])

    assert run("print('noise'); print(0.25); print()") == {"score": 0.25}
    assert run('import sys; print(\'{"a": 1, "b": NaN}\')') == {"a": 1.0, "b": None}
    assert run("import sys; print(len(sys.argv[1]))") == {"score": len(str(tmp_path / "m"))}
    record = {"t": {"a": {"bits": 1.5, "name": "x"}}, "n": 2, "text": "y", "list": [1]}
    assert run(f"print({json.dumps(record)!r})") == {"t.a.bits": 1.5, "n": 2.0}
    with pytest.raises(TrineError, match=r"no n or t.a.bits in the record"):
        run('print(\'{"t": {"b": 1}}\')')
    with pytest.raises(TrineError, match=r"exit code 3.*\nbroken"):
        run("import sys; print('broken', file=sys.stderr); sys.exit(3)")
    for text in ("", "text", "[1]", "{}", '{"a": "b"}', "true"):
        with pytest.raises(TrineError, match="expected a number"):
            run(f"print({text!r})")
    with pytest.raises(TrineError, match="cannot be run"):
        score("/nowhere/at/all {model}", tmp_path, tmp_path / "log")


GRID = """score: "'{0}' {1}/score.py {{model}}"
goals: {{near: max, far: min}}
vary:
  - {{at: parameters.weight, values: [0.1, 0.4, 0.9]}}
  - {{at: [models.0.x, models.1.x], values: [1, 2]}}
"""
BASE = "parameters: {weight: 0}\nmodels: [{x: 0}, {x: 0}]\n"


class _Killed(BaseException):
    pass


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "merge.yaml").write_text(BASE)
    (tmp_path / "sweep.yaml").write_text(GRID.format(sys.executable, tmp_path))
    (tmp_path / "score.py").write_text(
        "import json, sys\nm = json.load(open(sys.argv[1] + '/m'))\n"
        "w, x = m['parameters']['weight'], m['models'][1]['x']\n"
        "print(json.dumps({'near': w * x, 'far': w}))\n"
    )
    return tmp_path


def made(place: Path, out: str, stop: int | None = None, settings: dict | None = None) -> tuple[dict, list[int]]:
    """A sweep whose merges are copies of their recipes; `stop`: die in that merge."""
    numbers: list[int] = []

    def merge(recipe: Path, model: Path) -> None:
        if stop is not None and int(recipe.stem) == stop:
            raise _Killed
        numbers.append(int(recipe.stem))
        model.mkdir()
        (model / "m").write_text(recipe.read_text())

    return sweep(place / "sweep.yaml", place / "merge.yaml", place / out, settings or {}, merge), numbers


def test_a_grid_tries_everything_and_leaves_recipes(place: Path) -> None:
    record, numbers = made(place, "out")
    assert numbers == list(range(6))
    points = [tuple(one["values"].values()) for one in record["merges"]]
    assert points == list(itertools.product([0.1, 0.4, 0.9], [1, 2]))
    recipe = json.loads((place / "out" / "0003.yaml").read_text())
    assert recipe == {"parameters": {"weight": 0.4}, "models": [{"x": 2.0}, {"x": 2.0}]}
    assert [one["merge"] for one in record["merges"] if one["pareto"]] == [1, 3, 5]
    assert not list((place / "out").glob("model-*"))
    assert json.loads((place / "out" / "pareto.json").read_text()) == record


@pytest.mark.parametrize("damage", ["none", "cut", "scored twice"])
def test_a_sweep_that_was_killed_ends_in_the_same_table(place: Path, damage: str) -> None:
    made(place, "whole")
    with pytest.raises(_Killed):
        made(place, "out", stop=4)
    journal = place / "out" / "sweep.jsonl"
    if damage == "cut":
        journal.write_bytes(journal.read_bytes()[:-9])
    elif damage == "scored twice":  # killed between the merge and its score
        (place / "out" / "model-0004").mkdir()
        (place / "out" / "model-0004" / "m").write_text(
            json.dumps({"parameters": {"weight": 0.9}, "models": [0, {"x": 1}]})
        )
    _, numbers = made(place, "out")
    assert numbers == {"none": [4, 5], "cut": [3, 4, 5], "scored twice": [5]}[damage]
    assert (place / "out" / "pareto.json").read_bytes() == (place / "whole" / "pareto.json").read_bytes()
    _, numbers = made(place, "out")
    assert numbers == []


def test_another_sweep_is_refused(place: Path) -> None:
    made(place, "out")
    with pytest.raises(BadInput, match="another config or with other options"):
        made(place, "out", settings={"seed": 1})
    (place / "other").mkdir()
    (place / "other" / "file").touch()
    with pytest.raises(BadInput, match="holds no sweep"):
        made(place, "other")
    (place / "sweep.yaml").write_text(GRID.format(sys.executable, place).replace("models.1.x", "models.7.x"))
    with pytest.raises(BadInput, match=r"'models.7.x' does not fit the merge config merge: models has 2 entries"):
        made(place, "third")
    assert not (place / "third").exists()
    (place / "sweep.yaml").write_text(GRID.format(sys.executable, place).replace("near: max", "nearest: max"))
    with pytest.raises(TrineError, match="no score 'nearest'; got near, far"):
        made(place, "fourth")


def test_other_merge_configs_share_the_table(place: Path) -> None:
    (place / "slerp.yaml").write_text("parameters: {t: 0, weight: 0.2}\nmodels: [{x: 0}, {x: 3}]\n")
    with (place / "sweep.yaml").open("a") as file:
        file.write("others:\n  - {config: slerp.yaml, vary: [{at: parameters.t, values: [0.5, 0.7]}]}\n")
    whole, _ = made(place, "whole")
    assert [(one["config"], one["merge"]) for one in whole["merges"]][5:] == [("merge", 5), ("slerp", 6), ("slerp", 7)]
    assert whole["merges"][7]["values"] == {"parameters.t": 0.7}
    assert whole["merges"][7]["scores"] == {"near": 0.2 * 3, "far": 0.2}
    assert json.loads((place / "whole" / "0007.yaml").read_text())["parameters"] == {"t": 0.7, "weight": 0.2}
    with pytest.raises(_Killed):
        made(place, "out", stop=7)
    assert made(place, "out")[1] == [7]
    assert (place / "out" / "pareto.json").read_bytes() == (place / "whole" / "pareto.json").read_bytes()
    (place / "sweep.yaml").write_text((place / "sweep.yaml").read_text().replace("slerp.yaml", "other/merge.yaml"))
    (place / "other").mkdir()
    (place / "other" / "merge.yaml").write_text(BASE)
    with pytest.raises(BadInput, match="two merge configs are named 'merge'"):
        made(place, "third")
    others = ({"config": "a.yaml", "vary": ({"at": "x", "values": (1.0,)},)},)
    with pytest.raises(ValueError, match="cma searches one merge config"):
        SweepConfig.model_validate(CMA | {"others": others})


@pytest.mark.parametrize(
    ("limit", "merge", "why"),
    [(0.5, 3, "best near of 4 merges"), (4.0, 5, "best near of 6 merges"), (-0.9, 0, "no merge is within the limits")],
)
def test_the_chosen_merge_is_the_best_within_the_limits(place: Path, limit: float, merge: int, why: str) -> None:
    (place / "start").mkdir()
    (place / "start" / "m").write_text('{"parameters": {"weight": 0.3}, "models": [{}, {"x": 1}]}')
    with (place / "sweep.yaml").open("a") as file:
        file.write(f"baseline: {place}/start\nchoose: {{best: near, loss_limits: {{far: {limit}}}}}\n")
    record, _ = made(place, "out")
    assert record["baseline"]["scores"] == {"near": 0.3, "far": 0.3}
    assert record["chosen"]["merge"] == merge
    assert record["chosen"]["why"].startswith(why)
    assert (place / "out" / "chosen.yaml").read_text() == (place / "out" / f"{merge:04}.yaml").read_text()
    (place / "start" / "m").unlink()
    assert made(place, "out") == (record, [])


def test_a_choice_needs_a_baseline_and_goals() -> None:
    choice = {"best": "score", "loss_limits": {"other": 0.1}}
    with pytest.raises(ValueError, match="a baseline, which is missing"):
        SweepConfig.model_validate(CMA | {"choose": choice})
    with pytest.raises(ValueError, match="'other' is not among the goals"):
        SweepConfig.model_validate(CMA | {"choose": choice, "baseline": "m"})


def test_a_score_command_has_a_folder_of_its_own(place: Path) -> None:
    with (place / "score.py").open("a") as file:
        file.write("import os\nos.mkdir(sys.argv[2])\n")
    sweep_file = place / "sweep.yaml"
    sweep_file.write_text(sweep_file.read_text().replace("{model}", "{model} {scratch}"))
    with pytest.raises(_Killed):
        made(place, "out", stop=2)
    (place / "out" / "scratch").mkdir()  # of a call that was killed
    assert made(place, "out")[1] == [2, 3, 4, 5]
    assert not (place / "out" / "scratch").exists()
