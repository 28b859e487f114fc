"""The threads that kernels of one thread each run on, several at a time."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path
from typing import Any

import torch


def on_threads(work: Callable[[int], int], threads: int) -> list[int]:
    """`work(0)` ... `work(threads - 1)` side by side, one of them on the calling thread."""
    others = [workers(threads).submit(work, i) for i in range(threads - 1)]
    own = work(threads - 1)
    wait(others)
    return [*(one.result() for one in others), own]


def run_kernel(kernel: Any, about: ctypes.Structure, what: str, *more: int) -> None:
    """Call `kernel(about, *more)` on each of torch's threads; they share out the work through `about`.

    Raises MemoryError, naming `what`, when one of them says that it has no memory.
    """
    arguments = (ctypes.byref(about), *map(ctypes.c_int64, more))
    if any(on_threads(lambda _: kernel(*arguments), torch.get_num_threads())):
        raise MemoryError(f"no memory for {what}")


@cache
def workers(threads: int) -> ThreadPoolExecutor:
    """Threads kept for the process; torch's products on them are of one thread each."""
    return ThreadPoolExecutor(threads, "kernels", initializer=_pin)


@cache
def can_pin() -> bool:
    """Whether the OpenMP runtime that torch uses can be told the threads of one thread's products."""
    return hasattr(ctypes.CDLL(None), "omp_set_num_threads") and sys.platform == "linux"


def _pin() -> None:
    """Make products of the calling thread run on it alone; torch's own setting is for the whole process.

    A thread that once had helpers of its own would slow every loop of the whole process: with more OpenMP threads
    than cores the runtime lets waiting ones sleep, and waking them takes 50 microseconds a loop.
    """
    if not can_pin():
        return
    torch.get_num_threads()  # torch applies its setting to a thread once, at its first use
    ctypes.CDLL(None).omp_set_num_threads(1)
    products = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
    if hasattr(products, "MKL_Set_Num_Threads_Local"):
        products.MKL_Set_Num_Threads_Local(1)
