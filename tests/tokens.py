"""A small token folder for tests of the training side, from a fixed random stream; needs numpy alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trine.data.shards import ShardWriter, token_dtype, write_index
from trine.manifest import publish


def write_tokens(
    folder: Path, vocabulary: int = 97, documents: int = 60, seed: int = 0, sources: tuple[str, ...] = ()
) -> Path:
    """Publish `folder` with the sets train and heldout; every token but the first two stands for two bytes. Documents
    are of the `sources` in turn."""
    rng = np.random.default_rng(seed)
    with publish(folder, "tokens") as out:
        entries = {}
        for name, count in (("train", documents), ("heldout", 5)):
            with ShardWriter(out, name, token_dtype(vocabulary), 1024) as writer:
                for number in range(count):
                    length = int(rng.integers(1, 90))
                    # a text with a pattern to learn: each token is followed by one of three
                    tokens = (np.cumsum(rng.integers(1, 4, length)) % (vocabulary - 2)) + 2
                    writer.add(np.concatenate(([0], tokens, [1])), 2 * length, number % max(1, len(sources)))
            entries[name] = writer.summary()
        token_bytes = np.full(vocabulary, 2, dtype=np.uint16)
        token_bytes[:2] = 0
        write_index(out, entries, token_bytes, bos=0, eos=1, tokenizer_sha256="none", sources=sources)
    return folder
