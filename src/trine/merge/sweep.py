"""One merge config with some numbers varied, each merge scored by a command, into a Pareto table.

Into one folder: a line per scored merge in `sweep.jsonl`, flushed before the next begins; the recipe of each, its
score command's stderr; the order of experts where they are aligned, found once; `pareto.json` and `sweep.html` at the
end. The folder is continued: what is scored is not done again, a merge that was killed goes on where it was, and the
table comes out the same.
"""

from __future__ import annotations

import copy
import json
import math
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trine.config.load import load_config
from trine.config.overrides import override
from trine.config.yaml import read_yaml
from trine.errors import BadInput, TrineError
from trine.manifest import digest_of, write_file
from trine.merge.choice import choose
from trine.merge.search import Point, search
from trine.merge.sweep_config import SweepConfig
from trine.progress import Progress, silent

JOURNAL, TABLE, ALIGNMENT, CHOSEN = "sweep.jsonl", "pareto.json", "alignment.json", "chosen.yaml"

Merge = Callable[[Path, Path], None]
"""Merge by a recipe (first path) into a new folder (second path)."""


@dataclass(frozen=True)
class Trial:
    """One merge and its scores; a score that is not finite is None."""

    number: int
    point: Point
    scores: dict[str, float | None]
    seconds: float
    config: str
    """Name of the merge config, its file's without the ending."""


@dataclass(frozen=True)
class _Part:
    """A merge config and what is varied in it."""

    name: str
    values: dict[str, Any]
    config: SweepConfig
    """The sweep with this part's `vary`."""


def sweep(
    sweep_file: Path, merge_file: Path, out: Path, settings: dict[str, Any], merge: Merge, progress: Progress = silent
) -> dict[str, Any]:
    """Run or take up the sweep in `out`; the record of its table. `settings`: options that all merges share.

    Raises BadInput when `out` belongs to another sweep, or a config is wrong; TrineError when a score command fails.
    """
    config = load_config(SweepConfig, sweep_file).config
    parts = _parts(config, sweep_file, merge_file)
    head = {"sweep": digest_of([config.model_dump(mode="json"), [one.values for one in parts], settings])}
    for one in parts:
        first = [varied.values[0] if varied.values else varied.low or 0.0 for varied in one.config.vary]
        _point_into(one, first, sweep_file)
    run = _Run(parts, out, merge, _open(out, head), progress, sweep_file)
    for one in parts:
        finder = search(one.config)
        try:
            batch = next(finder)
            while True:
                batch = finder.send([_value(config, run.trial(one, point)) for point in batch])
        except StopIteration:
            pass
    record = table(parts, run.trials)
    if config.baseline is not None:
        record |= _compared(run, record, config)
    write_file(out / TABLE, json.dumps(record, indent=1) + "\n")
    return record


def _parts(config: SweepConfig, sweep_file: Path, merge_file: Path) -> list[_Part]:
    """The merge config, and the others that the sweep names."""
    parts = [_Part(merge_file.stem, read_yaml(merge_file).values, config)]
    for other in config.others:
        path = sweep_file.parent / other.config
        part = _Part(path.stem, read_yaml(path).values, config.model_copy(update={"vary": other.vary}))
        if part.name in [one.name for one in parts]:
            raise BadInput(
                f"{sweep_file}: two merge configs are named '{part.name}'; a table tells them by their names"
            )
        parts.append(part)
    return parts


def _open(out: Path, head: dict[str, Any]) -> list[dict[str, Any]]:
    """The trials that `out` holds; a line that was cut short is dropped with what follows it."""
    path = out / JOURNAL
    if not path.exists():
        if out.exists() and any(out.iterdir()):
            raise BadInput(f"{out}: exists and holds no sweep; name another folder")
        out.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(head) + "\n")
        return []
    events = []
    for line in path.read_bytes().split(b"\n"):
        try:
            events.append(json.loads(line))
        except ValueError:
            break
    if not events or events[0] != head:
        raise BadInput(f"{out}: holds a sweep of another config or with other options; name another folder")
    write_file(path, "".join(json.dumps(one) + "\n" for one in events))
    return events[1:]


