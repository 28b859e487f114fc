"""Batches by position: the same for any number of worker threads, and from any position onwards."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import torch
from torch import Tensor

from trine.data.pack import TokenStream
from trine.data.planned import PlannedStream
from trine.data.shards import TokenSet

Stream = TokenStream | PlannedStream
"""What gives tokens, targets and document ids by sequence index."""

_AHEAD = 2
"""Batches prepared in advance per worker."""


@dataclass(frozen=True)
class Batch:
    """Rows of equal length."""

    tokens: Tensor
    """int64 [B, T]."""
    targets: Tensor
    """int64 [B, T]; -1 is not predicted."""
    document_ids: Tensor | None
    """int32 [B, T], -1 padding; None when attention may cross documents and nothing is padded."""

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`."""
        ids = self.document_ids
        return Batch(
            _moved(self.tokens, device), _moved(self.targets, device), None if ids is None else _moved(ids, device)
        )


def _moved(x: Tensor, device: torch.device) -> Tensor:
    """`x` on `device`; to CUDA through pinned memory, without waiting for the copy."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def batches(stream: Stream, start: int, rows: int | Iterator[int], workers: int) -> Iterator[Batch]:
    """Batches of `rows` sequences, always as many or as `rows` says for each, the first beginning with sequence
    `start`; endless unless `rows` ends."""
    counts = repeat(rows) if isinstance(rows, int) else rows
    if workers == 0:
        for count in counts:
            yield make_batch(stream, start, count)
            start += count
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="trine-loader") as pool:
        waiting: deque[Future[Batch]] = deque()
        try:
            for count in counts:
                waiting.append(pool.submit(make_batch, stream, start, count))
                start += count
                if len(waiting) == workers * _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def make_batch(stream: Stream, start: int, rows: int) -> Batch:
    """Sequences start ... start + rows - 1 of the stream."""
    tokens, targets, ids = zip(*(stream.sequence(start + i) for i in range(rows)), strict=True)
    return Batch(
        torch.from_numpy(np.stack(tokens)),
        torch.from_numpy(np.stack(targets)),
        torch.from_numpy(np.stack(ids)) if stream.needs_ids(start) else None,
    )


def eval_batches(documents: TokenSet, length: int, rows: int, max_tokens: int, masked: bool) -> Iterator[Batch]:
    """The first `max_tokens` tokens of a set in stored order, each predicted once; the rest of the last rows is
    padding (token 0, target -1, document id -1). Unless `masked`, all the others have document id 0."""
    total = min(max_tokens, documents.tokens)
    stream = TokenStream(documents, length, seed=0, shuffle=False, masked=masked)
    for start in range(0, -(-total // length), rows):
        sequences = []
        for i in range(start, start + rows):
            tokens, targets, ids = stream.sequence(i)
            used = max(0, min(length, total - i * length))
            predicted = max(0, min(length, total - 1 - i * length))
            if not masked:
                ids[:] = 0
            tokens[used:], ids[used:], targets[predicted:] = 0, -1, -1
            sequences.append((tokens, targets, ids))
        columns = [torch.from_numpy(np.stack(column)) for column in zip(*sequences, strict=True)]
        yield Batch(*columns)
