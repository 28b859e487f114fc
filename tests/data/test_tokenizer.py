"""The tokenizer: Trinity's splits against Python's own reading of them, exact round trips, transformers reads it."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import write_texts
from trine.data.config import CorpusConfig, PackConfig, SourceConfig, TokenizerConfig
from trine.data.corpus import build_corpus, read_rows
from trine.data.packing import pack_corpus
from trine.data.shards import TokenShards
from trine.data.tokenizer import BOS, EOS, open_tokenizer, train_tokenizer, trinity_pre_tokenizer
from trine.errors import BadInput


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with corpus, tokenizer and tokens of a small text that holds odd characters."""
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = write_texts(folder / "texts", 40)
    (texts / "odd.txt").write_text("日本語 🙂 naïve\tx\r\n<|end_of_text|> 1234567 \x07\n")
    source = SourceConfig(name="s", path=str(texts))
    build_corpus(CorpusConfig(sources=(source,), heldout_fraction=0.2), folder / "corpus")
    train_tokenizer(TokenizerConfig(vocab_size=420), folder / "corpus", folder / "tokenizer")
    pack_corpus(PackConfig(), folder / "corpus", folder / "tokenizer", folder / "tokens")
    return folder


def pieces(text: str) -> list[str]:
    return [text[a:b] for _, (a, b) in trinity_pre_tokenizer().pre_tokenize_str(text)]


def grouped(digits: str) -> list[str]:
    """Threes from the right, the rest in front."""
    head = len(digits) % 3
    return ([digits[:head]] if head else []) + [digits[i : i + 3] for i in range(head, len(digits), 3)]


@pytest.mark.parametrize("length", range(1, 14))
def test_digits_are_grouped_from_the_right(length: int) -> None:
    digits = "1234567890123"[:length]
    assert pieces(digits) == grouped(digits)
    assert pieces(f"a{digits}b") == ["a", *grouped(digits), "b"]
    assert pieces(f"{digits}.{digits}") == [*grouped(digits), ".", *grouped(digits)]


def test_scripts_without_spaces_are_isolated_and_words_keep_their_space() -> None:
    assert pieces("in 日本語 now") == ["in", " ", "日本語", " now"]
    assert pieces("Hello world, it's") == ["Hello", " world", ",", " it", "'s"]
    assert pieces("สวัสดีabc") == ["สวัสดี", "abc"]
    assert pieces("x  y\n\n z") == ["x", " ", " y", "\n\n", " z"]
    assert pieces(".method(self)") == [".method", "(self", ")"]


def test_splitting_loses_nothing_and_never_mixes_digits() -> None:
    rng = random.Random(0)
    alphabet = "ab Z9 09\n\t.,'é日あ한ก🙂_-({\u0301٣"
    for _ in range(300):
        text = "".join(rng.choices(alphabet, k=rng.randint(1, 30)))
        found = pieces(text)
        assert "".join(found) == text
        for piece in found:
            numeric = [unicodedata.category(c).startswith("N") for c in piece]
            assert all(numeric) or not any(numeric), (text, piece)
            assert not all(numeric) or len(piece) <= 3


def test_long_runs_end() -> None:
    assert len(pieces("7" * 300_000)) == 100_000
    assert "".join(pieces(" " * 300_000)) == " " * 300_000


def test_decoding_gives_back_every_text(made: Path) -> None:
    tokenizer = open_tokenizer(made / "tokenizer").tokenizer
    for text in ("plain", "  two  spaces\n\n", "naïve 日本語 🙂 \x00\x7f", "12345 and 007"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_transformers_reads_the_folder(made: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(made / "tokenizer", local_files_only=True)
    ours = open_tokenizer(made / "tokenizer")
    text = "the model reads 12345"
    assert theirs(text).input_ids == ours.tokenizer.encode(text).ids
    assert theirs(text).input_ids[0] == theirs.bos_token_id == ours.bos
    assert (theirs.bos_token, theirs.eos_token) == (BOS, EOS)


def test_training_twice_gives_the_same_tokenizer(made: Path, tmp_path: Path) -> None:
    train_tokenizer(TokenizerConfig(vocab_size=420), made / "corpus", tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (made / "tokenizer" / "tokenizer.json").read_bytes()


def test_packed_documents_decode_to_the_corpus(made: Path) -> None:
    shards, opened = TokenShards(made / "tokens"), open_tokenizer(made / "tokenizer")
    for name in ("train", "heldout"):
        rows = [row["text"] for batch in read_rows(made / "corpus", name) for row in batch]
        documents = shards.sets[name]
        assert documents.documents == len(rows)
        for i, text in enumerate(rows):
            ids = documents.read(i, 0, int(documents.lengths[i])).astype(np.int64)
            assert (ids[0], ids[-1]) == (opened.bos, opened.eos)
            assert opened.tokenizer.decode(ids[1:-1].tolist(), skip_special_tokens=False) == text
            assert shards.token_bytes[ids].sum() == len(text.encode())
        assert documents.bytes == sum(len(text.encode()) for text in rows)


def test_a_special_token_written_in_a_text_is_text(made: Path) -> None:
    shards = TokenShards(made / "tokens")
    special = {shards.bos, shards.eos}
    for documents in shards.sets.values():
        for i in range(documents.documents):
            inner = documents.read(i, 1, int(documents.lengths[i]) - 1)
            assert special.isdisjoint(inner.tolist())


def test_an_existing_tokenizer_is_taken_and_another_kind_refused(made: Path, tmp_path: Path) -> None:
    config = TokenizerConfig(path=str(made / "tokenizer" / "tokenizer.json"))
    taken = train_tokenizer(config, made / "corpus", tmp_path / "taken")
    assert taken["vocab_size"] == open_tokenizer(made / "tokenizer").tokenizer.get_vocab_size()
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "words.json"))
    with pytest.raises(BadInput, match="not byte-level"):
        open_tokenizer(tmp_path / "words.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(BadInput, match="not a tokenizer"):
        open_tokenizer(tmp_path / "broken.json")
    with pytest.raises(BadInput, match="no such file"):
        open_tokenizer(tmp_path / "absent")


def test_a_share_of_the_corpus_is_taken_evenly(made: Path, tmp_path: Path) -> None:
    half = TokenizerConfig(vocab_size=420, sample_bytes=8000)
    taken = train_tokenizer(half, made / "corpus", tmp_path / "half")
    assert 4000 < taken["bytes"] < 12000
