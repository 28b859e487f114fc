"""A program's finished runs to a Markdown page: for each study a table of arms, a table of claims, one plot.

A page can be made at any time; what is not finished is named, and no figure is shown for it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from trine.data.shards import TokenShards
from trine.manifest import write_file
from trine.model.config import ModelConfig
from trine.model.flops import count_parameters
from trine.study.config import ClaimConfig, StudyConfig
from trine.study.kept import records
from trine.study.measures import MEASURES, Trained, bias_change, compare, held_out
from trine.study.plan import ArmPlan, Program, RunSpec, score
from trine.study.statistics import Interval, paired_interval
from trine.study.svg import Curve, line_chart
from trine.train.setup import resolve_vocabulary

_BUCKETS = 120
_METHOD = """\
Made by `trine study` from its runs. Every arm is trained once for each seed, which decides initial weights and the
order of the data; two arms are compared seed by seed. Intervals are 95 % paired Student-t intervals over the seeds: of
the difference, or, where a ratio is given, of the geometric mean of the ratios. A claim is *reproduced* when the whole
interval lies on the side the claim expects, *contradicted* when it lies on the other, else *not shown*. There is no
correction for the number of claims. Steps with planted bad batches are left out of means, variances and counts.
Learning rates were chosen on the first seed by held-out bits per byte.
"""


@dataclass(frozen=True)
class Finding:
    """A claim and what the runs say of it."""

    claim: ClaimConfig
    interval: Interval
    """Of the difference, or of the logarithm of the ratio."""
    never: int
    """Pairs in which the arm never came so far."""
    diverged: int
    """Pairs left out because a run diverged."""
    unknown: int
    """Pairs in which the measure has no value."""
    wanted: int
    """Pairs there are to be."""

    @property
    def verdict(self) -> str:
        """reproduced, contradicted, not shown, not measured or open, and what is missing."""
        notes = [f"never reached with {self.never} seeds"] if self.never else []
        notes += [f"{self.diverged} diverged"] if self.diverged else []
        missing = self.wanted - self.interval.pairs - self.diverged - self.never - self.unknown
        notes += [f"{missing} of {self.wanted} seeds to come"] if missing else []
        return self._word() + (f" ({', '.join(notes)})" if notes else "")

    def _word(self) -> str:
        if self.never:
            return "not shown" if self.interval.pairs else "contradicted"
        if self.interval.pairs < 2:
            return "not measured" if self.unknown else "open"
        expected = self.interval.high < 0 if self.claim.expected == "lower" else self.interval.low > 0
        if expected:
            return "reproduced"
        return "contradicted" if self.interval.excludes(0) else "not shown"

    @property
    def effect(self) -> str:
        one = self.interval
        if math.isnan(one.mean):
            return "–"
        if MEASURES[self.claim.measure].ratio:
            return f"× {math.exp(one.mean):.3g}{_range(math.exp(one.low), _exp(one.high))}"
        return f"{one.mean:+.3g}{_range(one.low, one.high)}"


class _Runs:
    """Records of finished runs, each read once."""

    def __init__(self) -> None:
        self._read: dict[Path, Trained] = {}

    def of(self, spec: RunSpec) -> Trained | None:
        """The run; None while it is not finished, and for one that diverged."""
        kept = spec.keep()
        if kept is None or kept["result"]["diverged"]:
            return None
        if spec.folder not in self._read:
            train = spec.loaded.config.train
            assert train is not None
            self._read[spec.folder] = Trained(records(kept), train.bad_batches)
        return self._read[spec.folder]


def write_evidence(program: Program, page: Path) -> dict[str, list[Finding]]:
    """Write `page` and, beside it, NAME/STUDY.svg (NAME being the page's). Returns the findings of each study."""
    runs, folder = _Runs(), page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        name: [_finding(program, name, one, runs) for one in study.claims] for name, study in program.studies.items()
    }
    parts = ["# Evidence\n", _METHOD, _machine(program), _not_reproduced(program, found)]
    for name, study in program.studies.items():
        write_file(folder / f"{name}.svg", _plot(program, name, runs))
        parts += [
            f"## {study.title}\n\n{study.claim.strip()}\n",
            _setup(program, name),
            _learning_rates(program, name),
            _arms_table(program, name, runs),
            _claims_table(found[name]),
            f"![{study.title}]({folder.name}/{name}.svg)\n",
        ]
    write_file(page, "\n".join(part for part in parts if part))
    return found


