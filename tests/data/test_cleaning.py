"""Cleaning: what is planted is found, what only looks like it is kept, and every number of the ledger adds up."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from planted import NUMBERS, PERSONAL, background, check, jaccard, plant, write_exam, write_items

from trine.data.boilerplate import paragraphs
from trine.data.config import (
    BoilerplateConfig,
    ChatConfig,
    CorpusConfig,
    DecontaminateConfig,
    EvaluationSet,
    FilingsConfig,
    HeldoutRule,
    NearDuplicatesConfig,
    QualityConfig,
    SourceConfig,
)
from trine.data.corpus import build_corpus, read_rows
from trine.data.document import Document, Dropped
from trine.data.near import NearDuplicates, bands_for, signature
from trine.data.personal import find, iban_valid, luhn
from trine.data.quality import Quality
from trine.data.words import mixed, ngrams, words_of
from trine.errors import BadInput

KINDS = ("email", "phone", "ssn", "card", "iban")


def rows_of(corpus: Path, name: str = "train") -> list[dict[str, Any]]:
    return [row for rows in read_rows(corpus, name) for row in rows]


def lines(folder: Path, name: str, *texts: str, **options: Any) -> SourceConfig:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in texts))
    return SourceConfig(name=name, path=str(folder / f"{name}.jsonl"), **options)


def everything(items: Path, exam: Path, **options: Any) -> CorpusConfig:
    return CorpusConfig(
        sources=(SourceConfig(name="filings", path=str(items), filings=FilingsConfig()),),
        near_duplicates=NearDuplicatesConfig(),
        boilerplate=BoilerplateConfig(),
        quality=QualityConfig(),
        decontaminate=DecontaminateConfig(sets=(EvaluationSet(name="exam", path=str(exam), fields=("question",)),)),
        personal="mask",
        write_dropped=True,
        **options,
    )


def test_planted_faults_are_found_and_the_totals_add_up(tmp_path: Path) -> None:
    rows, exam, planted = plant(background(80, 1), 2, near=20, blocks=5, leaks=6, personal=10, nulls=3)
    write_items(rows, tmp_path / "items.parquet")
    write_exam(exam, tmp_path / "exam.jsonl")
    config = everything(tmp_path / "items.parquet", tmp_path / "exam.jsonl")
    ledger = build_corpus(config, tmp_path / "out")
    found = check(rows_of(tmp_path / "out"), ledger, planted)
    assert found.pop("near_recall") >= 0.95
    assert found == {
        "near_precision": 1.0,
        "blocks_kept_once": 5,
        "leaks_found": 6,
        "personal_masked": 10,
        "numbers_kept": len(NUMBERS),
        "quarantined": 3,
        "adds_up": True,
    }
    source = ledger["sources"][0]
    assert source["documents_in"] == len(rows)
    assert source["dropped"]["holds text of the evaluation set exam"] == 6
    assert ledger["cleaning"]["boilerplate"]["paragraphs"] == 15
    assert sum(ledger["cleaning"]["personal"][kind] for kind in KINDS) == 10
    dropped = pq.read_table(tmp_path / "out" / "dropped.parquet").to_pylist()
    assert len(dropped) == sum(source["dropped"].values())
    assert all(one["detail"].startswith("of ") for one in dropped if one["reason"] == "near-duplicate")
    quarantine = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert len(quarantine) == 3
    assert "expected text" in quarantine[0]["reason"]
    build_corpus(config, tmp_path / "again")
    assert (tmp_path / "again" / "manifest.json").read_text() == (tmp_path / "out" / "manifest.json").read_text()


def test_estimates_agree_with_the_exact_index_and_the_first_text_is_kept() -> None:
    draw, vocabulary = random.Random(4), [f"w{i}" for i in range(5000)]
    errors, texts = [], NearDuplicates(0.8)
    for changed in range(0, 60, 2):
        text = draw.choices(vocabulary, k=400)
        other = [draw.choice(vocabulary) if i * 60 % 400 < changed else word for i, word in enumerate(text)]
        first, second = (signature(words_of(" ".join(one)).hashes) for one in (text, other))
        assert first is not None
        assert second is not None
        exact = jaccard(" ".join(text), " ".join(other))
        agree = float((first == second).mean())
        errors.append((agree - 1 / 256) / (1 - 1 / 256) - exact)
        number = texts.kept
        assert texts.first(first) is None
        assert (texts.first(second) == number) == (exact + errors[-1] >= 0.8 - 0.4 / 128**0.5)
    assert abs(float(np.mean(errors))) < 0.02
    assert float(np.std(errors)) < 0.06


def test_bands_are_the_narrowest_that_find_texts_at_the_threshold() -> None:
    assert bands_for(0.8) == (21, 6)
    for threshold in (0.3, 0.5, 0.7, 0.9, 0.95):
        bands, rows = bands_for(threshold)
        assert bands * rows <= 128
        assert 1 - (1 - threshold**rows) ** bands >= 0.99
        assert 1 - (1 - threshold ** (rows + 1)) ** (128 // (rows + 1)) < 0.99


def test_the_table_grows_without_losing_a_text() -> None:
    rng = np.random.default_rng(5)
    signatures = rng.integers(0, 256, (3000, 128), dtype=np.uint8)
    texts = NearDuplicates(0.8)
    assert all(texts.first(one) is None for one in signatures)
    for number in range(0, 3000, 7):
        changed = signatures[number].copy()
        changed[rng.permutation(128)[:12]] ^= 1
        assert texts.first(changed) == number
    assert texts.kept == 3000


def test_a_near_duplicate_of_a_held_out_text_is_never_trained_on(tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(300)]
    text, near = " ".join(words), " ".join([*words[:-3], "other", "end", "here"])
    train = lines(tmp_path, "train", near, "something else entirely")
    config = CorpusConfig(
        sources=(train, lines(tmp_path, "exam", text, set="exam")), near_duplicates=NearDuplicatesConfig()
    )
    ledger = build_corpus(config, tmp_path / "out")
    assert [row["text"] for row in rows_of(tmp_path / "out")] == ["something else entirely"]
    assert ledger["sources"][0]["dropped"] == {"near-duplicate": 1}
    assert [row["text"] for row in rows_of(tmp_path / "out", "exam")] == [text]


def test_words_are_the_same_whatever_their_case_and_punctuation() -> None:
    one, other = (
        words_of("The Company’s net sales, in 2024: 1,234"),
        words_of("the COMPANY's  net-sales in «2024» 1.234"),
    )
    assert one.hashes.tolist() == other.hashes.tolist()
    assert len(one.hashes) == 9
    said = "Zürich – 東京。ok".encode()
    found = words_of(said.decode())
    assert [said[b:e].decode() for b, e in zip(found.begins, found.ends, strict=True)] == ["Zürich", "東京", "ok"]
    long = " ".join(f"w{i}" for i in range(60_000))
    whole = words_of(long)
    assert len(whole.hashes) == len(set(whole.hashes.tolist())) == 60_000
    assert whole.hashes[-1] == words_of("W59999").hashes[0]
    assert len(ngrams(whole.hashes, 13)) == 60_000 - 12
    unbroken = words_of("日" * 100_000)
    assert unbroken.begins[0] == 0
    assert unbroken.ends[-1] == 300_000
    assert all((unbroken.begins[1:] == unbroken.ends[:-1]) & (unbroken.begins[1:] % 3 == 0))


LONG = "word " * 30
TABLE = f"| a | {LONG} |\n| b | c |\n"


def test_ngrams_are_polynomials_of_their_words() -> None:
    hashes = words_of(" ".join(f"w{i % 7}" for i in range(40))).hashes
    for n in (1, 2, 3, 5, 8, 13, 40):
        expected = [
            sum(int(h) * pow(0x9E3779B97F4A7C15, k, 1 << 64) for k, h in enumerate(hashes[i : i + n])) % (1 << 64)
            for i in range(40 - n + 1)
        ]
        assert ngrams(hashes, n).tolist() == mixed(np.array(expected, np.uint64)).tolist()
    assert len(ngrams(hashes, 41)) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb\n\nc\n \n\n d\n", ["a\nb\n\n", "c\n \n\n ", "d\n"]),
        (f"{LONG}\n{LONG}\nx\n\nwrapped\nlines", [f"{LONG}\n", f"{LONG}\n", "x\n\n", "wrapped\nlines"]),
        (f"{LONG}\n{TABLE}{LONG}", [f"{LONG}\n", TABLE, LONG]),
        ("", []),
        ("\n\n", ["\n\n"]),
        ("x", ["x"]),
    ],
)
def test_paragraphs_join_to_the_text(text: str, expected: list[str]) -> None:
    assert paragraphs(text) == expected
    assert "".join(expected) == text


PROSE = "The company has reported that net sales of its products were up in the year, and that this is due to demand. "
GERMAN = "Die Gesellschaft hat im Jahr mehr Umsatz mit den Produkten und das ist auf die Nachfrage zurück zu führen. "
POLISH = "Spółka osiągnęła wyższą sprzedaż swoich produktów dzięki popytowi, który wzrósł w całym roku obrotowym. "
NAMES = "Alpha Centauri Growth Fund Inc. Beta Equity Trust Series No. 4, Gamma Income Portfolio A, Delta Small Cap\n"
UUENCODED = 'M1TE&.#=A"@`*`/<``,P``/\\S`/]F`)D`` #,_P`S,P!F9@"9F0#,S #__S,``&8``)D``,P`` #_*@@X+\n'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PROSE * 5, None),
        ("| Total | 1,234 | 5,678 |\n" * 200, None),
        (PROSE * 5 + "\n" + "| Net sales, in millions | 391,035 | 383,285 |\n" * 300, None),
        (GERMAN * 5, "not in the language en"),
        (POLISH * 5, "not in the language en"),
        ("".join(f"{i} {NAMES}" for i in range(20)), None),
        (UUENCODED * 60, "too short or too long"),
        (PROSE * 4 + "[@]{#}<^>#@*&~`" * 60, "too many symbols"),
        ((PROSE + "\n") * 30, "mostly repeated lines"),
        (PROSE * 4 + "\ufffd" * 20, "undecoded"),
        ("Too short to judge. ###", None),
    ],
)
def test_quality_tells_text_from_what_is_none(text: str, reason: str | None) -> None:
    passed = Quality(QualityConfig())(Document(text, "x"))
    if reason is None:
        assert isinstance(passed, Document)
    else:
        assert isinstance(passed, Dropped)
        assert reason in passed.reason


MORE = [
    ("phone", "555-123-4567"),
    ("phone", "(555) 123-4567"),
    ("phone", "1-800-555-0199"),
    ("phone", "+14155552671"),
    ("ssn", "987-65-4321"),
    ("card", "2223003122003222"),
    ("card", "3056-930902-5904"),
    ("card", "378282246310005"),
]


@pytest.mark.parametrize(("kind", "said"), [*((kind, said) for kind in PERSONAL for said in PERSONAL[kind]), *MORE])
def test_each_kind_of_personal_data_is_found_alone(kind: str, said: str) -> None:
    text = f"Call or write ({said}), or {said}; \n{said}"
    assert [(text[b:e], name) for b, e, name in find(text, KINDS)] == [(said, kind)] * 3


@pytest.mark.parametrize(
    "text",
    [
        *NUMBERS,
        "000-12-3456 666-12-3456 900-12-3456 123-00-4567 123-45-0000 1123-45-6789 123-45-67890",
        "GB82WEST12345698765433 ZZ82WEST12345698765432 4111 1111 1111 1111 1111 24111111111111111",
        "112-555-0147 a@b @example.com 20240131120000 2,212-555-0147.5",
    ],
)
def test_numbers_of_filings_are_no_personal_data(text: str) -> None:
    assert find(text, KINDS) == []


def test_checksums() -> None:
    assert luhn("79927398713")
    assert not any(luhn(f"7992739871{digit}") for digit in "012456789")
    assert iban_valid("GB82WEST12345698765432")
    assert not iban_valid("GB82WEST12345698765423")


def test_conversations_are_masked_in_their_messages(tmp_path: Path) -> None:
    record = {"question": "Who?", "answer": "Ask jane.doe@example.com or call (212) 555-0147."}
    (tmp_path / "chat.jsonl").write_text(json.dumps(record) + "\n")
    source = SourceConfig(name="chat", path=str(tmp_path / "chat.jsonl"), chat=ChatConfig())
    build_corpus(CorpusConfig(sources=(source,), personal="mask"), tmp_path / "out")
    row = rows_of(tmp_path / "out")[0]
    assert json.loads(row["messages"])[1]["content"] == "Ask [email] or call [phone]."
    assert row["text"] == "Who?\n\nAsk [email] or call [phone]."


LEAK = "How much did the total net sales of the company change in percent between the years 2018 and 2019 in all?"


def exam(path: Path, **options: Any) -> DecontaminateConfig:
    (path / "deep").mkdir()
    (path / "deep" / "exam.json").write_text(json.dumps([{"uid": 1, "table": {"q": [{"question": LEAK}]}}]))
    return DecontaminateConfig(sets=(EvaluationSet(name="deep", path=str(path / "deep")),), **options)


def test_a_leak_is_cut_with_its_lines_and_the_rest_stays(tmp_path: Path) -> None:
    text = f"Before.\nHe asked: {LEAK.upper()}\nAfter.\n"
    source = lines(tmp_path, "train", text, LEAK, "No leak: How much did the total net sales of the company change?")
    config = CorpusConfig(sources=(source,), decontaminate=exam(tmp_path, action="cut"))
    ledger = build_corpus(config, tmp_path / "out")
    found = [row["text"] for row in rows_of(tmp_path / "out")]
    assert found == ["Before.\nAfter.\n", "No leak: How much did the total net sales of the company change?"]
    assert ledger["sources"][0]["dropped"] == {"nothing but text of the evaluation set deep": 1}
    figures = {"texts": 1, "too_short": 0, "documents": 2, "passages_cut": 2}
    assert ledger["cleaning"]["decontaminate"] == {"deep": figures, "ngrams": 9, "common": 0}


PHRASE = "management's discussion and analysis of financial condition and results of operations of the company for"


@pytest.mark.parametrize(("common_in", "left"), [(10, 13), (None, 0), (40, 0)])
def test_common_phrases_are_no_leak_but_a_whole_text_is(tmp_path: Path, common_in: int | None, left: int) -> None:
    words = " ".join(f"question{i}" for i in range(40))
    (tmp_path / "exam.txt").write_text(f"{words} {PHRASE}")
    sets = (EvaluationSet(name="e", path=str(tmp_path / "exam.txt")),)
    texts = [f"Document {i}. {PHRASE} {i}" for i in range(13)] + [f"{i} leaks {words} {PHRASE}" for i in range(13)]
    config = CorpusConfig(
        sources=(lines(tmp_path, "train", *texts, "Other."),),
        decontaminate=DecontaminateConfig(sets=sets, common_in=common_in),
    )
    build_corpus(config, tmp_path / "out")
    found = [row["text"] for row in rows_of(tmp_path / "out")]
    assert found == [*texts[:left], "Other."]


def test_evaluation_text_may_stand_in_what_is_held_out(tmp_path: Path) -> None:
    sources = (lines(tmp_path, "train", "Other text.", LEAK), lines(tmp_path, "exam", LEAK + " Yes.", set="exam"))
    build_corpus(CorpusConfig(sources=sources, decontaminate=exam(tmp_path)), tmp_path / "out")
    assert [row["text"] for row in rows_of(tmp_path / "out")] == ["Other text."]
    assert [row["text"] for row in rows_of(tmp_path / "out", "exam")] == [LEAK + " Yes."]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"q": 5}', "has no text"),
        ("a.jsonl", '{"q": ', "cannot be read"),
        ("a.pdf", "x", "is none of"),
        ("", "", "no such file"),
    ],
)
def test_evaluation_sets_that_cannot_be_read_are_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    path = tmp_path / (name or "gone.jsonl")
    if name:
        path.write_text(content)
    sets = (EvaluationSet(name="e", path=str(path)),)
    config = CorpusConfig(sources=(lines(tmp_path, "t", "x"),), decontaminate=DecontaminateConfig(sets=sets))
    with pytest.raises(BadInput, match=said):
        build_corpus(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_records_go_to_quarantine_and_the_rest_is_read_on(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    good = b'{"text": "good"}\n'
    bad = (
        b"{\n",
        b"[1]\n",
        b'{"body": 1}\n',
        b'{"text": 5}\n',
        b'{"text": "\\ud800"}\n',
        b'{"text": "\xff"}\n',
        b"\0\n",
    )
    (folder / "a.jsonl").write_bytes(
        b"".join(good.replace(b"good", b"good%d" % i) + one + b"\n" for i, one in enumerate(bad))
    )
    (folder / "empty.txt").touch()
    (folder / "cut.txt").write_bytes(b"fine\nbad \xff\n")
    source = SourceConfig(name="s", path=str(folder), documents="line")
    ledger = build_corpus(CorpusConfig(sources=(source,), bad_files="quarantine"), tmp_path / "out")
    entry = ledger["sources"][0]
    assert (entry["documents"], entry["quarantined"], entry["documents_in"]) == (8, len(bad) + 2, len(bad) + 10)
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert ledger["quarantine"]["records"] == len(reasons) == 9
    for said in ("is empty", "not a JSON object", "JSON list", "no key", "int", "surrogate", "0xff", "NUL"):
        assert any(said in one for one in reasons), said


def test_a_document_that_breaks_a_step_goes_to_quarantine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Quality.__call__

    def broken(self: Quality, document: Document) -> Document | Dropped:
        if "bad" in document.text:
            raise RecursionError("too deep")
        return real(self, document)

    monkeypatch.setattr(Quality, "__call__", broken)
    config = CorpusConfig(sources=(lines(tmp_path, "s", "good", "bad"),), quality=QualityConfig())
    with pytest.raises(RecursionError):
        build_corpus(config, tmp_path / "one")
    ledger = build_corpus(config.model_copy(update={"bad_files": "quarantine"}), tmp_path / "two")
    assert ledger["sources"][0]["quarantined"] == 1
    assert ledger["quarantine"]["first"][0]["reason"] == "RecursionError: too deep"


def test_rules_hold_out_companies_and_dates_and_what_they_hold_wins(tmp_path: Path) -> None:
    rows = background(60, 3, items=1, companies=30)
    for i, row in enumerate(rows):
        row["filed"] = f"20{10 + i % 15}-06-30"
    copy = dict(rows[0], accession="copy", cik="unheld-company")
    write_items([copy, *rows], tmp_path / "items.parquet")
    source = SourceConfig(name="f", path=str(tmp_path / "items.parquet"), filings=FilingsConfig())
    rules = (
        HeldoutRule(set="companies", by="cik", fraction=0.3),
        HeldoutRule(set="late", by="filed", after="2022-12-31"),
    )
    ledger = build_corpus(CorpusConfig(sources=(source,), heldout=rules), tmp_path / "out")
    sets = {name: rows_of(tmp_path / "out", name) for name in ("train", "companies", "late")}
    assert sum(map(len, sets.values())) == 60
    assert ledger["sources"][0]["documents_in"] == 61
    held = {row["cik"] for row in sets["companies"]}
    assert 3 <= len(held) <= 16
    assert not held & {row["cik"] for name in ("train", "late") for row in sets[name]}
    assert all(row["filed"] > "2022-12-31" for row in sets["late"])
    assert not any(row["filed"] > "2022-12-31" for row in sets["train"])
    everywhere = [row["accession"] for name in ("companies", "late") for row in sets[name]]
    in_train = [row["accession"] for row in sets["train"]]
    assert ("copy" in in_train) == (rows[0]["accession"] not in everywhere)
