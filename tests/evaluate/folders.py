"""Tiny model folders with a tokenizer, AFMoE and Llama, and a scorer that answers by rule."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tests.model.shapes import small_config, small_model
from trine.data.tokenizer import trinity_pre_tokenizer
from trine.evaluate.asking import Likelihood, Prompt, Rolling
from trine.model.hf import save_model
from trine.progress import Progress, silent

TEXT = "the model reads a café, then naïve 日本 text 😀 and writes 12 numbers: 345, 6789.\n" * 3
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"


def write_tokenizer(folder: Path, begins: bool) -> int:
    """A byte-level tokenizer, with `begins` one that puts BOS before texts; its size."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = trinity_pre_tokenizer(), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 0)]
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | {"clean_up_tokenization_spaces": False}))
    return tokenizer.get_vocab_size()


def write_afmoe(folder: Path, begins: bool = True, seed: int = 0) -> Path:
    """An AFMoE export that reads 96 tokens."""
    size = write_tokenizer(folder.with_name(f"{folder.name}-tokenizer"), begins)
    model = small_model(
        small_config(vocab_size=size, max_position_embeddings=96, sliding_window=16), seed=seed, bias=0.1
    )
    save_model(model, folder, folder.with_name(f"{folder.name}-tokenizer"))
    return folder


def write_llama(folder: Path, begins: bool = False, seed: int = 0) -> Path:
    """A Llama of transformers that reads 96 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    size = write_tokenizer(folder, begins)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    return folder


class RuleScorer:
    """Writes what a rule says; texts cost a bit per character, and `wanted` continuations are the likeliest."""

    longest = 1 << 20

    def __init__(self, rule: Callable[[str], str], wanted: Callable[[str, str], bool] = lambda a, b: False) -> None:
        self.rule, self.wanted = rule, wanted

    def likelihoods(
        self, pairs: Sequence[tuple[str, str]], progress: Progress = silent, what: str = ""
    ) -> list[Likelihood]:
        found = [self.wanted(*one) for one in pairs]
        return [
            Likelihood(0.0 if won else -1.0 * len(b.encode()), won) for won, (_, b) in zip(found, pairs, strict=True)
        ]

    def rolling(self, texts: Sequence[str], progress: Progress = silent, what: str = "") -> list[Rolling]:
        return [Rolling(np.full(len(t), -np.log(2)), np.arange(1, len(t) + 1)) for t in texts]

    def complete(self, prompts: Sequence[Prompt], progress: Progress = silent, what: str = "") -> list[str]:
        return [self.rule(one.text) for one in prompts]

    def count(self, text: str) -> int:
        return len(text.split())