def _finding(program: Program, study: str, claim: ClaimConfig, runs: _Runs) -> Finding:
    ours, theirs = program.arm(study, claim.arm).seeds, program.arm(study, claim.against).seeds
    values, diverged = [], 0
    for seed in set(ours) & set(theirs):
        pair = [runs.of(ours[seed]), runs.of(theirs[seed])]
        diverged += any((spec.result() or {}).get("diverged") for spec in (ours[seed], theirs[seed]))
        if pair[0] is not None and pair[1] is not None:
            values.append(compare(claim.measure, pair[0], pair[1]))
    reached = [one for one in values if math.isfinite(one)]
    never, unknown = sum(map(math.isinf, values)), sum(map(math.isnan, values))
    return Finding(claim, paired_interval(reached), never, diverged, unknown, len(program.studies[study].seeds))


def _machine(program: Program) -> str:
    runs = program.runs(presume=True)
    results = [result for spec in runs if (result := spec.result())]
    if not results:
        return "No run is finished yet.\n"
    places = sorted({", ".join(f"{k} {v}" for k, v in result["environment"].items()) for result in results})
    speeds = [result["tokens_per_second"] for result in results if result["tokens_per_second"]]
    speed = f", {median(speeds):,.0f} tokens per second and run (median)" if speeds else ""
    return f"{len(results)} of {len(runs)} runs are finished; {'; '.join(places)}{speed}.\n"


def _not_reproduced(program: Program, found: dict[str, list[Finding]]) -> str:
    lines = []
    for study, findings in found.items():
        for one in findings:
            if not one.verdict.startswith(("reproduced", "open")):
                lines.append(f"- {program.studies[study].title}: {_sentence(one.claim)}: {one.verdict}, {one.effect}.")
    settled = [one for findings in found.values() for one in findings if not one.verdict.startswith("open")]
    if not settled:
        return ""
    text = "\n".join(lines) if lines else "Every claim that could be judged was reproduced."
    return f"**What did not reproduce** ({len(lines)} of {len(settled)} claims judged):\n\n{text}\n"


def _sentence(claim: ClaimConfig) -> str:
    return f"{MEASURES[claim.measure].title} of {claim.arm} {claim.expected} than of {claim.against}"


def _setup(program: Program, study: str) -> str:
    config, lines = program.studies[study], []
    for arm in config.arms:
        spec = next(iter(program.arm(study, arm.name, presume=True).runs()))
        changes = ", ".join(f"{key}: {_plain(value)}" for key, value in arm.changes.items()) or "the base as it is"
        lines.append(f"- `{arm.name}`: {changes}{_size(spec)}")
    tokens = sorted({one.tokens for arm in config.arms for one in program.arm(study, arm.name, True).runs()})
    each = " or ".join(f"{one / 1e6:,.3g} M" for one in tokens)
    scale = f", scale {program.scale:g}" if program.scale != 1 else ""
    seeds = ", ".join(map(str, config.seeds))
    return f"Arms ({each} tokens each, seeds {seeds}, base `{config.base}`{scale}):\n\n" + "\n".join(lines) + "\n"


def _size(spec: RunSpec) -> str:
    """Parameters of a run's model; nothing where its vocabulary is not known yet."""
    train, model = spec.loaded.config.train, spec.loaded.config.model or ModelConfig()
    assert train is not None
    if model.vocab_size is None:
        kept = spec.keep()
        if kept is not None and kept["vocab_size"]:
            model = resolve_vocabulary(model, kept["vocab_size"])
        elif train.tokens is not None and Path(train.tokens).is_dir():
            model = resolve_vocabulary(model, TokenShards(Path(train.tokens)).vocab_size)
        else:
            return ""
    counts = count_parameters(model)
    return f" ({counts.total / 1e6:.2f} M parameters, {counts.active / 1e6:.2f} M active)"


