"""The bootstrap against a plain fp64 loop, the gate's and the comparison's arithmetic, and what cannot be judged."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluate.folders import RuleScorer
from tests.report.test_report import PAYLOADS
from trine.errors import BadInput, TrineError
from trine.evaluate.asking import Scorer
from trine.evaluate.bootstrap import DRAWS, drawn_means, gains, interval
from trine.evaluate.compare import compare_evaluations
from trine.evaluate.gate import Limits, judge, read_share
from trine.evaluate.items import Item, Task, prompt_hash
from trine.evaluate.pairing import Paired, pair, read_evaluation
from trine.evaluate.runner import partial_folder, publish_results, run_tasks
from trine.progress import Progress, silent
from trine.report.evidence import write_comparison, write_gate


def paired(name: str, base: Any, new: Any, weights: Any = None, higher: bool = False) -> Paired:
    scores = np.array([base, new], np.float64)
    count = scores.shape[1]
    chosen = np.ones(count) if weights is None else np.asarray(weights, np.float64)
    metric = "accuracy" if higher else "bits_per_byte"
    return Paired(name, metric, higher, [str(i) for i in range(count)], scores, chosen, [""] * count, 0)


def test_draws_are_the_definition_item_by_item() -> None:
    rng = np.random.default_rng(0)
    scores, weights = rng.normal(3, 1, (2, 7)), rng.integers(1, 9, 7).astype(float)
    found = drawn_means(list(scores), weights, seed=5, name="set", draws=40)
    again = drawn_means([scores[1]], weights, seed=5, name="set", draws=40)
    assert (found[1] == again[0]).all()  # the same items for every model
    assert not (found == drawn_means(list(scores), weights, seed=6, name="set", draws=40)).any()
    assert not (found == drawn_means(list(scores), weights, seed=5, name="other", draws=40)).any()
    from hashlib import sha256

    key = int.from_bytes(sha256(b"set").digest()[:8], "little")
    index = np.random.default_rng([5, key]).integers(0, 7, (40, 7))
    for draw in range(40):
        for model in range(2):
            total = weight = 0.0
            for item in index[draw]:
                total += float(scores[model, item]) * float(weights[item])
                weight += float(weights[item])
            assert found[model, draw] == pytest.approx(total / weight, rel=1e-14)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(300):
        scores, weights = rng.normal(1, 1, 60), np.ones(60)
        low, high = interval(drawn_means([scores], weights, trial, "set", draws=800)[0])
        covered += low <= 1 <= high
    assert 0.90 <= covered / 300 <= 0.98
    values = np.arange(1, 101.0)
    assert interval(values) == (3.0, 98.0)  # ends are drawn values, never inside the exact ones
    assert interval(np.array([1.0, math.inf, 2.0])) == (1.0, math.inf)


def test_gains_are_relative_and_positive_where_better() -> None:
    assert gains(np.array([2.0]), np.array([1.9]), False)[0] == pytest.approx(0.05)
    assert gains(np.array([0.5]), np.array([0.45]), True)[0] == pytest.approx(-0.1)
    zero = gains(np.array([0.0, 0.0]), np.array([0.0, 0.3]), True)
    assert zero.tolist() == [0.0, math.inf]


def shown(page: str) -> Any:
    """What a page's script draws."""
    return json.loads(page.partition('id="data">')[2].partition("</script>")[0])


