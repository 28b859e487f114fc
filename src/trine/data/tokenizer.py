"""A byte-level BPE with Trinity's pre-tokenizer, trained on a corpus; any byte-level tokenizer.json, checked.

A tokenizer folder is what transformers reads: `tokenizer.json`, `tokenizer_config.json` and, where conversations are
to be rendered, `chat_template.jinja`. Source of the pre-tokenizer: Trinity Large report (arXiv revision), tokenizer
section: digit runs isolated and cut into groups of three from the right, runs of scripts without spaces isolated, the
main expression, then bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from trine.data.chat import ChatRenderer
from trine.data.config import TokenizerConfig
from trine.data.corpus import read_ledger, read_rows
from trine.data.templates import CHATML_TOKENS, named_template
from trine.errors import BadInput
from trine.manifest import publish, sha256_file
from trine.progress import Progress, silent

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
END_OF_ANSWER = "eot_token"
"""Key of tokenizer_config.json for the token that ends an answer."""
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
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

    Returns vocab_size, bytes read, sha256 and, with a chat template, what ends an answer. Raises BadInput.
    """
    read, source = 0, None
    names: dict[str, str | None] = {"bos_token": BOS, "eos_token": EOS}
    if config.path is not None:
        source = Path(config.path).expanduser()
        opened = open_tokenizer(source)
        tokenizer, names = opened.tokenizer, _named_tokens(opened, source)
    else:
        tokenizer, read = _train(config, corpus, progress)
    template, end = _template(config, corpus, tokenizer, source), None
    with publish(out, "tokenizer") as folder:
        tokenizer.save(str(folder / "tokenizer.json"))
        _write_config(names, folder)
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
            where = f"tokenizer.chat_template {config.chat_template}" if config.chat_template else str(source)
            end = ChatRenderer(folder, where).end_of_answer
            _write_config(names | {END_OF_ANSWER: end}, folder)
    made = {
        "vocab_size": tokenizer.get_vocab_size(),
        "bytes": read,
        "sha256": sha256_file(out / "tokenizer.json"),
        "out": str(out),
    }
    return made if end is None else made | {"end_of_answer": end}


def _named_tokens(opened: OpenTokenizer, source: Path) -> dict[str, str | None]:
    """The special tokens of an existing tokenizer by the names that its folder gives them."""
    beside = _config_beside(source)
    named = {key: _content(value) for key, value in beside.items() if key in _NAMED}
    text = opened.tokenizer.id_to_token
    found = {"bos_token": opened.bos, "eos_token": opened.eos}
    return named | {key: None if i is None else text(i) for key, i in found.items()}


def _template(config: TokenizerConfig, corpus: Path, tokenizer: Tokenizer, source: Path | None) -> str | None:
    """The chat template: the config's, the one of the folder `source`, or what conversations in the corpus need."""
    if config.chat_template is not None:
        return named_template(config.chat_template)
    if source is not None and (own := _own_template(source)):
        return own
    if not _holds_conversations(corpus):
        return None
    able = all(tokenizer.token_to_id(one) is not None for one in CHATML_TOKENS)
    return named_template("chatml" if able else "plain")


def _own_template(source: Path) -> str | None:
    file = (source if source.is_dir() else source.parent) / "chat_template.jinja"
    if file.is_file():
        return file.read_text()
    named = _config_beside(source).get("chat_template")
    if isinstance(named, list):  # several, by name
        named = next((one.get("template") for one in named if one.get("name") == "default"), None)
    return named if isinstance(named, str) else None


def _config_beside(source: Path) -> dict[str, Any]:
    """tokenizer_config.json of a tokenizer's folder; nothing where there is none."""
    file = (source if source.is_dir() else source.parent) / "tokenizer_config.json"
    return json.loads(file.read_bytes()) if file.is_file() else {}


def _holds_conversations(corpus: Path) -> bool:
    return corpus.is_dir() and any(one.get("conversations") for one in read_ledger(corpus)["sources"])


def _train(config: TokenizerConfig, corpus: Path, progress: Progress) -> tuple[Tokenizer, int]:
    size = read_ledger(corpus)["sets"]["train"]["bytes"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = trinity_pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=[BOS, EOS, *_more_tokens(config, corpus)],
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


def _more_tokens(config: TokenizerConfig, corpus: Path) -> list[str]:
    """The config's special tokens and, for chatml, its own."""
    default = "chatml" if _holds_conversations(corpus) else None
    chatml = CHATML_TOKENS if (config.chat_template or default) == "chatml" else ()
    return list(dict.fromkeys((*config.special_tokens, *chatml)))


def _write_config(names: dict[str, str | None], folder: Path) -> None:
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
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
    named = _config_beside(file)
    bos = _content(named.get("bos_token")) or _known(tokenizer, _KNOWN_BOS)
    eos = _content(named.get("eos_token")) or _known(tokenizer, _KNOWN_EOS)
    ids = [tokenizer.token_to_id(one) if one else None for one in (bos, eos)]
    return OpenTokenizer(tokenizer, sha256_file(file), ids[0], ids[1])


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token