def _learning_rates(program: Program, study: str) -> str:
    lines = []
    for arm in program.studies[study].arms:
        plan = program.arm(study, arm.name)
        if plan.grid:
            held = program.studies[study].held_out
            tried = [_tried(rate, spec, plan, held) for rate, spec in plan.grid.items()]
            edge = " The best lies at the grid's end: a better one may lie beyond." if plan.at_edge else ""
            lines.append(f"- `{arm.name}`: {', '.join(tried)}.{edge}")
    return "Learning rates tried, with held-out bits per byte:\n\n" + "\n".join(lines) + "\n" if lines else ""


def _tried(rate: float, spec: RunSpec, plan: ArmPlan, held_out: str | None) -> str:
    result = spec.result()
    bits = "to come" if result is None else "diverged" if result["diverged"] else f"{score(result, held_out):.4f}"
    return f"**{rate:g}: {bits}**" if rate == plan.rate else f"{rate:g}: {bits}"


def _arms_table(program: Program, study: str, runs: _Runs) -> str:
    config = program.studies[study]
    names = list(config.measures)
    rows = [["arm", "seeds", *(MEASURES[name].title for name in names)]]
    for arm in config.arms:
        seeds = program.arm(study, arm.name).seeds
        trained = [run for spec in seeds.values() if (run := runs.of(spec)) is not None]
        gone = sum(bool((spec.result() or {}).get("diverged")) for spec in seeds.values())
        count = f"{len(trained)} of {len(config.seeds)}" + (f", {gone} diverged" if gone else "")
        rows.append([arm.name, count, *(_mean_and_spread([MEASURES[n].value(run) for run in trained]) for n in names)])
    about = [f"{MEASURES[name].title}: {MEASURES[name].about}" for name in names]
    return _table(rows) + f"\nMean ± standard deviation over the seeds. {'; '.join(about)}.\n"


def _claims_table(found: list[Finding]) -> str:
    rows = [["claim", "found [95 % interval]", "verdict"]]
    rows += [[_sentence(one.claim), one.effect, one.verdict] for one in found]
    return _table(rows) if found else ""


def _table(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def _mean_and_spread(values: list[float]) -> str:
    if not values or math.isnan(fmean(values)):
        return "–"
    spread = f" ± {stdev(values):.2g}" if len(values) > 1 else ""
    return f"{fmean(values):.4g}{spread}"


def _range(low: float, high: float) -> str:
    return f" [{low:.3g}, {high:.3g}]" if math.isfinite(high) and math.isfinite(low) else ""


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _plot(program: Program, study: str, runs: _Runs) -> str:
    config = program.studies[study]
    curves = []
    for arm in config.arms:
        if config.plot.arms and arm.name not in config.plot.arms:
            continue
        trained = [runs.of(spec) for spec in program.arm(study, arm.name).seeds.values()]
        lines = [_points(config, run) for run in trained if run is not None]
        if lines:
            curves.append(_mean_curve(arm.name, lines))
    label = "held-out bits per byte" if config.plot.curve == "bits_per_byte" else config.plot.curve.replace("_", " ")
    return line_chart(config.title, "tokens (millions)", label, curves, config.plot.log)


def _points(config: StudyConfig, run: Trained) -> list[tuple[float, float]]:
    """The plotted curve of one run: evaluations as they are, a per-step figure as means of stretches of steps."""
    name = config.plot.curve
    if name == "bits_per_byte":
        return [(tokens / 1e6, bits) for tokens, bits in held_out(run.records)]
    count = len(run.records)
    pieces = min(_BUCKETS, count)
    points = []
    for i in range(pieces):
        stretch = run.records[i * count // pieces : (i + 1) * count // pieces]
        values = [bias_change(one) if name == "bias_change" else one.get(name) for one in stretch]
        known = [one for one in values if one is not None]
        points.append((stretch[-1]["tokens"] / 1e6, fmean(known) if known else math.nan))
    return points


def _mean_curve(name: str, lines: list[list[tuple[float, float]]]) -> Curve:
    columns = list(zip(*lines, strict=False))
    values = [[y for _, y in column] for column in columns]
    x = [column[0][0] for column in columns]
    return Curve(name, x, [fmean(one) for one in values], [min(one) for one in values], [max(one) for one in values])
