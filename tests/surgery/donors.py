"""Tiny dense models with a tokenizer of their own, to be rebuilt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
WORDS = "code law chat write read sum court judge hello friend loop list".split()


def word_tokenizer(folder: Path, words: Sequence[str], specials: tuple[str, ...] = ("<s>", "</s>", "<unk>")) -> None:
    """A tokenizer that knows `words`, as files of transformers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*specials, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Fuse()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", padding_side="left"
    )
    wrapped.pad_token = "</s>"
    wrapped.save_pretrained(folder)


def dense(folder: Path, kind: str, seed: int, stored: str = "float32", **changes: Any) -> Path:
    """A random dense model of a `model_type`, with the word tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    extra = {"num_dense_layers": 3, "num_experts": 1} if kind == "afmoe" else {}
    config: Any = AutoConfig.for_model(kind, **(SHAPE | extra | changes))
    model = AutoModelForCausalLM.from_config(config).to(getattr(torch, stored))
    with torch.no_grad():
        for name, one in model.named_parameters():
            if "norm" in name:
                one += 0.1 * torch.randn_like(one)
    model.save_pretrained(folder)
    word_tokenizer(folder, WORDS)
    return folder
