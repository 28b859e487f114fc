"""Small conversations and a tokenizer with a chat template, for tests of fine-tuning."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from trine.data.config import CorpusConfig, PackConfig, TokenizerConfig
from trine.data.corpus import build_corpus
from trine.data.packing import pack_corpus
from trine.data.tokenizer import train_tokenizer

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is ünïcode — 漢字?"},
    {"role": "assistant", "content": "A table of characters.\n\n  Ω and 日本 are in it."},
    {"role": "user", "content": "Thanks. And 12 + 34?"},
    {"role": "assistant", "content": "46"},
]


def write_chats(path: Path, count: int, seed: int = 0) -> Path:
    """JSONL of sums to be told, one to three questions each, the same for the same seed."""
    rng = random.Random(seed)
    with path.open("w") as file:
        for _ in range(count):
            messages = []
            for _ in range(rng.randint(1, 3)):
                a, b = rng.randint(0, 99), rng.randint(0, 99)
                messages += [{"role": "user", "content": f"What is {a} + {b}?"}]
                messages += [{"role": "assistant", "content": f"It is {a + b}, the sum of {a} and {b}."}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def pack_chats(folder: Path, count: int = 60, tokenizer: dict[str, Any] | None = None) -> Path:
    """Corpus, tokenizer and tokens of such conversations in `folder`, a tenth held out. Returns the tokens' folder."""
    folder.mkdir(parents=True, exist_ok=True)
    source = {"name": "sums", "path": str(write_chats(folder / "sums.jsonl", count)), "chat": {}}
    build_corpus(CorpusConfig.model_validate({"sources": (source,), "heldout_fraction": 0.2}), folder / "corpus")
    settings = TokenizerConfig.model_validate({"vocab_size": 300} | (tokenizer or {}))
    train_tokenizer(settings, folder / "corpus", folder / "tokenizer")
    pack_corpus(PackConfig(), folder / "corpus", folder / "tokenizer", folder / "tokens")
    return folder / "tokens"
