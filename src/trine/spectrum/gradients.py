"""Gradient norms by matrix, as `train.gradients` measures them, to rank by."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from trine.errors import BadInput
from trine.weights.selected import GRADIENTS_FORMAT


def read_gradients(path: Path) -> dict[str, float]:
    """Norm by parameter name. Raises BadInput for another file, and for a norm that is not a finite number."""
    try:
        found = json.loads(path.read_bytes())
        if found["meta"]["format"] != GRADIENTS_FORMAT:
            raise ValueError(f"meta.format is not {GRADIENTS_FORMAT}")
        modules: dict[str, Any] = found["modules"]
        norms = {str(name): float(one["norm"]) for name, one in modules.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadInput(f"{path}: expected a file of `trine spectrum gradients` ({error!r:.80})") from None
    for name, norm in norms.items():
        if not math.isfinite(norm) or norm < 0:
            raise BadInput(f"{path}: the norm of '{name}' is {norm}; expected a finite number")
    return norms
