"""Who scans which matrix: threads of a process take the next one, ranks of `torchrun` own a share each."""

from __future__ import annotations

import heapq
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import torch

from trine.errors import BadInput
from trine.spectrum.matrices import Matrix


@dataclass(frozen=True)
class Rank:
    """This process among those of a scan."""

    number: int = 0
    of: int = 1
    local: int = 0
    """Its number on its machine."""


def rank() -> Rank:
    """As `torchrun` says in the environment; one of one without. Raises BadInput for numbers that do not agree."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    texts = [os.environ.get(name, default) for name, default in zip(names, "010", strict=True)]
    if not all(text.isdigit() for text in texts) or int(texts[0]) >= int(texts[1]):
        raise BadInput(f"RANK={texts[0]} WORLD_SIZE={texts[1]} LOCAL_RANK={texts[2]}: not what torchrun sets")
    return Rank(*map(int, texts))


def device_of(name: str, place: Rank) -> torch.device:
    """`auto`: this rank's CUDA device where there is one, else the CPU. Raises BadInput for one that is not there."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda", place.local % found) if found else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(f"--device {name}: expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise BadInput(f"--device {name}: fp64 eigenvalues need a CPU or a CUDA device")
    device = torch.device("cuda", place.local % max(1, found)) if device.index is None else device
    if (device.index or 0) >= found:
        raise BadInput(f"--device {name}: {found} CUDA device(s) here")
    return device


def shared(matrices: Sequence[Matrix], cost: Callable[[Matrix], int], place: Rank) -> list[Matrix]:
    """This rank's matrices, in their order: the dearest first, each to the rank with the least so far."""
    if place.of == 1:
        return list(matrices)
    loads = [(0, number) for number in range(place.of)]
    mine = set()
    for one in sorted(matrices, key=lambda one: (-cost(one), one.name)):
        load, number = heapq.heappop(loads)
        if number == place.number:
            mine.add(one.name)
        heapq.heappush(loads, (load + cost(one), number))
    return [one for one in matrices if one.name in mine]


def worked(
    todo: Sequence[Matrix], make: Callable[[], Callable[[Matrix], Any]], workers: int
) -> Iterator[tuple[Matrix, Any]]:
    """Matrices with what a worker says of them, as they are finished; `make` gives each thread its own worker.

    Each of several threads computes with its part of torch's threads. What is raised in one ends them all.
    """
    if workers == 1:
        work = make()
        yield from ((one, work(one)) for one in todo)
        return
    threads, own = max(1, torch.get_num_threads() // workers), threading.local()

    def begin() -> None:
        torch.set_num_threads(threads)
        own.work = make()

    with ThreadPoolExecutor(workers, initializer=begin) as pool:
        futures = {pool.submit(lambda one=one: own.work(one)): one for one in todo}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
