"""What `trine data show` tells of a batch: the tokens of the stream, where documents are cut, what is no target."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.chats import pack_chats
from tests.conftest import Command, write_texts
from trine.batch_view import view_batch
from trine.data.config import CorpusConfig, PackConfig, TokenizerConfig
from trine.data.corpus import build_corpus
from trine.data.packing import pack_corpus
from trine.data.shards import TokenShards
from trine.data.tokenizer import open_tokenizer, train_tokenizer
from trine.errors import BadInput
from trine.recipe import Config
from trine.report.batch import write_batch
from trine.train.stream import training_stream
from trine.train.timeline import Timeline

PHASES = ({"begin_tokens": 1000, "packing": "best_fit", "sequence_length": 128, "document_mask": False},)
MIX = ({"source": "one", "share": 0.75}, {"source": "two", "share": 0.25})


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("view")
    sources = tuple(
        {"name": name, "path": str(write_texts(folder / name, 12, seed))} for seed, name in enumerate(("one", "two"))
    )
    build_corpus(CorpusConfig.model_validate({"sources": sources}), folder / "corpus")
    train_tokenizer(TokenizerConfig(vocab_size=300), folder / "corpus", folder / "tokenizer")
    pack_corpus(PackConfig(), folder / "corpus", folder / "tokenizer", folder / "tokens")
    return folder / "tokens"


def config(**changes: Any) -> Config:
    train = {"steps": 20, "sequence_length": 64, "batch_sequences": 4, "micro_batch_sequences": 2, "mix": MIX}
    return Config.model_validate({"train": train | {"phases": PHASES} | changes})


@pytest.mark.parametrize("step", [1, 7])
def test_it_shows_what_the_stream_gives(tokens: Path, step: int) -> None:
    view = view_batch(config(), tokens, None, step, rows=3, max_tokens=1000)
    assert config().train is not None
    timeline = Timeline(config().train, config().optim.schedule)  # type: ignore[arg-type]
    documents = TokenShards(tokens).sets["train"]
    stream = training_stream(timeline, documents)
    tokenizer = open_tokenizer(tokens / "tokenizer").tokenizer
    assert view["phase"] == (step == 7)
    assert len(view["rows"]) == 3
    for place, row in enumerate(view["rows"]):
        ids, targets, marks = stream.sequence(timeline.sequences(step - 1) + place)
        shown = [token for piece in row["pieces"] for token in piece["tokens"]]
        used = int((marks >= 0).sum())
        assert shown == [tokenizer.decode([i], skip_special_tokens=False) for i in ids[:used].tolist()]
        assert row["padding"] == len(ids) - used
        ignored, begin = [], 0
        for piece in row["pieces"]:
            ignored += [begin + i for i in piece["ignored"]]
            begin += piece["take"]
            assert piece["begin"] + piece["take"] <= piece["length"] == documents.lengths[piece["document"]]
            assert piece["source"] == documents.sources[piece["document"]]
        assert ignored == [i for i in range(used) if targets[i] < 0]
    assert [(one["name"], one["share"]) for one in view["sources"]] == [("one", 0.75), ("two", 0.25)]


def test_long_rows_are_cut_and_steps_have_bounds(tokens: Path) -> None:
    view = view_batch(config(), tokens, None, None, rows=100, max_tokens=10)
    assert (view["step"], len(view["rows"])) == (1, 4)
    for row in view["rows"]:
        assert sum(len(piece["tokens"]) for piece in row["pieces"]) == 10
        assert sum(piece["take"] for piece in row["pieces"]) == 64
    with pytest.raises(BadInput, match="steps 1 to 20"):
        view_batch(config(), tokens, None, 21, rows=1, max_tokens=10)


def test_a_plain_stream_without_sources_is_shown_too(tokens: Path) -> None:
    plain = view_batch(config(mix=None, phases=()), tokens, None, 2, rows=2, max_tokens=64)
    assert sum(one["tokens"] for one in plain["sources"]) == 128


def test_the_page_holds_the_view_and_allows_nothing_else(tokens: Path, tmp_path: Path) -> None:
    view = view_batch(config(), tokens, None, 1, rows=1, max_tokens=64)
    view["rows"][0]["pieces"][0]["tokens"][0] = "</script><script>alert(1)</script>"
    page = write_batch(view, tmp_path / "new" / "page.html").read_text()
    assert "<script>alert" not in page
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert block is not None
    assert json.loads(block[1]) == view
    script = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert f"default-src 'none'; script-src 'sha256-{digest}'" in page


def test_the_verb_prints_and_writes(tokens: Path, tmp_path: Path, trine: Command) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"train: {{tokens: {tokens}, sequence_length: 512, batch_sequences: 8, steps: 5}}\n")
    done = trine("data", "show", file, "--rows", 8, "--train.steps", 9, "--out", tmp_path / "page.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "sequence 1: " in done.stdout
    assert "── one, document" in done.stdout
    assert "<|end_of_text|>⊘" in done.stdout
    assert "\x1b" not in done.stdout
    assert (tmp_path / "page.html").is_file()
    assert trine("data", "show", file, "--step", 99, cwd=tmp_path).returncode == 2


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_chats(tmp_path_factory.mktemp("chats"))


@pytest.mark.parametrize("packing", ["carry_over", "best_fit"])
def test_trained_tokens_are_those_of_the_shards(chats: Path, packing: str) -> None:
    view = view_batch(config(mix=None, phases=(), packing=packing), chats, None, 1, rows=4, max_tokens=50)
    documents = TokenShards(chats).sets["train"]
    assert view["answers_only"]
    for row in view["rows"]:
        for piece in row["pieces"]:
            marks = documents.read_trained(piece["document"], piece["begin"], piece["begin"] + piece["take"])
            assert piece["trained"] == [i for i, one in enumerate(marks) if one]


def test_answers_stand_in_brackets(chats: Path, tmp_path: Path, trine: Command) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        f"train: {{tokens: {chats}, sequence_length: 256, batch_sequences: 8, steps: 5, packing: best_fit}}\n"
    )
    done = trine("data", "show", file, "--rows", 8, "--out", tmp_path / "page.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = re.findall(r"⟦(.*?)⟧", done.stdout.replace("\n", " "))[1:]
    assert len(said) > 8
    assert all(re.fullmatch(r"It is \d+, the sum of \d+ and \d+\.<\|im_end\|>", one) for one in said), said
    assert "⊘" not in done.stdout
    assert '"trained":[' in (tmp_path / "page.html").read_text()
