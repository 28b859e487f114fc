"""A study's finished runs to a Markdown page: for each model on each data a table, comparisons and a plot.

The page can be made at any time; what is not finished is named, and no figure is shown for it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from trine.manifest import write_file
from trine.study.plan import Program, score
from trine.study.scatter import Panel, Point, scatter_chart
from trine.study.spectrum.config import PairConfig, WayConfig
from trine.study.spectrum.layout import Cell, Layout
from trine.study.spectrum.outcomes import (
    FIGURES,
    STATE_BYTES,
    ArmOutcome,
    Figure,
    Outcome,
    difference,
    outcomes,
    verdict,
)
from trine.study.statistics import Interval

_MIB = 2**20
_NOTES = 3
_COSTS = (
    ("peak memory, MiB", lambda one: one.memory / _MIB),
    ("time, minutes", lambda one: one.seconds / 60),
    ("trained bytes, MiB", lambda one: one.trained * STATE_BYTES / _MIB),
)
_METHOD = """\
Made by `trine spectrum study`. Every way to train starts from the same model, sees the same tokens and is trained
once for each seed, which decides the order of the data (and the draw of a random selection, or an adapter's first
values). Each has its own learning rate, chosen on the first seed by held-out bits per byte; its grid grows while the
best lies at an end. Intervals are 95 % paired Student-t intervals over the seeds; nothing is corrected for the number
of comparisons. Better and worse are said where the interval leaves out zero. Questions have one right answer and
three wrong ones (chance is 25 %), told apart by log-likelihood per byte: of conversations the answer among answers of
others, of plain text the passage that follows among passages from elsewhere in the same text; differences of their
shares are in percentage points. Forgotten is what bits per byte of a held-out text of the pretraining's kind have
gained. Trained bytes are 16 for each trained parameter: weight, gradient and AdamW's two moments. Peak memory is the
process's anonymous memory at the end of each part of a step, less what it held with everything imported; time is that
of all steps at the median step's speed, evaluation left out, as many runs side by side as the machine has room for.
"""
Findings = list[dict[str, Any]]


def write_page(layout: Layout, program: Program, page: Path) -> Findings:
    """Write `page` and, beside it, NAME/CELL.svg (NAME being the page's). Returns every comparison."""
    folder = page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    parts, found = list[str](), Findings()
    for cell in layout.cells:
        prepared = layout.read_prepared(cell)
        if prepared is None:
            parts.append(f"## {_title(cell)}\n\nNothing is prepared yet.\n")
            continue
        arms = outcomes(layout, program, cell, prepared["before"])
        mine = [_finding(cell, pair, figure, arms) for pair in layout.config.compare for figure in FIGURES]
        found += mine
        write_file(folder / f"{cell.name}.svg", _plot(layout, cell, arms))
        parts += [
            f"## {_title(cell)}\n",
            _setup(layout, program, cell, prepared),
            _table(_arm_rows(layout, arms, prepared)),
            _notes(prepared),
            _rates(layout, arms),
            _table(_finding_rows(mine)) if mine else "",
            f"![{_title(cell)}]({folder.name}/{cell.name}.svg)\n",
        ]
    head = [f"# {layout.config.title}\n", layout.config.question.strip() + "\n", _METHOD, _machine(program)]
    write_file(page, "\n".join(part for part in [*head, _summary(layout, found), *parts] if part))
    return found


def _title(cell: Cell) -> str:
    return f"{cell.model.name} on {cell.data.name}"


def _machine(program: Program) -> str:
    runs = program.runs(presume=True)
    results = [result for spec in runs if (result := spec.result())]
    if not results:
        return f"No run of {len(runs)} is finished yet.\n"
    places = sorted({", ".join(f"{k} {v}" for k, v in one["environment"].items()) for one in results})
    return f"{len(results)} of {len(runs)} runs are finished; {'; '.join(places)}.\n"


def _summary(layout: Layout, found: Findings) -> str:
    """How often each comparison went which way, over models and data."""
    if not found:
        return ""
    heads = ["comparison", *(figure.title for figure in FIGURES)]
    rows = [heads]
    for pair in layout.config.compare:
        cells = []
        for figure in FIGURES:
            here = [one for one in found if (one["arm"], one["against"]) == (pair.arm, pair.against)]
            count = Counter(one["verdict"] for one in here if one["figure"] == figure.name)
            cells.append(", ".join(f"{name} {count[name]}" for name in _VERDICTS if count[name]))
        rows.append([f"{pair.arm} against {pair.against}", *cells])
    return f"What came out, in how many of {len(layout.cells)} pairs of model and data:\n\n{_table(rows)}"


_VERDICTS = ("better", "worse", "not told apart", "open")


def _setup(layout: Layout, program: Program, cell: Cell, prepared: dict[str, Any]) -> str:
    model, before = prepared["model"], prepared["before"]
    runs = program.arm(cell.name, layout.config.arms[0].name, presume=True).runs()
    sources = ", ".join(f"{one['name']} ({one['licence']})" for one in prepared["sources"])
    lines = [
        f"{model['parameters'] / 1e6:.1f} M parameters, pretrained on {model['tokens'] / 1e6:.1f} M tokens; "
        f"{runs[0].tokens / 1e6:.2f} M tokens for each run, of {prepared['data']['train']['tokens'] / 1e6:.2f} M.",
        f"Sources: {sources}.",
        *(f"As it is: {_scores(scores)}." for scores in before.values()),
    ]
    if len(before) > 1:
        lines.append(
            f"Runs began with {len(before)} trainings of the model, of other bits, on as many kinds of machine."
        )
    return "\n".join(lines) + "\n"


def _scores(before: dict[str, Any]) -> str:
    bits = [f"{value:.4f} bits/byte on {name}" for name, value in before["bits_per_byte"].items()]
    asked = [
        f"{one['accuracy']:.1%} of {one['questions']} questions on {name} (chance {one['chance']:.0%})"
        for name, one in before.get("choices", {}).items()
    ]
    return ", ".join([*bits, *asked])


def _arm_rows(layout: Layout, arms: dict[str, ArmOutcome], prepared: dict[str, Any]) -> list[list[str]]:
    first = arms[layout.config.arms[0].name]
    heads = ["arm", "seeds", "trained", "trained MiB", "peak MiB", "minutes", f"{layout.config.forgetting} bits/byte"]
    for figure in FIGURES:
        heads += [figure.title, f"less {first.name}'s [95 %]"]
    rows = [heads]
    for way in layout.config.arms:
        arm = arms[way.name]
        runs = list(arm.runs.values())
        gone = f", {arm.diverged} diverged" if arm.diverged else ""
        row = [f"`{way.name}`{_chosen(way, prepared)}", f"{len(runs)} of {len(layout.config.seeds)}{gone}"]
        row += [f"{_mean(runs, lambda one: one.trained) / 1e6:.2f} M" if runs else "–"]
        row += [f"{_mean(runs, cost):,.1f}" if runs else "–" for _, cost in (_COSTS[2], *_COSTS[:2])]
        row += [f"{_mean(runs, lambda one: one.known):.4f}" if runs else "–"]
        for figure in FIGURES:
            row += [_spread(figure, runs), "" if arm is first else _interval(figure, difference(figure, arm, first))]
        rows.append(row)
    return rows


def _chosen(way: WayConfig, prepared: dict[str, Any]) -> str:
    about = prepared["arms"].get(way.name, {})
    return f", rank {about['rank']}" if "rank" in about else ""


def _notes(prepared: dict[str, Any]) -> str:
    """What was told when selections were made."""
    lines = [
        f"- `{name}`: {'; '.join(about['notes'][:_NOTES])}"
        + (f"; and {len(about['notes']) - _NOTES} more" if len(about["notes"]) > _NOTES else "")
        for name, about in prepared["arms"].items()
        if about["notes"]
    ]
    return "Of the selections:\n\n" + "\n".join(lines) + "\n" if lines else ""


def _mean(runs: Sequence[Outcome], value: Any) -> float:
    return fmean(value(one) for one in runs)


def _spread(figure: Figure, runs: Sequence[Outcome]) -> str:
    values = [value for one in runs if (value := figure.value(one)) is not None]
    if not values:
        return "–"
    spread = f" ± {_shown(figure, stdev(values))}" if len(values) > 1 else ""
    return _shown(figure, fmean(values)) + spread


def _shown(figure: Figure, value: float, sign: str = "") -> str:
    return f"{value:{sign}.1%}" if figure.higher else f"{value:{sign}.4f}"


def _interval(figure: Figure, one: Interval) -> str:
    if math.isnan(one.mean):
        return "–"
    if not math.isfinite(one.low):
        return _shown(figure, one.mean, "+")
    return f"{_shown(figure, one.mean, '+')} [{_shown(figure, one.low, '+')}, {_shown(figure, one.high, '+')}]"


def _rates(layout: Layout, arms: dict[str, ArmOutcome]) -> str:
    lines = []
    for arm in arms.values():
        tried = []
        for rate, spec in arm.plan.grid.items():
            result = spec.result()
            bits = math.nan if result is None else score(result, layout.config.held_out)
            word = "to come" if result is None else "diverged" if math.isinf(bits) else f"{bits:.4f}"
            tried.append(f"**{rate:g}: {word}**" if rate == arm.plan.rate else f"{rate:g}: {word}")
        edge = " The best lies at the grid's end: a better one may lie beyond." if arm.plan.at_edge else ""
        lines.append(f"- `{arm.name}`: {', '.join(tried)}.{edge}")
    return "Learning rates tried on the first seed, with held-out bits per byte:\n\n" + "\n".join(lines) + "\n"


def _finding(cell: Cell, pair: PairConfig, figure: Figure, arms: dict[str, ArmOutcome]) -> dict[str, Any]:
    interval = difference(figure, arms[pair.arm], arms[pair.against])
    numbers = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return {
        "cell": cell.name,
        "arm": pair.arm,
        "against": pair.against,
        "figure": figure.name,
        **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
        "pairs": interval.pairs,
        "verdict": verdict(figure, interval),
        "shown": _interval(figure, interval),
    }


def _finding_rows(found: Findings) -> list[list[str]]:
    rows = [["comparison", *(figure.title for figure in FIGURES)]]
    for at in range(0, len(found), len(FIGURES)):
        here = found[at : at + len(FIGURES)]
        cells = [f"{one['shown']} {one['verdict']}" for one in here]
        rows.append([f"{here[0]['arm']} less {here[0]['against']}", *cells])
    return rows


def _table(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def _plot(layout: Layout, cell: Cell, arms: dict[str, ArmOutcome]) -> str:
    first = arms[layout.config.arms[0].name]
    panels = []
    for figure in FIGURES[:2]:
        for cost, value in _COSTS:
            points = [_point(figure, arm, first, value) for arm in arms.values() if arm.runs]
            y_label = f"{figure.title}, less {first.name}'s"
            panels.append(
                Panel(f"{figure.title} ({'up' if figure.higher else 'down'} is better)", cost, y_label, points)
            )
    return scatter_chart(f"{_title(cell)}: quality and what it costs", panels, columns=len(_COSTS))


def _point(figure: Figure, arm: ArmOutcome, first: ArmOutcome, cost: Any) -> Point:
    x = _mean(list(arm.runs.values()), cost)
    if arm is first:
        return Point(arm.name, x, 0.0, math.nan, math.nan)
    one = difference(figure, arm, first)
    return Point(arm.name, x, one.mean, one.low, one.high)
