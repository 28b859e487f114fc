"""The config of `trine moe`, in mergekit-moe's YAML, and the methods of `trine tokens transplant`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trine.config.base import Count, Frozen
from trine.merge.config import DtypeName, ModelReference

TokenMethod = Literal["omp", "common-interpolation", "mean", "zero"]
_PROMPTED = ("hidden", "hidden_avg", "hidden_last", "cheap_embed")


class Expert(Frozen):
    """A dense model whose MLPs become one expert of every layer."""

    source_model: ModelReference
    """The dense model."""
    positive_prompts: tuple[str, ...] | None = None
    """Texts that should be routed to it."""
    negative_prompts: tuple[str, ...] | None = None
    """Texts that should not."""
    noise_scale: float | None = None
    """Standard deviation of noise that is added to its weights, so that training can tell equal experts apart."""
    residual_scale: float | None = None
    """Factor of its output."""


class MoeConfig(Frozen):
    """The whole config."""

    base_model: ModelReference
    """Gives all that is not an MLP, the tokenizer, and the hidden states that gates are made from."""
    experts: Annotated[tuple[Expert, ...], Field(min_length=1)]
    """One per expert of a layer."""
    gate_mode: Literal["hidden", "hidden_avg", "hidden_last", "cheap_embed", "random", "uniform_random"] = "hidden"
    """Router rows from hidden states of the prompts' last token (`hidden`, `hidden_last`) or their mean, from token
    embeddings, or at random."""
    dtype: DtypeName | None = None
    """Type of the output; the base's when left out."""
    experts_per_token: Annotated[Count, Field(ge=1)] = 2
    """Experts that each token is sent to."""
    shared_experts: tuple[Expert, ...] | None = None
    """Experts that every token is sent to."""
    architecture: Literal["mixtral", "deepseek", "qwen", "qwen3", "afmoe"] | None = None
    """Target; the first that fits the donors when left out."""

    @property
    def prompted(self) -> bool:
        """Whether gates are made from prompts."""
        return self.gate_mode in _PROMPTED

    @model_validator(mode="after")
    def _check(self) -> MoeConfig:
        if len(self.experts) < self.experts_per_token:
            raise ValueError(f"experts_per_token: {self.experts_per_token}, with {len(self.experts)} experts")
        if not self.prompted:
            return self
        for number, one in enumerate(self.experts):
            if not one.positive_prompts:
                raise ValueError(f"experts.{number}: no positive_prompts, which gate_mode {self.gate_mode} needs")
        prompts = {(one.positive_prompts, one.negative_prompts or ()) for one in self.experts}
        if len(self.experts) > 1 and len(prompts) == 1:
            raise ValueError("experts: all have the same prompts, so the router could not tell them apart")
        return self
