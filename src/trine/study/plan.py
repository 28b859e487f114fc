"""Studies to training runs: what each arm needs next, given the runs that are finished.

A run is one arm with one learning rate and one seed; its folder's name ends in the hash of its resolved config, so
studies that share a base share the runs that are equal, whatever the arms are called.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from trine.config.load import Loaded, load_config
from trine.config.overrides import split_options
from trine.config.yaml import refusal
from trine.errors import BadInput, nearest
from trine.manifest import digest_of
from trine.model.config import ModelConfig
from trine.recipe import VERB_OPTIONS, Config
from trine.study.config import ArmConfig, GridConfig, StudyConfig
from trine.study.kept import KeptRun
from trine.train.timeline import Timeline

DATA_SECTIONS = ("corpus", "tokenizer", "pack")


@dataclass(frozen=True)
class RunSpec:
    """One training run."""

    title: str
    loaded: Loaded[Config]
    arms: Path
    """The folder of all runs."""
    kept: Path
    """The folder of kept runs."""
    words: Mapping[str, str] = field(default_factory=dict)
    """What stands for the paths of files that the run reads, where it is kept."""

    @property
    def folder(self) -> Path:
        """Its run folder: the one there is, under whatever arm's name, or the one to make."""
        ending = f"-{self.loaded.hash[:8]}"
        return next(self.arms.glob(f"*{ending}"), self.arms / f"{self.title}{ending}")

    @cached_property
    def timeline(self) -> Timeline:
        """Steps to tokens."""
        config = self.loaded.config
        assert config.train is not None
        return Timeline(config.train, config.optim.schedule)

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.timeline.tokens(self.timeline.train.steps)

    def result(self) -> dict[str, Any] | None:
        """What the finished run left, in its folder or among the kept; None while it is not finished."""
        path = self.folder / "result.json"
        if path.is_file():
            return json.loads(path.read_text())
        kept = self._kept.find()
        return None if kept is None else kept["result"]

    def keep(self) -> dict[str, Any] | None:
        """The finished run as it is kept, which is done here if it was not; None while it is not finished."""
        if (kept := self._kept.find()) is not None:
            return kept
        if (result := self.result()) is None:
            return None
        self._kept.keep(self.folder, result)
        return self._kept.find()

    @cached_property
    def _kept(self) -> KeptRun:
        return KeptRun(self.kept, self.title, self.loaded.config, self.words)


@dataclass(frozen=True)
class ArmPlan:
    """The runs of an arm, as far as the finished ones decide them."""

    grid: dict[float, RunSpec] = field(default_factory=dict)
    """Learning rate to the run on the first seed, for an arm with a grid of its own."""
    rate: float | None = None
    """The chosen learning rate; None without a grid, or while it is open."""
    at_edge: bool = False
    """The chosen rate is the grid's end, and the grid may not grow further."""
    seeds: dict[int, RunSpec] = field(default_factory=dict)
    """Seed to run, at the chosen rate; empty while that is open."""
    borrowed: ArmPlan | None = None
    """The arm whose rate this one takes."""

    def runs(self) -> list[RunSpec]:
        """Every run that is decided, the grid's first."""
        first = self.borrowed.runs() if self.borrowed is not None and not self.seeds else []
        return [*first, *self.grid.values(), *self.seeds.values()]


