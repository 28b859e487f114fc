"""What each merge method takes: the role of the base model, how many models, which parameters. No arithmetic.

Names, defaults and roles are those of mergekit 0.1.5, so that its configs mean the same here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["number", "count", "switch"]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method."""

    kind: Kind = "number"
    default: float | bool | None = None
    required: bool = False


@dataclass(frozen=True)
class Spec:
    """What a method takes."""

    base: Literal["required", "optional", "ignored"]
    """`ignored`: a base model is an input like the others."""
    least: int = 1
    """Fewest models beside the base."""
    most: int | None = None
    inputs: dict[str, Parameter] = field(default_factory=dict)
    """Parameters that each model has its own value of."""
    shared: dict[str, Parameter] = field(default_factory=dict)
    unused: frozenset[str] = frozenset()
    """Parameters that are accepted and change nothing."""

    @property
    def names(self) -> list[str]:
        """Every parameter's name."""
        return [*self.inputs, *self.shared, *sorted(self.unused)]


_WEIGHT = Parameter(required=True)
_DENSITY = Parameter(default=1.0)
_YES, _NO = Parameter("switch", True), Parameter("switch", False)
_MASK = frozenset({"int8_mask"})
"""int8_mask names the type of a comparison's result, which no number depends on."""


def _task(normalize: Parameter, rescale: Parameter, **inputs: Parameter) -> Spec:
    shared = {"normalize": normalize, "rescale": rescale, "lambda": Parameter(default=1.0)}
    return Spec("required", 0, None, {"weight": _WEIGHT, "density": _DENSITY, **inputs}, shared, _MASK)


_EPSILON, _GAMMA = Parameter(default=0.15), Parameter(default=0.01)

SPECS: dict[str, Spec] = {
    "linear": Spec("ignored", 1, None, {"weight": _WEIGHT}, {"normalize": _YES}),
    "slerp": Spec("required", 1, 1, {}, {"t": Parameter(required=True)}),
    "nuslerp": Spec("optional", 2, 2, {"weight": _WEIGHT}, {"nuslerp_flatten": _YES, "nuslerp_row_wise": _NO}),
    "multislerp": Spec(
        "optional", 1, None, {"weight": _WEIGHT}, {"normalize_weights": _YES, "eps": Parameter(default=1e-8)}
    ),
    "karcher": Spec("ignored", 1, None, {}, {"max_iter": Parameter("count", 10), "tol": Parameter(default=1e-5)}),
    "task_arithmetic": Spec(
        "required",
        0,
        None,
        {"weight": _WEIGHT},
        {"normalize": _NO, "lambda": Parameter(default=1.0)},
        frozenset({"density", "rescale", "int8_mask"}),
    ),
    "ties": _task(_YES, _NO),
    "dare_ties": _task(_NO, _YES),
    "dare_linear": _task(_NO, _YES),
    "della": _task(_YES, _YES, epsilon=_EPSILON),
    "della_linear": _task(_NO, _YES, epsilon=_EPSILON),
    "breadcrumbs": _task(_NO, _NO, gamma=_GAMMA),
    "breadcrumbs_ties": _task(_NO, _NO, gamma=_GAMMA),
    "model_stock": Spec("required", 2, None, {}, {"filter_wise": _NO}),
    "nearswap": Spec("required", 1, 1, {}, {"t": Parameter(required=True)}),
    "sce": Spec("required", 0, None, {}, {"select_topk": Parameter(default=1.0)}, _MASK),
    "arcee_fusion": Spec("required", 1, 1),
    "ram": Spec("required", 0, None, {}, {"epsilon": Parameter(default=1e-5)}),
    "ramplus_tl": Spec(
        "required",
        0,
        None,
        {},
        {"r": Parameter(default=0.1), "alpha": Parameter(default=0.2), "epsilon": Parameter(default=1e-5)},
    ),
    "passthrough": Spec("ignored", 1, 1, {"scale": Parameter()}),
}