def _point_into(part: _Part, point: Point, source: Path) -> dict[str, Any]:
    """The merge config with a point's numbers. Raises BadInput for a path that does not fit it."""
    values = copy.deepcopy(part.values)
    for one, number in zip(part.config.vary, point, strict=True):
        for path in one.paths:
            try:
                override(values, path, repr(float(number)))
            except ValueError as error:
                raise BadInput(f"{source}: vary: '{path}' does not fit the merge config {part.name}: {error}") from None
    return values


def _value(config: SweepConfig, trial: Trial) -> float:
    """What the search makes large."""
    weights = config.objective or {name: 1.0 if goal == "max" else -1.0 for name, goal in config.goals.items()}
    missing = [name for name in weights if name not in trial.scores]
    if missing:
        raise TrineError(f"merge {trial.number}: no score '{missing[0]}'; got {', '.join(trial.scores) or 'none'}")
    total = 0.0
    for name, weight in weights.items():
        score = trial.scores[name]
        total += math.nan if score is None else weight * score
    return total


class _Run:
    """Trials in order: from the journal while there are any, then made."""

    def __init__(
        self,
        parts: list[_Part],
        out: Path,
        merge: Merge,
        known: list[dict[str, Any]],
        progress: Progress,
        source: Path,
    ) -> None:
        self.config, self.out, self.merge = parts[0].config, out, merge
        self.known, self.progress, self.source = known, progress, source
        self.trials: list[Trial] = []
        self.total = self.config.evaluations
        if self.config.search == "grid":
            self.total = sum(math.prod(len(one.values or ()) for one in part.config.vary) for part in parts)

    def trial(self, part: _Part, point: Point) -> Trial:
        """The next merge, scored."""
        number = len(self.trials)
        model = self.out / f"model-{number:04}"
        if number < len(self.known):
            found = Trial(**self.known[number])
            if (found.config, found.point) != (part.name, point):
                wanted = f"{found.config} {found.point}, expected {part.name} {point}"
                raise BadInput(f"{self.out / JOURNAL}: merge {number} was of {wanted}")
        else:
            found = self._make(part, number, point, model)
            _append(self.out / JOURNAL, found)
        if self.config.keep == "none" and model.exists():
            shutil.rmtree(model)
        self.trials.append(found)
        _value(self.config, found)
        self.progress(number + 1, self.total, f"sweep: merges{_shown(found.scores)}")
        return found

    def baseline(self, model: str) -> dict[str, float | None]:
        """The scores of a model that is no merge, scored once."""
        path = self.out / "baseline.json"
        if not path.exists():
            found = self._score(Path(model), "baseline")
            write_file(path, json.dumps(found) + "\n")
        return json.loads(path.read_bytes())

    def _score(self, model: Path, name: str) -> dict[str, float | None]:
        """The score command on a model, with nothing left of an earlier call in its scratch folder."""
        scratch = self.out / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        wanted = {*self.config.goals, *(self.config.objective or {})}
        found = score(self.config.score.replace("{scratch}", str(scratch)), model, self.out / f"{name}.log", wanted)
        shutil.rmtree(scratch, ignore_errors=True)
        return found

    def _make(self, part: _Part, number: int, point: Point, model: Path) -> Trial:
        began = time.monotonic()
        recipe = self.out / f"{number:04}.yaml"
        write_file(recipe, json.dumps(_point_into(part, point, self.source), indent=1) + "\n")
        if not model.exists():
            self.merge(recipe, model)
        scores = self._score(model, f"{number:04}")
        return Trial(number, point, scores, round(time.monotonic() - began, 1), part.name)


