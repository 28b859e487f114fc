"""A finished run is known again by what it trained on and how, wherever its folders lie."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.study.bases import STUDY, write_study
from tests.study.test_evidence import finish
from tests.tokens import write_tokens
from trine.study.evidence import write_evidence
from trine.study.kept import records
from trine.study.plan import Program

PLAIN = STUDY[: STUDY.index("  - name: muon")] + STUDY[STUDY.index("  - name: plain") : STUDY.index("claims:")]
PLAIN += "measures: [bits_per_byte, max_vio]\nplot: {curve: bits_per_byte}\n"


def finished(folder: Path, kept: Path) -> Program:
    """A program whose two runs are finished and kept."""
    program = Program([write_study(folder, PLAIN)], folder / "out", kept=kept)
    for spec in program.runs():
        finish(spec, 2.25)
        spec.keep()
    return program


def test_a_kept_run_is_finished_in_another_folder_and_not_when_anything_differs(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    for name in "ab":
        (tmp_path / name).mkdir()
    finished(tmp_path / "a", kept)
    study = write_study(tmp_path / "b", PLAIN)
    there = Program([study], tmp_path / "b" / "out", kept=kept)
    assert [one.result() is not None for one in there.runs()] == [True, True]
    other = Program([study], tmp_path / "b" / "out", kept=kept, options=["--optim.adamw.lr", "0.02"])
    assert [one.result() for one in other.runs()] == [None, None]


def test_other_tokens_are_another_run(tmp_path: Path) -> None:
    finished(tmp_path, tmp_path / "kept")
    shutil.rmtree(tmp_path / "out")
    shutil.rmtree(tmp_path / "tokens")
    write_tokens(tmp_path / "tokens", seed=9)
    again = Program([tmp_path / "tiny.yaml"], tmp_path / "out", kept=tmp_path / "kept")
    assert [one.result() for one in again.runs()] == [None, None]


def test_the_page_is_the_same_without_runs_and_tokens(tmp_path: Path) -> None:
    program = finished(tmp_path, tmp_path / "kept")
    write_evidence(program, tmp_path / "first.md")
    shutil.rmtree(tmp_path / "out")
    shutil.rmtree(tmp_path / "tokens")
    write_evidence(Program([tmp_path / "tiny.yaml"], tmp_path / "out", kept=tmp_path / "kept"), tmp_path / "second.md")
    first = (tmp_path / "first.md").read_text()
    assert "2 of 2 runs are finished" in first
    assert "M parameters" in first
    assert (tmp_path / "second.md").read_text() == first.replace("first/", "second/")


def test_records_have_what_measures_read(tmp_path: Path) -> None:
    program = finished(tmp_path, tmp_path / "kept")
    found = program.runs()[0].keep()
    assert found is not None
    one = records(found)[2]
    assert one == {"step": 3, "tokens": 288, "loss": 3.0, "max_vio": 1.0, "bits_per_byte": {"heldout": 3.25}}


@pytest.mark.parametrize(("field", "known"), [("added_later", True), ("clip_norm", False)])
def test_a_field_that_came_later_is_no_difference_but_a_default_that_changed_is(
    tmp_path: Path, field: str, known: bool
) -> None:
    program = finished(tmp_path, tmp_path / "kept")
    shutil.rmtree(tmp_path / "out")
    for path in (tmp_path / "kept").iterdir():
        kept = json.loads(path.read_text())
        kept["config"]["optim"][field] = 123.0
        path.with_name(f"x-{path.name}").write_text(json.dumps(kept))
        path.unlink()
    assert [one.result() is not None for one in program.runs()] == [known, known]


def test_words_stand_for_the_files_that_a_run_reads(tmp_path: Path) -> None:
    kept, study = tmp_path / "kept", write_study(tmp_path, PLAIN)
    programs = []
    for name in ("one.yaml", "two.yaml", "other.yaml"):
        path = str(tmp_path / name)
        words = {path: "best-half"} if name != "other.yaml" else {path: "worst-half"}
        programs.append(Program([study], tmp_path / name, kept=kept, options=["--train.only", path], words=words))
    for spec in programs[0].runs():
        finish(spec, 2.25)
        spec.keep()
    assert [[spec.result() is not None for spec in one.runs()] for one in programs] == [
        [True] * 2,
        [True] * 2,
        [False] * 2,
    ]
    assert json.loads(next(iter(kept.iterdir())).read_text())["config"]["train"]["only"] == "best-half"
