"""trine: from raw text to a language model of your own, measured and in Hugging Face format.

Public API, imported on use: `load_model(path, dtype="float32", device="cpu")` and `save_model(model, path)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trine.model.hf import load_model, save_model

__version__ = "0.1.0"
__all__ = ["__version__", "load_model", "save_model"]


def __getattr__(name: str) -> Any:
    if name in ("load_model", "save_model"):
        from trine.model import hf

        return getattr(hf, name)
    raise AttributeError(f"module 'trine' has no attribute '{name}'")