def _append(path: Path, trial: Trial) -> None:
    with path.open("a") as file:
        file.write(json.dumps(trial.__dict__) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _shown(scores: dict[str, float | None]) -> str:
    return "".join(f"  {name} {'–' if one is None else f'{one:.4g}'}" for name, one in scores.items())


def score(command: str, model: Path, log: Path, wanted: Collection[str] = ()) -> dict[str, float | None]:
    """Run the score command on a model, without a shell; the scores of the last line it prints.

    Of a record with more in it than numbers, such as a verb's --json, the `wanted` ones, by their dotted names.
    Raises TrineError when it cannot be run, fails, or prints neither a number nor an object of numbers.
    """
    words = [word.replace("{model}", str(model)) for word in shlex.split(command)]
    try:
        with log.open("wb") as errors:
            done = subprocess.run(words, stdout=subprocess.PIPE, stderr=errors, text=True, check=False)
    except OSError as error:
        raise TrineError(f"score: '{words[0]}' cannot be run ({error.strerror})") from None
    shown = shlex.join(words)
    if done.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise TrineError(
            f"score: exit code {done.returncode} of: {shown}\n{''.join(last)}\nsee {log}; run again to go on"
        )
    line = next((one for one in reversed(done.stdout.splitlines()) if one.strip()), "")
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    scores: dict[Any, Any] = found if isinstance(found, dict) else {"score": found}
    if any(isinstance(one, dict) for one in scores.values()):
        scores = {name: one for name in wanted if (one := _at(scores, name.split("."))) is not None}
        if not scores:
            raise TrineError(f"score: no {' or '.join(sorted(wanted))} in the record that is printed by: {shown}")
    if not scores or any(isinstance(one, bool) or not isinstance(one, int | float) for one in scores.values()):
        expected = 'a number or {"name": number, ...} as the last line'
        raise TrineError(f"score: expected {expected}, got {line!r} from: {shown}")
    return {str(name): float(one) if math.isfinite(one) else None for name, one in scores.items()}


def _compared(run: _Run, record: dict[str, Any], config: SweepConfig) -> dict[str, Any]:
    """The baseline's scores, and the merge that is chosen against them, whose recipe is kept."""
    assert config.baseline is not None
    scores = run.baseline(config.baseline)
    found: dict[str, Any] = {"baseline": {"model": config.baseline, "scores": scores}}
    if config.choose is not None:
        number, why = choose(record["merges"], scores, config.goals, config.choose)
        found["chosen"] = {"merge": number, "why": why}
        if number is not None:
            write_file(run.out / CHOSEN, (run.out / f"{number:04}.yaml").read_bytes())
    return found


def _at(record: Any, keys: Sequence[str]) -> Any:
    """What a path of keys leads to; None where it leads nowhere."""
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record


def table(parts: list[_Part], trials: list[Trial]) -> dict[str, Any]:
    """Every merge with its numbers and scores, and which of them no other beats in all goals."""
    config, varied = parts[0].config, {one.name: [varied.name for varied in one.config.vary] for one in parts}
    front = pareto([[one.scores.get(name) for name in config.goals] for one in trials], list(config.goals.values()))
    rows = [
        {
            "merge": one.number,
            "config": one.config,
            "recipe": f"{one.number:04}.yaml",
            "values": dict(zip(varied[one.config], one.point, strict=True)),
            "scores": one.scores,
            "pareto": one.number in front,
        }
        for one in trials
    ]
    return {"goals": dict(config.goals), "search": config.search, "merges": rows}


def pareto(scores: list[list[float | None]], goals: list[str]) -> set[int]:
    """Numbers of the points that no other equals or beats in every goal and beats in one; without those with None."""
    signs = [1 if goal == "max" else -1 for goal in goals]
    points = {
        i: [sign * one for sign, one in zip(signs, row, strict=True) if one is not None]
        for i, row in enumerate(scores)
        if None not in row
    }

    def beaten(mine: list[float]) -> bool:
        return any(other != mine and all(a >= b for a, b in zip(other, mine, strict=True)) for other in points.values())

    return {i for i, mine in points.items() if not beaten(mine)}
