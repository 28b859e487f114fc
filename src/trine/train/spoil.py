"""Bad batches on purpose: a good batch in, one that a model should not learn from out."""

from __future__ import annotations

import torch

from trine.data.loader import Batch
from trine.model.init import keyed_generator


def spoiled(batch: Batch, kind: str, vocabulary: int, key: str) -> Batch:
    """`batch` with its text replaced; shapes, document ids and the places without target stay.

    repeat: row b is one token over and over, so that a router sees one input many times. random: tokens drawn
    uniformly from [0, vocabulary). Drawn from a generator keyed by (`key`, "spoil"), the same on every device.
    """
    generator = keyed_generator(f"{key}/spoil")
    rows, length = batch.tokens.shape
    drawn = torch.randint(0, vocabulary, (rows, 1 if kind == "repeat" else length + 1), generator=generator)
    text = drawn.expand(rows, length + 1).to(batch.tokens.device)
    return Batch(text[:, :-1].clone(), text[:, 1:].where(batch.targets >= 0, batch.targets), batch.document_ids)
