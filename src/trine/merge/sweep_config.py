"""What a sweep varies, how it searches, and what scores a merged model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trine.config.base import Count, Frozen

Name = Annotated[str, Field(min_length=1)]


class Varied(Frozen):
    """One number of the merge config that takes several values."""

    at: Name | Annotated[tuple[Name, ...], Field(min_length=1)]
    """Dotted path into the merge config, such as `models.0.parameters.weight`; several take the same value."""
    values: Annotated[tuple[float, ...], Field(min_length=1)] | None = None
    """The values of a grid."""
    low: float | None = None
    """Lower end of the range that cma searches."""
    high: float | None = None
    """Upper end."""
    start: float | None = None
    """Where cma begins; the middle of the range when left out."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path that takes the value."""
        return (self.at,) if isinstance(self.at, str) else self.at

    @property
    def name(self) -> str:
        """What it is called in tables: the first path."""
        return self.paths[0]


class Other(Frozen):
    """Another merge config in the same table."""

    config: Name
    """Its file, relative to the sweep config's folder."""
    vary: Annotated[tuple[Varied, ...], Field(min_length=1)]
    """The numbers of it that are varied."""


class Choice(Frozen):
    """Which merge is chosen."""

    best: Name
    """The goal that the chosen merge is best in."""
    loss_limits: Annotated[dict[str, float], Field(min_length=1)]
    """Other goals, and how much worse than the baseline each may be, as a share of the baseline's (0.01: 1 %)."""


class SweepConfig(Frozen):
    """The whole file."""

    score: Name
    """Command, with `{model}` for the merged folder and `{scratch}` for one that it may make, which is removed;
    it prints a number, or a JSON object with numbers, last."""
    vary: Annotated[tuple[Varied, ...], Field(min_length=1)]
    """The numbers that are varied."""
    others: tuple[Other, ...] = ()
    """grid: more merge configs, such as other methods over the same models, scored into the same table."""
    search: Literal["grid", "cma"] = "grid"
    """Every combination of `values`, or CMA-ES within `low` and `high`."""
    goals: Annotated[dict[str, Literal["max", "min"]], Field(min_length=1)] = Field({"score": "max"})
    """Scores that make a merge better, for the Pareto table; a bare number is called `score`."""
    baseline: Name | None = None
    """A model that is scored too, for comparison; relative to the working folder, as the models of a merge are."""
    choose: Choice | None = None
    """Needs a baseline: the recipe of the chosen merge is kept as chosen.yaml."""
    objective: dict[str, float] | None = None
    """cma: weights of the scores in the sum that is made large; 1 for a goal of max and -1 for min when left out."""
    evaluations: Annotated[Count, Field(ge=1)] = 40
    """cma: merges in all."""
    population: Annotated[Count, Field(ge=2)] | None = None
    """cma: merges per generation; 4 + 3 ln(n), rounded down, when left out."""
    sigma: Annotated[float, Field(gt=0, le=1)] = 0.25
    """cma: first standard deviation, as a share of each range."""
    seed: int = 0
    """cma: of its random numbers."""
    keep: Literal["none", "all"] = "none"
    """Whether merged models stay after they are scored; their recipes always do."""

    @model_validator(mode="after")
    def _check(self) -> SweepConfig:
        if self.others and self.search == "cma":
            raise ValueError("others: each is a grid of its own; cma searches one merge config")
        for one in (*self.vary, *(varied for other in self.others for varied in other.vary)):
            if self.search == "grid" and one.values is None:
                raise ValueError(f"vary: '{one.name}' has no values, which a grid needs")
            if self.search == "cma":
                if one.low is None or one.high is None or not one.low < one.high:
                    raise ValueError(f"vary: '{one.name}' needs low and high, low below high, for cma")
                if not one.low <= (one.low if one.start is None else one.start) <= one.high:
                    raise ValueError(f"vary: start of '{one.name}' lies outside low and high")
        if self.choose is not None:
            if self.baseline is None:
                raise ValueError("choose: compares with a baseline, which is missing")
            for name in (self.choose.best, *self.choose.loss_limits):
                if name not in self.goals:
                    raise ValueError(f"choose: '{name}' is not among the goals ({', '.join(self.goals)})")
        if "{model}" not in self.score:
            raise ValueError("score: has no {model}, which stands for the folder to score")
        return self
