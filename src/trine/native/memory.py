"""Memory that large tensors use again."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Parameters of glibc's mallopt."""


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """On CPU under glibc, keep freed memory for the next tensor instead of giving it back to the system.

    By default each large tensor is fresh memory whose pages the system hands out and clears one by one: up to a third
    of a step. Everything is given back at the end.
    """
    libc = ctypes.CDLL(None)
    if device.type != "cpu" or not hasattr(libc, "malloc_trim"):
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, 65536)
        libc.mallopt(_TRIM_THRESHOLD, 128 * 1024)
        libc.mallopt(_MMAP_THRESHOLD, 128 * 1024)
        libc.malloc_trim(0)
