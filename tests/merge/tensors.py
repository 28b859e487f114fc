"""Tensors to merge in memory: ours with defaults filled in, mergekit's through its own interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trine.merge.catalog import SPECS
from trine.merge.dtypes import Array, rounded
from trine.merge.methods.inputs import InMemory, Inputs, merged
from trine.merge.methods.table import METHODS, by_row


def fine_tunes(count: int, shape: tuple[int, ...] = (48, 64), sigma: float = 0.01, seed: int = 0) -> tuple[Array, Any]:
    """A base of standard deviation 0.05 and `count` tensors that differ from it by `sigma`, in fp32."""
    rng = np.random.default_rng(seed)
    base = (rng.standard_normal(shape) * 0.05).astype(np.float32)
    return base, [(base + rng.standard_normal(shape) * sigma).astype(np.float32) for _ in range(count)]


def inputs_of(
    method: str,
    models: Sequence[Array],
    base: Array | None = None,
    stored: str | None = None,
    seed: int = 0,
    **parameters: Any,
) -> Inputs:
    """Inputs with the method's defaults; a parameter per model is a list, or one value for all."""
    spec = SPECS[method]
    each = [
        {
            name: value[i] if isinstance(value := parameters.get(name, default.default), list) else value
            for name, default in spec.inputs.items()
        }
        for i in range(len(models))
    ]
    shared = {name: parameters.get(name, default.default) for name, default in spec.shared.items()}
    first = models[0] if models else base
    assert first is not None
    return Inputs(
        first.shape,
        [InMemory(one) for one in models],
        None if base is None else InMemory(base),
        each,
        shared,
        stored,
        seed,
        "layer.weight",
        [f"model{i}" for i in range(len(models))],
        first.dtype.type,
        by_row(method, shared),
    )


def ours(method: str, models: Sequence[Array], base: Array | None = None, **options: Any) -> Array:
    """The merged tensor in the type of the arithmetic."""
    return merged(METHODS[method], inputs_of(method, models, base, **options))


def mergekits(method: str, models: Sequence[Array], base: Array | None, stored: str, **parameters: Any) -> Array:
    """What mergekit makes of the same tensors in the type `stored`, as fp32."""
    import torch
    from mergekit.merge_methods.api import merge_tensors

    kinds = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    tensors = [torch.from_numpy(rounded(one, stored).copy()).to(kinds[stored]) for one in models]
    if base is not None:
        tensors.append(torch.from_numpy(rounded(base, stored).copy()).to(kinds[stored]))
    index = len(models) if base is not None else None
    return merge_tensors(tensors, method, parameters=parameters, base_index=index).float().numpy()
