"""Tiny tokenizers of known tokens, saved by transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write_tokenizer(
    folder: Path, plain: Sequence[str], added: Sequence[str] = (), special: Sequence[str] = ("<s>", "</s>")
) -> None:
    """A BPE of special tokens, letters, `plain` (each two letters, joined by a merge), then `added` tokens."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    texts = [*special, *LETTERS, *plain]
    made = Tokenizer(BPE({text: i for i, text in enumerate(texts)}, [(one[0], one[1:]) for one in plain]))
    made.pre_tokenizer, made.decoder = WhitespaceSplit(), Fuse()
    made.add_tokens([AddedToken(one) for one in added])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, bos_token=special[0], eos_token=special[1])
    folder.mkdir(parents=True, exist_ok=True)
    wrapped.save_pretrained(folder)