def shifted(seed: int, change: float, spread: float = 0.002, count: int = 80) -> tuple[Any, Any]:
    """Bits of very different documents, and the same changed by about a share."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(0.5, 4, count)
    return base, base * (1 - change + rng.normal(0, spread, count))


@pytest.mark.parametrize(
    ("general", "domain", "passed"),
    [(-0.005, 0.10, True), (-0.02, 0.10, False), (-0.005, 0.03, False), (0.05, 0.06, True)],
)
def test_the_gate_passes_within_both_limits(general: float, domain: float, passed: bool) -> None:
    sets = [paired("books", *shifted(0, general)), paired("wiki", *shifted(1, general))]
    record = judge(sets, [paired("filings", *shifted(2, domain))], Limits(0.01, 0.05), seed=0)
    assert record["passed"] is passed
    assert record["general"]["change"] == pytest.approx(general, abs=2e-3)
    assert record["domain"]["change"] == pytest.approx(domain, abs=2e-3)
    for side in (record["general"], record["domain"]):
        assert side["low"] < side["change"] < side["high"]
        assert side["high"] - side["low"] < 0.005  # paired: documents differ by far more than models do
    assert record["items"] == 240
    mean = np.mean([one["change"] for one in record["general"]["sets"].values()])
    assert record["general"]["change"] == pytest.approx(mean)


def test_the_worse_end_decides_not_the_mean() -> None:
    noisy = shifted(3, 0.06, spread=0.3, count=20)
    record = judge([paired("g", *shifted(0, 0.0))], [paired("d", *noisy)], Limits(0.01, 0.0001), seed=0)
    assert record["domain"]["low"] < 0 < record["domain"]["high"]
    assert not record["domain"]["passed"]
    assert record["general"]["passed"]


def test_a_side_is_drawn_as_a_plain_bootstrap_draws_it() -> None:
    base, new = shifted(4, 0.03, spread=0.1, count=50)
    weights = np.random.default_rng(9).integers(100, 9000, 50)
    score = (np.array([0, 1, 1, 0, 1] * 8), np.array([1, 1, 0, 0, 1] * 8))
    sets = [paired("text", base, new, weights), paired("task", *score, higher=True)]
    record = judge(sets, [paired("d", base, new)], Limits(0.5, 0.0), seed=11)
    rng, draws = np.random.default_rng(77), []
    for _ in range(4000):
        i, j = rng.integers(0, 50, 50), rng.integers(0, 40, 40)
        before, after = (base * weights)[i].sum() / weights[i].sum(), (new * weights)[i].sum() / weights[i].sum()
        text = (before - after) / before
        task = (score[1][j].mean() - score[0][j].mean()) / score[0][j].mean()
        draws.append((text + task) / 2)
    low, high = np.quantile(draws, [0.025, 0.975])
    assert record["general"]["low"] == pytest.approx(low, abs=0.02)
    assert record["general"]["high"] == pytest.approx(high, abs=0.02)
    assert record["draws"] == DRAWS == 10_000


def test_what_cannot_be_judged_is_said() -> None:
    fine, limits = paired("d", *shifted(0, 0.1)), Limits(0.01, 0.05)
    with pytest.raises(BadInput, match="set 'g': 1 item; an interval needs at least 2"):
        judge([paired("g", [1.0], [1.0])], [fine], limits, 0)
    with pytest.raises(TrineError, match="set 'g': the base's accuracy is 0"):
        judge([paired("g", [0, 0, 0], [1, 0, 1], higher=True)], [fine], limits, 0)
    with pytest.raises(TrineError, match=r"1 of 3 items have no finite bits_per_byte in the new model, first 1"):
        judge([paired("g", [1, 2, 3], [1, math.nan, 3])], [fine], limits, 0)
    with pytest.raises(TrineError, match="in the base, first 0"):
        judge([paired("g", [math.inf, 2, 3], [1, 2, 3])], [fine], limits, 0)
    rare = paired("g", [1, 0, 0, 0], [1, 1, 1, 0], higher=True)  # draws without the one right answer gain infinitely
    record = judge([rare], [fine], limits, 0)
    assert record["general"]["change"] == 2
    assert record["general"]["high"] is None
    assert record["general"]["low"] >= 0


def test_shares_are_read() -> None:
    assert [read_share(one, "--x") for one in ("1%", "0.01", "0", " 2.5 % ", "150%")] == [0.01, 0.01, 0, 0.025, 1.5]
    for wrong in ("-1%", "one", "", "nan", "inf"):
        with pytest.raises(BadInput, match="--x is"):
            read_share(wrong, "--x")
    with pytest.raises(BadInput, match="write 5% for percent"):
        read_share("5", "--x")


class Fixed:
    """A task with given scores."""

    metric, higher_is_better = "accuracy", True

    def __init__(self, name: str, scores: dict[str, float], group: str = "") -> None:
        self.name, self.scores, self.group = name, scores, group

    def sizes(self) -> dict[str, int]:
        return {"items": len(self.scores), "requests": 0}

    def about(self) -> dict[str, Any]:
        return {}

    def run(self, scorer: Scorer, progress: Progress = silent) -> list[Item]:
        group = ("even", "odd")
        return [Item(k, v, group=group[int(k) % 2], prompt=prompt_hash(k)) for k, v in self.scores.items()]


def evaluation(out: Path, *tasks: Task) -> Path:
    model = {"folder": PAYLOADS[0], "fingerprint": "0" * 64, "dtype": "float32", "longest": 96}
    publish_results(out, run_tasks(RuleScorer(str), tasks, partial_folder(out), {}), model)
    return out


def test_models_are_compared_item_by_item(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2, 200).tolist()
    worse = [value if i % 9 else 0 for i, value in enumerate(base)]
    tables = [{str(i): float(v) for i, v in enumerate(one)} for one in (base, base, worse)]
    tables[1].pop("3")
    folders = [
        evaluation(tmp_path / f"e{n}", Fixed("quiz", one), Fixed(f"own{n}", one)) for n, one in enumerate(tables)
    ]
    record = compare_evaluations([read_evaluation(one) for one in folders], seed=0)
    quiz = record["tasks"]["quiz"]
    assert list(record["tasks"]) == ["quiz"]
    assert record["not_in_all"] == ["own0", "own1", "own2"]
    assert (quiz["items"], quiz["unpaired"]) == (199, 1)
    same, down = quiz["against_first"]
    assert (same["difference"], same["low"], same["high"], same["verdict"]) == (0, 0, 0, "no clear difference")
    lost = sum(a != b for a, b in zip(base, worse, strict=True))
    assert (down["items_better"], down["items_worse"], down["verdict"]) == (0, lost, "worse")
    assert down["difference"] == pytest.approx(-lost / 199)
    assert down["low"] < down["difference"] < down["high"] < 0
    assert quiz["groups"]["even"]["items"] + quiz["groups"]["odd"]["items"] == 199
    page = write_comparison(record, "compared", tmp_path / "compare.html").read_text()
    assert shown(page)["tiles"][0]["value"] == "1"
    assert PAYLOADS[0] not in page


def test_other_items_are_not_compared(tmp_path: Path) -> None:
    one = read_evaluation(evaluation(tmp_path / "a", Fixed("quiz", {"0": 1, "1": 0})))
    two = read_evaluation(evaluation(tmp_path / "b", Fixed("quiz", {"2": 1, "3": 0})))
    with pytest.raises(BadInput, match="no item is in all"):
        compare_evaluations([one, two], 0)
    other = read_evaluation(evaluation(tmp_path / "c", Fixed("quiz", {"0": 1, "1": 0})))
    other.tasks["quiz"].items[1]["prompt_sha256"] = "0"
    with pytest.raises(BadInput, match="item 1 has another prompt_sha256"):
        pair([one.tasks["quiz"], other.tasks["quiz"]], ["a", "c"])
    (tmp_path / "b" / "items.jsonl").write_text("")
    with pytest.raises(TrineError, match=r"items\.jsonl"):
        read_evaluation(tmp_path / "b")


def test_the_gates_page_shows_what_the_record_says(tmp_path: Path) -> None:
    sides = [paired(PAYLOADS[0], *shifted(0, -0.03))], [paired("filings", *shifted(1, 0.1))]
    record = judge(*sides, Limits(0.01, 0.05), seed=0)
    model = {"folder": "m", "fingerprint": "0" * 64, "dtype": "float32", "longest": 96}
    page = write_gate(record | {"base": model, "new": model}, "gated", tmp_path / "gate.html").read_text()
    assert shown(page)["tiles"][0]["value"] == "failed"
    assert shown(page)["forests"][0]["limit"] == -1
    assert PAYLOADS[0] not in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    json.dumps(record, allow_nan=False)
