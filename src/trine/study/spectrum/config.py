"""The study's file: models, data, ways to train, and which of them are compared."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trine.config.base import Count, Frozen
from trine.config.inputs import InputConfig
from trine.errors import nearest
from trine.study.config import GridConfig, Scalar

_NAME = r"^[a-z0-9][a-z0-9-]*$"


class StartConfig(Frozen):
    """A model that is pretrained first."""

    name: str = Field(pattern=_NAME, max_length=20)
    recipe: str
    """The recipe of its pretraining, relative to this file. All models share its corpus, tokenizer and tokens."""
    options: dict[str, Scalar] = Field(default_factory=dict)
    """Inputs and fields of the recipe."""


class TextConfig(Frozen):
    """What is trained on."""

    name: str = Field(pattern=_NAME, max_length=20)
    recipe: str
    """A recipe with corpus, pack, optim and train, relative to this file; its tokenizer is that of the models."""
    options: dict[str, Scalar] = Field(default_factory=dict)
    """Inputs and fields of the recipe."""
    items: str | None = None
    """Folder of annual reports as JSON by item; they become texts, split by company, for the recipe's input `texts`."""
    heldout_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the text of `items` that the companies held out have, about."""


class WayConfig(Frozen):
    """One way to train: everything, unless it says otherwise."""

    name: str = Field(pattern=_NAME, max_length=40)
    top: float | None = Field(default=None, gt=0, le=100)
    """The best so many per cent of each type's matrices by SNR."""
    rule: Literal["random", "top-layers", "lowest-snr", "gradient-norm"] | None = None
    """A control, of as many parameters as `like`. A random one is drawn anew for each seed."""
    measure: Literal["calibrated", "published"] = "calibrated"
    """How SNR is measured, for top and lowest-snr. Of matrices without signal the calibrated one is zero: all are
    tied, as in models that Muon has trained for some hundred steps."""
    lora: bool = False
    """LoRA of every linear layer, of the rank that comes nearest to the parameters of `like`."""
    like: str | None = None
    """The way with a `top` that this one equals in parameters."""
    learning_rate: GridConfig | None = None
    """Default: the study's."""

    @model_validator(mode="after")
    def _one_kind(self) -> WayConfig:
        if (self.top is not None) + (self.rule is not None) + self.lora > 1:
            raise ValueError("top, rule and lora exclude each other")
        if (self.rule is not None or self.lora) is not (self.like is not None):
            raise ValueError("rule and lora go with like, the arm whose number of parameters they train")
        return self


class PairConfig(Frozen):
    """Two ways that are compared seed by seed."""

    arm: str
    against: str


class SpectrumStudyConfig(Frozen):
    """Every way to train, of every model on every data, once for each seed."""

    inputs: tuple[InputConfig, ...] = ()
    title: str
    question: str
    """What the study is to tell."""
    models: tuple[StartConfig, ...] = Field(min_length=1)
    data: tuple[TextConfig, ...] = Field(min_length=1)
    seeds: tuple[Count, ...] = Field(default=(0, 1, 2), min_length=1)
    """Each is an order of the data, a draw of random selections and of an adapter's first values."""
    held_out: str = "heldout"
    """The set that is scored and chooses learning rates."""
    forgetting: str = "books"
    """The set of what the models were pretrained on."""
    learning_rate: GridConfig
    gradient_batches: Count = Field(default=16, ge=1)
    """Micro-batches that gradients are measured on."""
    arms: tuple[WayConfig, ...] = Field(min_length=1)
    """The first is what quality is told against."""
    compare: tuple[PairConfig, ...] = ()

    @model_validator(mode="after")
    def _names(self) -> SpectrumStudyConfig:
        for group in (self.models, self.data, self.arms):
            names = [one.name for one in group]
            if len(set(names)) < len(names):
                raise ValueError(f"two have the same name: {', '.join(names)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("two seeds are the same")
        arms = {arm.name: arm for arm in self.arms}
        named = [name for pair in self.compare for name in (pair.arm, pair.against)]
        for name in [*named, *(arm.like for arm in self.arms if arm.like)]:
            if name not in arms:
                raise ValueError(f"no arm is named '{name}' (arms: {', '.join(arms)}){nearest(name, arms)}")
        for arm in self.arms:
            if arm.like and arms[arm.like].top is None:
                raise ValueError(f"arm {arm.name}: like names '{arm.like}', which has no top")
        return self