class Program:
    """Studies over one output folder, at one scale."""

    def __init__(
        self,
        paths: Sequence[Path],
        out: Path,
        *,
        kept: Path | None = None,
        options: Sequence[str] = (),
        scale: float = 1.0,
        arm: str | None = None,
        words: Mapping[str, str] | None = None,
    ) -> None:
        """Reads every study and its base; `kept` is the folder of finished runs (default: OUT/evidence/runs), `words`
        stand for paths there.

        Raises BadInput with all that is wrong in a file, or for an unknown arm.
        """
        if scale <= 0:
            raise BadInput(f"--scale {scale:g}: expected a number above 0")
        pairs, problems = split_options(options)
        if problems:
            raise refusal(problems)
        self.out, self.scale, self.options = out, scale, dict(pairs)
        self.kept = kept or out / "evidence" / "runs"
        self.studies = {path.stem: load_config(StudyConfig, path).config for path in paths}
        self._bases = {
            path.stem: path.parent / study.base for path, study in zip(paths, self.studies.values(), strict=True)
        }
        self._only, self._words = arm, words or {}
        known = [one.name for study in self.studies.values() for one in study.arms]
        if arm is not None and arm not in known:
            raise BadInput(f"--arm {arm}: no study has such an arm (arms: {', '.join(known)}){nearest(arm, known)}")
        self._specs: dict[str, RunSpec] = {}
        for name, study in self.studies.items():
            for one in study.arms:
                self.arm(name, one.name, presume=True)

    @cached_property
    def arms_folder(self) -> Path:
        """Where the run folders are."""
        return self.out / "arms"

    def runs(self, presume: bool = False) -> list[RunSpec]:
        """Every run of the wanted arms that is decided, each once; `presume` takes a learning rate that is still open
        to be the middle of its grid, so that all runs are counted."""
        found = {}
        for name, study in self.studies.items():
            for one in study.arms:
                if self._only in (None, one.name):
                    found |= {spec.loaded.hash: spec for spec in self.arm(name, one.name, presume).runs()}
        return list(found.values())

    def arm(self, study: str, name: str, presume: bool = False) -> ArmPlan:
        """The plan of one arm."""
        config = self.studies[study]
        arm = next(one for one in config.arms if one.name == name)
        if arm.learning_rate is not None:
            return self._tuned(study, arm, arm.learning_rate, presume)
        if arm.learning_rate_of is None:
            return ArmPlan(seeds={seed: self.spec(study, arm, seed, None) for seed in config.seeds})
        lender = self.arm(study, arm.learning_rate_of, presume)
        if lender.rate is None:
            return ArmPlan(borrowed=lender)
        grid = next(one.learning_rate for one in config.arms if one.name == arm.learning_rate_of)
        assert grid is not None
        rate = (grid.key, lender.rate)
        return ArmPlan(
            rate=lender.rate, seeds={seed: self.spec(study, arm, seed, rate) for seed in config.seeds}, borrowed=lender
        )

    def _tuned(self, study: str, arm: ArmConfig, grid: GridConfig, presume: bool) -> ArmPlan:
        seeds, values = self.studies[study].seeds, list(grid.values)
        while True:
            runs = {value: self.spec(study, arm, seeds[0], (grid.key, value)) for value in values}
            results = {value: spec.result() for value, spec in runs.items()}
            held = self.studies[study].held_out
            done = {value: score(result, held) for value, result in results.items() if result is not None}
            if len(done) < len(values):
                if not presume:
                    return ArmPlan(grid=runs)
                best = values[len(values) // 2]
                break
            best = min(values, key=lambda value: done[value])
            if best not in (values[0], values[-1]) or len(values) >= len(grid.values) + grid.extensions:
                break
            low = best == values[0]
            step = values[1] / values[0] if low else values[-1] / values[-2]
            values = [_short(best / step), *values] if low else [*values, _short(best * step)]
        chosen = {seed: self.spec(study, arm, seed, (grid.key, best)) for seed in seeds}
        return ArmPlan(grid=runs, rate=best, at_edge=best in (values[0], values[-1]), seeds=chosen)

    def spec(self, study: str, arm: ArmConfig, seed: int, rate: tuple[str, float] | None) -> RunSpec:
        """The run of an arm with a seed and a (key, learning rate)."""
        own = {
            key: one.replace("{seed}", str(seed)) if isinstance(one, str) else one for key, one in arm.changes.items()
        }
        changes = own | ({rate[0]: rate[1]} if rate else {}) | {"train.seed": seed}
        key = json.dumps([study, sorted(changes.items(), key=str)])
        if key not in self._specs:
            title = f"{arm.name}-{rate[1]:g}-seed{seed}" if rate else f"{arm.name}-seed{seed}"
            try:
                loaded = self._loaded(study, changes)
            except BadInput as error:
                raise BadInput(f"study {study}, arm {arm.name}: {error}") from None
            self._specs[key] = RunSpec(title, loaded, self.arms_folder, self.kept, self._words)
        return self._specs[key]

    def base(self, study: str, changes: dict[str, Any]) -> Loaded[Config]:
        """The base with options, scale and changes on top. Raises BadInput."""
        words = dict(self.options)
        for values in (self._scaled(study), changes):
            words |= {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
        flat = [word for name, value in words.items() for word in (f"--{name}", value)]
        return load_config(Config, self._bases[study], flat, verb_options=VERB_OPTIONS)

    def data(self, study: str) -> tuple[Path, Loaded[Config] | None]:
        """The token folder of a study's arms, and the config of the stages that make it (None: it is given)."""
        config = self.base(study, {}).config
        if config.train is None or (config.pack is None and config.train.tokens is None):
            raise BadInput(f"{self._bases[study]}: a study's base needs the section train, and pack or train.tokens")
        if config.train.tokens is not None:
            return Path(config.train.tokens).expanduser(), None
        made = reloaded(config.model_copy(update={"train": None, "model": None, "samples": None}))
        folder = self.out / f"data-{made.hash[:8]}"
        return folder / "tokens", made

    def _loaded(self, study: str, changes: dict[str, Any]) -> Loaded[Config]:
        config = self.base(study, changes).config
        tokens, _ = self.data(study)
        assert config.train is not None
        train = config.train.model_copy(update={"tokens": str(tokens)})
        return reloaded(config.model_copy(update={"train": train, "samples": None, **dict.fromkeys(DATA_SECTIONS)}))

    def _scaled(self, study: str) -> dict[str, int]:
        """Keys of the base at this scale: the steps times it, and widths times its square root."""
        if self.scale == 1.0:
            return {}
        flat = [word for name, value in self.options.items() for word in (f"--{name}", value)]
        config = load_config(Config, self._bases[study], flat, verb_options=VERB_OPTIONS).config
        model, train, schedule = config.model or ModelConfig(), config.train, config.optim.schedule
        assert train is not None
        if train.phases or train.batch_ramp:
            raise BadInput(f"{self._bases[study]}: --scale cannot scale train.phases and batch_ramp; leave them out")
        width = math.sqrt(self.scale)
        values = {
            "train.steps": _times(train.steps, self.scale),
            "optim.schedule.warmup_steps": _times(schedule.warmup_steps, self.scale),
            "model.head_dim": _times(model.head_dim, width, 8),
        }
        for name in ("hidden_size", "intermediate_size", "moe_intermediate_size"):
            values[f"model.{name}"] = _times(getattr(model, name), width, 16)
        every = {
            "optim.schedule.decay_steps": schedule.decay_steps,
            "train.eval.every_steps": train.eval.every_steps,
            "train.checkpoint_every_steps": train.checkpoint_every_steps,
        }
        return values | {name: _times(count, self.scale) for name, count in every.items() if count is not None}


def score(result: dict[str, Any], held_out: str | None) -> float:
    """Bits per byte of a finished run on the set `held_out`, or the mean over all; infinite for one that diverged."""
    bits = result["bits_per_byte"] if held_out is None else (result.get("scores") or {}).get(held_out)
    return math.inf if bits is None or result["diverged"] else bits


def _times(count: int, factor: float, multiple: int = 1) -> int:
    return max(multiple, round(count * factor / multiple) * multiple)


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def reloaded(config: Config) -> Loaded[Config]:
    """A config as if it had been loaded from a file."""
    resolved = config.model_dump(mode="json", exclude={"inputs"})
    return Loaded(config, resolved, digest_of(resolved), None)
