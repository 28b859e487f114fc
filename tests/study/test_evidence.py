"""The page says what the runs say: verdicts of either kind, divergence, and what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.study.bases import STUDY, write_study
from trine.study.evidence import write_evidence
from trine.study.plan import Program, RunSpec

Bits = Callable[[RunSpec], float | None]
SEEDS = STUDY.replace("seeds: [0, 1]", "seeds: [0, 1, 2]")


def finish(spec: RunSpec, bits: float | None) -> None:
    """Leave what a finished run of four steps leaves."""
    spec.folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "step": step,
            "tokens": 96 * step,
            "loss": 3.0,
            "max_vio": 1.0,
            "bits_per_byte": {"heldout": (bits or 0) + 4 - step},
        }
        for step in range(1, 5)
    ]
    (spec.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = {"bits_per_byte": bits, "diverged": None if bits else "step 3: loss nan", "tokens_per_second": 50.0}
    (spec.folder / "result.json").write_text(json.dumps(result | {"environment": {"torch": "2.x"}}))


def page(folder: Path, bits: Bits, stop_at: int = 100) -> tuple[str, dict[str, str]]:
    """The page and the verdicts by arm that muon is compared with, after `stop_at` runs."""
    program = Program([write_study(folder, SEEDS)], folder / "out")
    for _ in range(stop_at):
        if not (todo := [one for one in program.runs() if one.result() is None]):
            break
        finish(todo[0], bits(todo[0]))
    found = write_evidence(program, folder / "evidence.md")
    return (folder / "evidence.md").read_text(), {one.claim.against: one.verdict for one in found["tiny"]}


def seed(spec: RunSpec) -> int:
    assert spec.loaded.config.train is not None
    return spec.loaded.config.train.seed


def arms(**bits: Callable[[int], float | None]) -> Bits:
    def value(spec: RunSpec) -> float | None:
        name = spec.title.split("-")[0]
        rate = spec.loaded.config.optim.muon.lr
        return 2.5 if name == "muon" and rate != 0.02 else bits[name](seed(spec))

    return value


def test_a_steady_difference_is_reproduced_and_its_opposite_contradicted(tmp_path: Path) -> None:
    text, verdicts = page(
        tmp_path,
        arms(muon=lambda s: 2 + s / 10, sign=lambda s: 2.1 + s / 9.9, plain=lambda s: 1.9 + s / 10.1),
    )
    assert verdicts == {"sign": "reproduced", "plain": "contradicted"}
    missed = text[text.index("What did not reproduce") : text.index("## Muon & AdamW")]
    assert "(1 of 2 claims judged)" in missed
    assert "than of plain: contradicted, +0.1" in missed
    assert "than of sign" not in missed
    assert "| muon | 3 of 3 | 2.1 ± 0.1 |" in text
    assert "0.01: 2.5000, **0.02: 2.0000**, 0.04: 2.5000" in text


def test_noise_is_not_shown(tmp_path: Path) -> None:
    _, verdicts = page(tmp_path, arms(muon=lambda s: 2, sign=lambda s: 2 + (s - 1) / 10, plain=lambda s: 2.2))
    assert verdicts["sign"] == "not shown"


def test_a_diverged_run_is_counted_and_left_out(tmp_path: Path) -> None:
    text, verdicts = page(
        tmp_path,
        arms(muon=lambda s: 2 + s / 10, sign=lambda s: None if s == 1 else 2.1 + s / 10.01, plain=lambda s: 2.2),
    )
    assert verdicts["sign"] == "reproduced (1 diverged)"
    assert "| sign | 2 of 3, 1 diverged |" in text


def test_an_unfinished_program_says_how_far_it_is(tmp_path: Path) -> None:
    bits = arms(muon=lambda s: 2 + s / 10, sign=lambda s: 2.1, plain=lambda s: 2.2)
    text, verdicts = page(tmp_path, bits, stop_at=2)
    assert verdicts == {"sign": "open (3 of 3 seeds to come)", "plain": "open (3 of 3 seeds to come)"}
    assert "2 of 11 runs are finished" in text
    assert "What did not reproduce" not in text
    text, verdicts = page(tmp_path, bits, stop_at=5)
    assert verdicts["sign"] == "not shown (1 of 3 seeds to come)"
    assert "7 of 11 runs are finished" in text


def test_one_plot_per_study_lies_beside_the_page(tmp_path: Path) -> None:
    text, _ = page(tmp_path, arms(muon=lambda s: 2 + s / 10, sign=lambda s: 2.1, plain=lambda s: 2.2))
    assert "![Muon & AdamW](evidence/tiny.svg)" in text
    chart = ElementTree.parse(tmp_path / "evidence" / "tiny.svg").getroot()
    lines = list(chart.iter("{http://www.w3.org/2000/svg}polyline"))
    assert [len(one.attrib["points"].split()) for one in lines] == [4, 4, 4]


def test_the_learning_rate_at_the_end_of_its_grid_is_said(tmp_path: Path) -> None:
    def falling(spec: RunSpec) -> float:
        return 3 - spec.loaded.config.optim.muon.lr

    text, _ = page(tmp_path, falling)
    assert "The best lies at the grid's end" in text


@pytest.mark.parametrize(("reached", "word"), [((True, True, False), "not shown"), ((False,) * 3, "contradicted")])
def test_a_loss_that_is_never_reached_is_said(tmp_path: Path, reached: tuple[bool, ...], word: str) -> None:
    study = SEEDS.replace(
        "measure: bits_per_byte, arm: muon, against: sign", "measure: tokens_to_match, arm: muon, against: sign"
    )
    write_study(tmp_path, study)
    program = Program([tmp_path / "tiny.yaml"], tmp_path / "out")
    bits = arms(muon=lambda s: 2, sign=lambda s: 2.1 if reached[s] else 1.0, plain=lambda s: 2.2)
    while todo := [one for one in program.runs() if one.result() is None]:
        finish(todo[0], bits(todo[0]))
    found = write_evidence(program, tmp_path / "evidence.md")["tiny"][0]
    assert found.verdict == f"{word} (never reached with {reached.count(False)} seeds)"
