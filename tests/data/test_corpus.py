"""The corpus: duplicates, held-out texts, cuts, and a ledger whose numbers add up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import read_json, write_texts
from trine.data.clean import strip_gutenberg
from trine.data.config import CorpusConfig, SourceConfig
from trine.data.corpus import build_corpus, read_ledger, read_rows
from trine.data.document import Document, cut
from trine.data.python_docs import python_docs
from trine.errors import BadInput
from trine.manifest import verify


def texts(corpus: Path, name: str) -> list[str]:
    return [row["text"] for rows in read_rows(corpus, name, 3) for row in rows]


def test_heldout_texts_win_over_training_texts(tmp_path: Path) -> None:
    for name, lines in (("train", ["a", "b", "c", "a"]), ("test", ["b", "d"])):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    config = CorpusConfig(
        sources=(
            SourceConfig(name="train", path=str(tmp_path / "train.txt"), documents="line", licence="CC0"),
            SourceConfig(name="test", path=str(tmp_path / "test.txt"), documents="line", set="exam"),
        )
    )
    ledger = build_corpus(config, tmp_path / "out")
    assert texts(tmp_path / "out", "train") == ["a", "c"]
    assert texts(tmp_path / "out", "exam") == ["b", "d"]
    first = ledger["sources"][0]
    assert (first["name"], first["licence"], first["dropped"]) == ("train", "CC0", {"exact duplicate": 2})
    assert ledger == read_ledger(tmp_path / "out")
    verify(tmp_path / "out", "corpus")


def test_ledger_adds_up_and_building_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = write_texts(tmp_path / "in", 60)
    (folder / "short.txt").write_text("x\n")
    config = CorpusConfig(sources=(SourceConfig(name="s", path=str(folder)),), heldout_fraction=0.2, min_characters=10)
    for name in ("one", "two"):
        ledger = build_corpus(config, tmp_path / name)
    source = ledger["sources"][0]
    assert source["documents_in"] == source["documents"] + sum(source["dropped"].values()) == 61
    assert source["dropped"] == {"shorter than min_characters": 1}
    assert source["documents"] == sum(one["documents"] for one in ledger["sets"].values())
    assert source["bytes"] == sum(one["bytes"] for one in ledger["sets"].values())
    assert 3 <= ledger["sets"]["heldout"]["documents"] <= 25
    manifests = [read_json(tmp_path / name / "manifest.json") for name in ("one", "two")]
    assert manifests[0] == manifests[1]


def test_heldout_choice_depends_on_the_text_alone(tmp_path: Path) -> None:
    folder = write_texts(tmp_path / "in", 60)
    source = SourceConfig(name="s", path=str(folder))
    build_corpus(CorpusConfig(sources=(source,), heldout_fraction=0.2), tmp_path / "all")
    fewer = source.model_copy(update={"exclude": ("00*.txt",)})
    build_corpus(CorpusConfig(sources=(fewer,), heldout_fraction=0.2), tmp_path / "fewer")
    assert set(texts(tmp_path / "fewer", "heldout")) <= set(texts(tmp_path / "all", "heldout"))


@pytest.mark.parametrize("size", [1024, 1500, 5000])
def test_a_long_text_is_cut_without_losing_a_byte(size: int) -> None:
    text = "".join(f"ligne {i} é日本\n" for i in range(400)) + "日" * 2000
    pieces = list(cut(Document(text, "f"), size))
    assert "".join(piece.text for piece in pieces) == text
    assert all(len(piece.text.encode()) <= size for piece in pieces)
    assert pieces[0].text.endswith("\n")


def test_gutenberg_marks() -> None:
    book = ["header\n", "*** START OF THE PROJECT GUTENBERG EBOOK X ***\n", "text\n", "*** END OF THE PROJECT\n", "x"]
    assert list(strip_gutenberg(book)) == ["text\n"]
    assert list(strip_gutenberg(["no\n", "marks\n"])) == ["no\n", "marks\n"]


def test_python_docs_are_megabytes_of_distinct_text() -> None:
    documents = list(python_docs())
    assert sum(len(one.text) for one in documents) > 1_500_000
    assert any("with" in one.path for one in documents if one.path.startswith("pydoc:"))
    assert all(one.text.strip() for one in documents)
    assert documents == list(python_docs())


def test_sets_whose_names_begin_alike_stay_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n")
    sources = (
        SourceConfig(name="a", path=str(tmp_path / "a.txt")),
        SourceConfig(name="b", path=str(tmp_path / "b.txt"), set="train-2"),
    )
    build_corpus(CorpusConfig(sources=sources), tmp_path / "out")
    assert texts(tmp_path / "out", "train") == ["a\n"]
    assert texts(tmp_path / "out", "train-2") == ["b\n"]


def test_everything_held_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text\n")
    source = SourceConfig(name="s", path=str(tmp_path / "a.txt"), set="exam")
    with pytest.raises(BadInput, match="no training document"):
        build_corpus(CorpusConfig(sources=(source,)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_real_books(tmp_path: Path, trine_data: Path) -> None:
    books = SourceConfig(name="books", path=str(trine_data / "general" / "books"), strip="gutenberg")
    ledger = build_corpus(CorpusConfig(sources=(books,)), tmp_path / "out")
    assert ledger["sources"][0]["documents"] >= 5
    found = texts(tmp_path / "out", "train")
    assert not any("START OF THE PROJECT GUTENBERG" in text for text in found)
    assert min(map(len, found)) > 50_000
