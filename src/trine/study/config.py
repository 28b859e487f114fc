"""A study's file: arms that differ in one thing, what is measured, what is claimed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trine.config.base import Count, Frozen
from trine.errors import nearest

Scalar = bool | int | float | str | None
MeasureName = Literal[
    "bits_per_byte",
    "loss",
    "loss_variance",
    "grad_norm_kurtosis",
    "spikes",
    "batch_het",
    "max_vio",
    "bias_change",
    "recovery_steps",
    "tokens_to_match",
]
_SECTIONS = ("model", "optim", "train")


class GridConfig(Frozen):
    """Learning rates tried on the first seed. While the best lies at an end, the grid grows by one at that end."""

    key: str
    """The config key they are values of, e.g. optim.muon.lr."""
    values: tuple[float, ...] = Field(min_length=3)
    """In rising order."""
    extensions: int = Field(default=4, ge=0)
    """At most so many values are added."""

    @model_validator(mode="after")
    def _rising(self) -> GridConfig:
        if list(self.values) != sorted(set(self.values)) or self.values[0] <= 0:
            raise ValueError(f"values {list(self.values)} must be positive and rise")
        return self


class ArmConfig(Frozen):
    """One way to train."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=40)
    changes: dict[str, Scalar] = Field(default_factory=dict)
    """Dotted config keys of the sections model, optim and train, and the values this arm gives them; in a text, the
    run's seed stands for `{seed}`."""
    learning_rate: GridConfig | None = None
    """The learning rates it is tuned over. Default: the base's, or that of `learning_rate_of`."""
    learning_rate_of: str | None = None
    """The arm with a grid whose best rate this one takes."""

    @model_validator(mode="after")
    def _sections(self) -> ArmConfig:
        if self.learning_rate is not None and self.learning_rate_of is not None:
            raise ValueError("learning_rate_of cannot stand beside a learning_rate of its own")
        keys = [*self.changes, *([self.learning_rate.key] if self.learning_rate else [])]
        for key in keys:
            if key.split(".")[0] not in _SECTIONS or key in ("train.seed", "train.tokens"):
                raise ValueError(
                    f"changes may name keys of {', '.join(_SECTIONS)} but no seed and no tokens, got {key}"
                )
        return self


class ClaimConfig(Frozen):
    """What one arm is claimed to do against another."""

    measure: MeasureName
    arm: str
    against: str
    expected: Literal["lower", "higher"]
    """Whether the claim expects the arm's value below or above the other's."""


class PlotConfig(Frozen):
    """Curves over tokens, the mean of the seeds of each arm with the range between them."""

    curve: Literal["bits_per_byte", "loss", "max_vio", "batch_het", "bias_change"]
    arms: tuple[str, ...] = ()
    """Default: every arm."""
    log: bool = False
    """A logarithmic value axis."""


class StudyConfig(Frozen):
    """A claim put to the test: each arm is trained once for each seed; arms are compared seed by seed."""

    title: str
    claim: str
    """What is claimed, by whom."""
    base: str
    """The recipe that every arm changes, relative to this file."""
    seeds: tuple[Count, ...] = Field(default=(0, 1, 2), min_length=1)
    held_out: str | None = None
    """The set whose bits per byte choose learning rates. Default: the mean over all."""
    arms: tuple[ArmConfig, ...] = Field(min_length=1)
    claims: tuple[ClaimConfig, ...] = ()
    measures: tuple[MeasureName, ...] = Field(min_length=1)
    """Columns of the table."""
    plot: PlotConfig

    @model_validator(mode="after")
    def _names(self) -> StudyConfig:
        arms = {arm.name: arm for arm in self.arms}
        if len(arms) < len(self.arms) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("two arms, or two seeds, are the same")
        named = [name for claim in self.claims for name in (claim.arm, claim.against)] + list(self.plot.arms)
        borrowed = [arm.learning_rate_of for arm in self.arms if arm.learning_rate_of]
        for name in [*named, *borrowed]:
            if name not in arms:
                raise ValueError(f"no arm is named '{name}' (arms: {', '.join(arms)}){nearest(name, arms)}")
        for name in borrowed:
            if arms[name].learning_rate is None:
                raise ValueError(f"learning_rate_of names arm '{name}', which has no grid of its own")
        return self
