"""The threads that kernels of one thread each run on, several at a time."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache

import torch


def on_threads(work: Callable[[int], int], threads: int) -> list[int]:
    """`work(0)` ... `work(threads - 1)` side by side, one of them on the calling thread."""
    others = [workers(threads).submit(work, i) for i in range(threads - 1)]
    own = work(threads - 1)
    wait(others)
    return [*(one.result() for one in others), own]


@cache
def workers(threads: int) -> ThreadPoolExecutor:
    """Threads kept for the process; torch's products on them are of one thread each."""
    return ThreadPoolExecutor(threads, "kernels", initializer=_pin)


@cache
def can_pin() -> bool:
    """Whether the OpenMP runtime that torch uses can be told the threads of one thread's products."""
    return hasattr(ctypes.CDLL(None), "omp_set_num_threads")


def _pin() -> None:
    """Make products of the calling thread run on it alone; torch's own setting is for the whole process."""
    torch.get_num_threads()  # torch applies that setting to a thread once, at its first use
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))
    ctypes.CDLL(None).omp_set_num_threads(1)
