"""`trine gate` and `trine compare` through the installed command: each exit code, and what is left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Command, read_json, write_texts
from tests.evaluate.folders import write_llama
from trine.cli.main import main
from trine.evaluate.scorer import ModelScorer
from trine.manifest import verify


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, learned/ (the same after some steps on such texts), broken/ (without numbers), and texts of two kinds."""
    folder = tmp_path_factory.mktemp("gate")
    write_texts(folder / "books", 8)
    write_texts(folder / "filings", 8, seed=1)
    write_texts(folder / "one", 1, seed=2)
    (folder / "one" / "000.txt").write_text("a text\n")
    for name in ("base", "learned", "broken"):
        write_llama(folder / name)
    scorer = ModelScorer(folder / "learned")
    peer: Any = scorer.model
    text = scorer.encode("".join(one.read_text() for one in (folder / "books").iterdir()))
    rows = torch.tensor(text[: len(text) // 97 * 97]).view(-1, 97)
    optimizer = torch.optim.AdamW(peer.parameters(), 3e-3)
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(peer(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    peer.peer.save_pretrained(folder / "learned")
    broken: Any = ModelScorer(folder / "broken").model
    broken.output_weight.data.fill_(torch.nan)
    broken.peer.save_pretrained(folder / "broken")
    return folder


def words(base: str, new: str, out: str, *more: str) -> tuple[str, ...]:
    sets = ("--general", "books", "--domain", "filings")
    return ("gate", "--base", base, "--new", new, "--out", out, *(more or sets))


def test_a_model_that_learned_passes_and_is_compared(place: Path, trine: Command) -> None:
    done = trine(*words("base", "learned", "passed"), "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    verify(place / "passed", "gate")
    record = read_json(place / "passed" / "gate.json")
    assert json.loads(done.stdout)["passed"] is record["passed"] is True
    assert record["general"]["limit"] == 0.01
    assert record["domain"]["limit"] == 0.05
    assert record["domain"]["low"] > 0.05
    rows = [json.loads(line) for line in (place / "passed" / "items.jsonl").read_text().splitlines()]
    assert record["items"] == len(rows) > 10
    filings = [one for one in rows if one["side"] == "domain"]
    base, new = (sum(one[k] * one["weight"] for one in filings) for k in ("base", "new"))
    assert record["domain"]["change"] == pytest.approx((base - new) / base)
    assert "Content-Security-Policy" in (place / "passed" / "gate.html").read_text()
    assert not (place / "passed.partial").exists()
    compared = trine("compare", "passed/base", "passed/new", "--out", "compared", cwd=place)
    assert compared.returncode == 0, compared.stderr
    assert compared.stdout.count("better") == 2
    verify(place / "compared", "comparison")


def test_a_model_that_forgot_fails_and_leaves_its_evidence(place: Path, trine: Command) -> None:
    done = trine(*words("learned", "base", "failed"), cwd=place)
    assert done.returncode == 3
    assert "gate failed" in done.stderr
    record = read_json(place / "failed" / "gate.json")
    assert record["passed"] is False
    assert record["general"]["change"] < -0.01
    assert (place / "failed" / "gate.html").is_file()


def test_one_that_cannot_be_run_and_bad_input_have_codes_of_their_own(
    place: Path, trine: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = trine(*words("base", "broken", "none"), cwd=place)
    assert broken.returncode == 1
    assert "have no finite bits_per_byte in the new model" in broken.stderr
    single = trine(*words("base", "base", "none2", "--general", "one", "--domain", "filings"), cwd=place)
    assert single.returncode == 2
    assert "set 'one': 1 item; an interval needs at least 2" in single.stderr
    monkeypatch.chdir(place)
    assert main(words("base", "base", "none2", "--general", "books", "--domain", "books")) == 2
    assert "books: on both sides" in capsys.readouterr().err
    assert main((*words("base", "base", "none2"), "--max-general-loss", "1")) == 2
    assert "write 1% for percent" in capsys.readouterr().err
    assert not (place / "none").exists()
    assert not list(place.glob("none2*"))
