"""What makes steps fast on the machine at hand and moves no number but rounding: compiled blocks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trine.errors import BadInput
from trine.model.afmoe import Afmoe
from trine.train.config import TrainConfig

_WORTH_COMPILING = {"cpu": 1e14, "cuda": 1e17}
"""Floating-point operations of a run by device; below, some minutes of work, compiling costs more than it saves."""
_COMPILERS = ("c++", "g++", "clang++")


def wants_compile(train: TrainConfig, model: Afmoe, run_flops: float) -> bool:
    """Whether to compile a run of `run_flops` floating-point operations.

    A pure function of config and machine, so that a resumed run decides the same. Raises BadInput when compiling is
    demanded and there is no C++ compiler.
    """
    if train.compile == "never":
        return False
    device = model.output_weight.device.type
    able = device == "cuda" or cpp_compiler() is not None
    if train.compile == "always" and not able:
        raise BadInput(f"train.compile is always, but there is no C++ compiler ({', '.join(_COMPILERS)}, or $CXX)")
    return able and (train.compile == "always" or run_flops >= _WORTH_COMPILING[device])


def cpp_compiler() -> str | None:
    """Path of the C++ compiler that torch would use on CPU."""
    names = (os.environ["CXX"],) if "CXX" in os.environ else _COMPILERS
    return next((found for name in names if (found := shutil.which(name))), None)


def compile_blocks(model: Afmoe) -> None:
    """Compile the blocks, one graph for each kind, at their first use; shapes are fixed."""
    dynamo = torch._dynamo
    dynamo.config.recompile_limit = max(64, dynamo.config.recompile_limit)
    for block in model.model.layers:
        block.compile(dynamic=False)
    model.compiled = True


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run what was compiled as it is written, for passes too few to compile for."""
    with torch.compiler.set_stance("force_eager"):
        yield
