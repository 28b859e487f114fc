"""What follows from shapes alone: parameters, bytes that stay the whole run, arithmetic, disk. No memory is used."""

from __future__ import annotations

from dataclasses import dataclass

from trine.model.config import ModelConfig
from trine.model.flops import count_parameters, training_flops
from trine.model.hf import LanguageModel
from trine.model.shape import Shape, build
from trine.optim.config import OptimConfig
from trine.optim.groups import optimizer_of, outer_names

_FP32 = 4
_STATES = {"muon": 1, "adamw": 2}
"""fp32 state tensors of a parameter's size: momentum, or both moments."""


@dataclass(frozen=True)
class Size:
    """Counts of a model and of training it; bytes in memory are those between two steps."""

    parameters: int
    active: int
    """Those a single token's forward pass uses."""
    layer_parameters: int
    """Those outside embedding, head and final norm."""
    weights: int
    """fp32 parameters and buffers, bytes."""
    gradients: int
    optimizer: int
    checkpoint: int
    """One checkpoint on disk, bytes."""
    export: int
    """The finished model on disk, bytes."""
    flops_per_token: float
    """Of forward and backward; see `model.flops`."""
    vocabulary: int

    @property
    def static(self) -> int:
        """Bytes that every step holds, whatever the batch."""
        return self.weights + self.gradients + self.optimizer


def measure_size(shape: Shape, optim: OptimConfig, length: int) -> Size:
    """Count a model of `shape` trained on sequences of `length` tokens."""
    model = build(shape, "meta")
    parameters = sum(p.numel() for p in model.parameters())
    weights = _FP32 * parameters + sum(b.numel() * b.element_size() for b in model.buffers())
    optimizer = optimizer_bytes(model, optim)
    tables = 1 if model.config.tie_word_embeddings else 2
    return Size(
        parameters=parameters,
        active=count_parameters(shape).active if isinstance(shape, ModelConfig) else parameters,
        layer_parameters=parameters - tables * model.output_weight.numel(),
        weights=weights,
        gradients=_FP32 * parameters,
        optimizer=optimizer,
        checkpoint=weights + optimizer,
        export=weights,
        flops_per_token=training_flops(model, length),
        vocabulary=model.output_weight.shape[0],
    )


def optimizer_bytes(model: LanguageModel, optim: OptimConfig) -> int:
    """Bytes of the optimizers' state after the first step."""
    outer, total = outer_names(model), 0
    for name, parameter in model.named_parameters():
        kind = optimizer_of(name, parameter, optim, outer)
        total += _FP32 * _STATES[kind] * parameter.numel() + (_FP32 if kind == "adamw" else 0)
    return total
