"""The methods by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trine.merge.methods.average import linear, passthrough
from trine.merge.methods.direction import karcher, multislerp
from trine.merge.methods.fusion import arcee_fusion
from trine.merge.methods.inputs import Inputs, Kernel
from trine.merge.methods.nearswap import nearswap
from trine.merge.methods.ram import ram, ramplus_tl
from trine.merge.methods.sce import sce
from trine.merge.methods.sphere import nuslerp, slerp
from trine.merge.methods.stock import model_stock
from trine.merge.methods.task import (
    breadcrumbs,
    breadcrumbs_ties,
    dare_linear,
    dare_ties,
    della,
    della_linear,
    task_arithmetic,
    ties,
)

METHODS: dict[str, Callable[[Inputs], Kernel]] = {
    "linear": linear,
    "slerp": slerp,
    "nuslerp": nuslerp,
    "multislerp": multislerp,
    "karcher": karcher,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "dare_ties": dare_ties,
    "dare_linear": dare_linear,
    "della": della,
    "della_linear": della_linear,
    "breadcrumbs": breadcrumbs,
    "breadcrumbs_ties": breadcrumbs_ties,
    "model_stock": model_stock,
    "nearswap": nearswap,
    "sce": sce,
    "arcee_fusion": arcee_fusion,
    "ram": ram,
    "ramplus_tl": ramplus_tl,
    "passthrough": passthrough,
}


def by_row(method: str, shared: dict[str, Any]) -> bool:
    """Whether a method needs whole rows at a time."""
    match method:
        case "della" | "della_linear" | "arcee_fusion":
            return True
        case "model_stock":
            return shared["filter_wise"]
        case "nuslerp":
            return not shared["nuslerp_flatten"]
    return False
