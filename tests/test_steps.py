"""A recipe of steps through the installed command: each step once, in order, going on where it stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trine import steps
from trine.cli.main import main
from trine.errors import CheckFailed

RECIPE = """
inputs:
  - {name: text, kind: text, default: Call me Ishmael.}
steps:
  - name: schema
    run: schema --out schema.json
    inside: true
  - name: check
    run: check '{here}/model.yaml'
  - name: plan
    run: check '{here}/${text}'
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "model.yaml").write_text("model: {hidden_size: 64}\n")
    path = tmp_path / "all.yaml"
    path.write_text(RECIPE)
    return path


def run(*words: object) -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, "-c", "import sys; from trine.cli.main import main; sys.exit(main())", "run"]
    done = subprocess.run([*command, *map(str, words), "--json"], capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout), done.stderr


def test_steps_run_once_and_a_failed_one_is_run_again(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, answer, said = run(recipe, "--text", "absent.yaml", "--out", out)
    assert code == 1
    assert "step plan: exit code 2 of: trine check" in answer["error"]
    assert "absent.yaml: no such file" in said
    first = json.loads((out / "steps" / "schema.json").read_text())
    assert first["words"] == ["schema", "--out", "schema.json"]
    assert (out / "schema.json").is_file()
    assert not (out / "steps" / "plan.json").exists()

    (tmp_path / "absent.yaml").write_text("model: {hidden_size: 32}\n")
    code, answer, said = run(recipe, "--text", "absent.yaml", "--out", out)
    assert code == 0
    assert "step 3 of 3" in said
    assert "step 1 of 3" not in said
    assert answer["steps"]["schema"] == first
    assert answer["steps"]["plan"]["answer"]["sections"] == ["model", "optim"]


def test_another_recipe_is_refused_in_the_folder_of_one(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(recipe, "--text", "model.yaml", "--out", out)[0] == 0
    code, answer, _ = run(recipe, "--text", "other.yaml", "--out", out)
    assert code == 2
    assert "steps.2.run: 'check '{here}/model.yaml'', now 'check '{here}/other.yaml''" in answer["error"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    assert "exists and is no run folder" in run(recipe, "--out", tmp_path / "full")[1]["error"]


def test_a_dry_run_lists_what_is_done(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    _, answer, _ = run(recipe, "--text", "model.yaml", "--out", out, "--dry-run")
    assert [one["done"] for one in answer["steps"]] == [False, False, False]
    assert answer["steps"][2]["command"] == f"trine check {tmp_path}/model.yaml"
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"run: schema": "run: shema"}, "step schema: no verb 'shema'; did you mean 'schema'?"),
        ({"name: check": "name: schema"}, "two steps are named 'schema'"),
        ({"check '{here}/model.yaml'": "check '{here}"}, "step check: No closing quotation"),
        ({"name: text": "name: out"}, "an input may not be named 'out'"),
        ({"run: schema": "runs: schema"}, "did you mean 'run'"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said(
    recipe: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str], said: str
) -> None:
    text = recipe.read_text()
    for old, new in change.items():
        assert old in text
        text = text.replace(old, new, 1)
    recipe.write_text(text)
    assert main(["check", str(recipe), *(["--text", "x"] if "name: text" in text else [])]) == 2
    assert said in capsys.readouterr().err


def test_a_check_that_says_no_is_an_answer_where_the_step_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "_COMMAND", "import sys; print('{\"passed\": false}'); sys.exit(3)")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("steps:\n  - {name: gate, run: report x, may_say_no: true}\n")
    made = steps.run_steps(steps.load_steps(recipe, [], ["report"]), tmp_path / "out", Quiet())
    assert made["steps"]["gate"]["exit_code"] == 3
    assert made["steps"]["gate"]["answer"] == {"passed": False}
    recipe.write_text("steps:\n  - {name: gate, run: report x}\n")
    with pytest.raises(CheckFailed, match="step gate: exit code 3 of: trine report x"):
        steps.run_steps(steps.load_steps(recipe, [], ["report"]), tmp_path / "other", Quiet())


class Quiet:
    def on_event(self, text: str) -> None: ...
