"""What follows from shapes alone: parameters, bytes that stay the whole run, arithmetic, disk. No memory is used."""

from __future__ import annotations

from dataclasses import dataclass

from trine.estimate.frozen import Frozen
from trine.model.blocks import frozen_blocks
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
    """Those outside embedding, head and final norm; of a model trained in part those that are trained."""
    weights: int
    """Parameters, of which the trained ones are fp32, and buffers, bytes."""
    mapped: int
    """Of the weights those that stay in the pages of their file, bytes."""
    gradients: int
    optimizer: int
    checkpoint: int
    """One checkpoint on disk, bytes."""
    export: int
    """The finished model on disk, bytes."""
    flops_per_token: float
    """Of forward and backward; see `model.flops`."""
    vocabulary: int
    frozen_layers: int
    """Layers under the lowest trained one, which keep nothing for the backward pass."""

    @property
    def static(self) -> int:
        """Bytes that every step holds, whatever the batch."""
        return self.weights + self.gradients + self.optimizer

    @property
    def own(self) -> int:
        """Those of them that are the process's own memory."""
        return self.static - self.mapped


def measure_size(shape: Shape, optim: OptimConfig, length: int, frozen: Frozen | None = None) -> Size:
    """Count a model of `shape`, all of it trained or but a part, on sequences of `length` tokens."""
    model = build(shape, "meta")
    parameters = sum(p.numel() for p in model.parameters())
    exported = _FP32 * parameters + sum(b.numel() * b.element_size() for b in model.buffers())
    tables = 1 if model.config.tie_word_embeddings else 2
    layers = parameters - tables * model.output_weight.numel()
    if frozen is not None:
        frozen.apply(model)
    weights = sum(one.numel() * one.element_size() for one in (*model.parameters(), *model.buffers()))
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    still = (p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad and p.dim() > 1)
    optimizer = optimizer_bytes(model, optim)
    adapter = gradients if frozen is not None and frozen.lora is not None else 0
    return Size(
        parameters=parameters,
        active=count_parameters(shape).active if isinstance(shape, ModelConfig) else parameters,
        layer_parameters=layers if frozen is None else gradients // _FP32,
        weights=weights,
        mapped=sum(still) if frozen is not None and frozen.mapped else 0,
        gradients=gradients,
        optimizer=optimizer,
        checkpoint=(adapter or weights) + optimizer,
        export=exported * (frozen is None or frozen.lora is None or frozen.lora.merge) + adapter,
        flops_per_token=training_flops(model, length),
        vocabulary=model.output_weight.shape[0],
        frozen_layers=frozen_blocks(model),
    )


def optimizer_bytes(model: LanguageModel, optim: OptimConfig) -> int:
    """Bytes of the optimizers' state after the first step."""
    outer, total = outer_names(model), 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        kind = optimizer_of(name, parameter, optim, outer)
        total += _FP32 * _STATES[kind] * parameter.numel() + (_FP32 if kind == "adamw" else 0)
    return total
