"""The C files of this folder as libraries: compiled at first use, kept in the user's cache folder, called by ctypes.

Callers have a torch path beside each kernel: without a C compiler, or where compiling fails, `library` is None.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent
_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC")
_TIMEOUT_SECONDS = 120


@cache
def library(name: str, *flags: str) -> ctypes.CDLL | None:
    """`NAME.c` of this folder, compiled for this processor with `flags` added; None where that is not possible.

    The compiled file is named for everything it depends on: sources, compiler, flags and processor.
    """
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None or os.name != "posix":
        return None
    sources = [one.read_text() for one in (_HERE / f"{name}.c", *sorted(_HERE.glob("*.h")))]
    about = (*sources, compiler, *_FLAGS, *flags, platform.machine(), _processor())
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trine"
    path = home / f"{name}-{hashlib.sha256(repr(about).encode()).hexdigest()[:24]}.so"
    try:
        if not path.exists():
            home.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=home) as folder:
                made = Path(folder) / path.name
                command = [compiler, *_FLAGS, *flags, "-o", str(made), str(_HERE / f"{name}.c"), "-lm"]
                subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_SECONDS)
                made.replace(path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError):
        return None


@cache
def tile_library(name: str) -> ctypes.CDLL | None:
    """`library(name)` where the processor has bf16 products: AMX, if the system grants it, or AVX-512; else None."""
    found = library(name)
    return found if found is not None and found.available() else None


def kernels() -> str:
    """What makes bf16 products on this machine: amx, avx512, or torch where neither kernel can be had."""
    found = tile_library("experts")
    return "torch" if found is None else ("avx512", "amx")[found.available() - 1]


def _processor() -> str:
    """What -march=native depends on."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
