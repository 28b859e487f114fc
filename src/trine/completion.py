"""Text in, text out: a model folder's tokenizer around `model.decode.generate`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trine.data.tokenizer import open_tokenizer, vocabulary_size
from trine.errors import BadInput
from trine.model.decode import generate
from trine.model.hf import load_model


class TextModel:
    """A Hugging Face folder that completes text."""

    def __init__(self, folder: Path, dtype: str = "float32", device: str = "cpu") -> None:
        """Raises BadInput when model or tokenizer cannot be read."""
        self.opened = open_tokenizer(folder)
        self.model = load_model(folder, dtype, device)

    def complete(
        self,
        prompt: str,
        max_new_tokens: int,
        *,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float = 0.95,
        seed: int = 0,
    ) -> Iterator[str]:
        """Yield the continuation of `prompt` in pieces of whole characters, until end of text or the limit."""
        tokenizer, eos = self.opened.tokenizer, self.opened.eos
        ids = tokenizer.encode(prompt).ids
        if not ids:
            raise BadInput("the prompt is empty, and the tokenizer has no token that begins a text")
        fresh: list[int] = []
        for token in generate(
            self.model,
            ids,
            max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=frozenset() if eos is None else frozenset({eos}),
            choices=vocabulary_size(tokenizer),
        ):
            fresh.append(token)
            piece = tokenizer.decode(fresh)
            if not piece.endswith("�"):
                yield piece
                fresh = []
        if fresh:
            yield tokenizer.decode(fresh)
