"""A byte-level BPE with Trinity's pre-tokenizer, trained on a corpus; any byte-level tokenizer.json, checked.

A tokenizer folder is what transformers reads: `tokenizer.json` and `tokenizer_config.json`. Source of the
pre-tokenizer: Trinity Large report (arXiv revision), tokenizer section: digit runs isolated and cut into groups
of three from the right, runs of scripts without spaces isolated, the main expression, then bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from trine.data.config import TokenizerConfig
from trine.data.corpus import read_ledger, read_rows
from trine.errors import BadInput
from trine.manifest import publish, sha256_file
from trine.progress import Progress, silent

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
_KNOWN_BOS = (BOS, "<s>", "<bos>")
_KNOWN_EOS = (EOS, "<|endoftext|>", "</s>", "<eos>", "<|im_end|>")
DIGIT_RUNS = r"\p{N}+"
DIGIT_TRIPLES = r"\A\p{N}{1,2}(?=(?:\p{N}{3})+\z)|\p{N}{3}|\p{N}+"
"""Within one run: a leading group of one or two, then threes. One pass, whatever the run's length."""
SCRIPTS = (
    r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{F900}-\x{FAFF}\x{3040}-\x{309F}\x{30A0}-\x{30FF}\x{FF65}-\x{FF9F}"
    r"\x{2F00}-\x{2FDF}\x{0E00}-\x{0E7F}\x{0E80}-\x{0EFF}\x{1780}-\x{17FF}\x{1000}-\x{109F}\x{AA60}-\x{AA7F}"
    r"\x{A9E0}-\x{A9FF}\x{AC00}-\x{D7AF}\x{1100}-\x{11FF}]+"
)
"""Unicode blocks: CJK (three), Hiragana, Katakana (two), radicals, Thai, Lao, Khmer, Myanmar (three), Hangul (two).
Ports of this expression begin Thai at U+0E40 and the compatibility ideographs at U+8C48, which cuts the one block in
half and swallows what lies between; whole blocks are taken here."""
MAIN = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"""|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)


def trinity_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Digit runs, digit triples, scripts without spaces, main expression, byte level."""
    patterns = (DIGIT_RUNS, DIGIT_TRIPLES, SCRIPTS, MAIN)
    splits = [pre_tokenizers.Split(Regex(one), behavior="isolated") for one in patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def train_tokenizer(config: TokenizerConfig, corpus: Path, out: Path, progress: Progress = silent) -> dict[str, Any]:
    """Train on the training set of `corpus`, or check and copy `config.path`; publish the folder `out`.

    Returns vocab_size, bytes read and sha256. Raises BadInput.
    """
    read = 0
    if config.path is not None:
        tokenizer = open_tokenizer(Path(config.path).expanduser()).tokenizer
    else:
        tokenizer, read = _train(config, corpus, progress)
    with publish(out, "tokenizer") as folder:
        tokenizer.save(str(folder / "tokenizer.json"))
        _write_config(tokenizer, folder)
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "bytes": read,
        "sha256": sha256_file(out / "tokenizer.json"),
        "out": str(out),
    }


def _train(config: TokenizerConfig, corpus: Path, progress: Progress) -> tuple[Tokenizer, int]:
    size = read_ledger(corpus)["sets"]["train"]["bytes"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = trinity_pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    share = min(1.0, config.sample_bytes / size) if config.sample_bytes else 1.0
    read = 0

    def texts() -> Iterator[list[str]]:
        nonlocal read
        owed = 0.0
        for rows in read_rows(corpus, "train"):
            chosen = []
            for row in rows:
                owed += share
                if owed >= 1:
                    owed -= 1
                    chosen.append(row["text"])
                    read += len(row["text"])
            progress(read, int(size * share), "tokenizer: characters read")
            yield chosen

    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer, read


def _write_config(tokenizer: Tokenizer, folder: Path) -> None:
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _known(tokenizer, _KNOWN_BOS),
        "eos_token": _known(tokenizer, _KNOWN_EOS),
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _known(tokenizer: Tokenizer, names: tuple[str, ...]) -> str | None:
    return next((one for one in names if tokenizer.token_to_id(one) is not None), None)


@dataclass(frozen=True)
class OpenTokenizer:
    """A tokenizer ready to encode documents."""

    tokenizer: Tokenizer
    sha256: str
    bos: int | None
    eos: int | None

    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes each token stands for, uint16 [vocabulary]; 0 for added tokens."""
        size = vocabulary_size(self.tokenizer)
        added = self.tokenizer.get_added_tokens_decoder()
        tokens = {i: token for token, i in self.tokenizer.get_vocab(with_added_tokens=True).items()}
        lengths = [0 if i in added or i not in tokens else len(tokens[i]) for i in range(size)]
        return np.array(lengths, dtype=np.uint16)


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """Largest id plus one: ids may have holes."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def open_tokenizer(path: Path, *, exact_bytes: bool = True) -> OpenTokenizer:
    """Open a tokenizer.json, or the folder that holds one. Raises BadInput; with `exact_bytes` unless byte-level."""
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise BadInput(f"{file}: no such file; expected a tokenizer.json, or a folder with one")
    try:
        tokenizer = Tokenizer.from_file(str(file))
        byte_level = '"ByteLevel"' in json.dumps(json.loads(file.read_bytes()).get("decoder"))
    except Exception as error:  # the library raises bare Exception for a file it cannot read
        raise BadInput(f"{file}: not a tokenizer ({str(error)[:200]})") from None
    if exact_bytes and not byte_level:
        raise BadInput(f"{file}: its decoder is not byte-level, so tokens have no exact length in bytes")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    named: dict[str, Any] = {}
    if (beside := file.with_name("tokenizer_config.json")).is_file():
        named = json.loads(beside.read_bytes())
    bos = _content(named.get("bos_token")) or _known(tokenizer, _KNOWN_BOS)
    eos = _content(named.get("eos_token")) or _known(tokenizer, _KNOWN_EOS)
    ids = [tokenizer.token_to_id(one) if one else None for one in (bos, eos)]
    return OpenTokenizer(tokenizer, sha256_file(file), ids[0], ids[1])


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token
