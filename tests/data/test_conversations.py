"""Conversations in every known shape, from every format, and what becomes of the wrong ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trine.data.config import CorpusConfig, SourceConfig
from trine.data.conversations import from_json
from trine.data.corpus import build_corpus, read_rows
from trine.errors import BadInput

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Häßlich? 漢字"},
    {"role": "assistant", "content": "Nein."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes."},
]
NAMES = {"system": "system", "user": "human", "assistant": "gpt"}
SHAREGPT = [{"from": NAMES[one["role"]], "value": one["content"]} for one in MESSAGES]
PAIR = [{"role": "user", "content": "Add.\n\n1 and 2"}, {"role": "assistant", "content": "3"}]
SHAPES: dict[str, tuple[dict[str, Any], list[dict[str, str]]]] = {
    "messages": ({"messages": MESSAGES, "id": 7}, MESSAGES),
    "sharegpt": ({"conversations": SHAREGPT}, MESSAGES),
    "sharegpt with a system key": ({"conversations": SHAREGPT[1:], "system": "Be brief."}, MESSAGES),
    "alpaca": ({"instruction": "Add.", "input": "1 and 2", "output": "3"}, PAIR),
    "dolly": ({"instruction": "Add.", "context": "1 and 2", "response": "3"}, PAIR),
    "gsm8k": ({"question": "Add.\n\n1 and 2", "answer": "3"}, PAIR),
    "prompt": ({"prompt": "Add.\n\n1 and 2", "completion": "3"}, PAIR),
    "no input": ({"instruction": "Add.\n\n1 and 2", "input": "", "output": "3"}, PAIR),
}


def source(path: Path, **options: Any) -> SourceConfig:
    return SourceConfig.model_validate({"name": "s", "path": str(path), "chat": {}} | options)


def told(out: Path, *sources: SourceConfig, **options: Any) -> list[list[dict[str, str]]]:
    build_corpus(CorpusConfig(sources=sources, **options), out)
    return [from_json(row["messages"]) for rows in read_rows(out, "train") for row in rows]


def lines(*records: Any) -> bytes:
    return "".join(json.dumps(one) + "\n" for one in records).encode()


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_found_in_every_format(tmp_path: Path, shape: str) -> None:
    record, expected = SHAPES[shape]
    (tmp_path / "a.jsonl").write_bytes(lines(record))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(record)))
    (tmp_path / "c.json").write_text(json.dumps([record]))
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "d.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert told(tmp_path / f"out-{path.name}", source(path)) == [expected], path


def test_files_of_one_source_are_told_apart(tmp_path: Path) -> None:
    for i, (record, _) in enumerate(SHAPES.values()):
        (tmp_path / f"{i}.jsonl").write_bytes(lines(record))
    (tmp_path / "notes.txt").write_text("no conversation")
    found = told(tmp_path / "out", source(tmp_path), dedup="none")
    assert found == [expected for _, expected in SHAPES.values()]


def test_keys_can_be_named(tmp_path: Path) -> None:
    record = {"q": "Add.", "about": "1 and 2", "a": "3", "messages": "not these", "sys": " "}
    (tmp_path / "a.jsonl").write_bytes(lines(record))
    chat = {"question": "q", "context": "about", "answer": "a", "system": "sys"}
    assert told(tmp_path / "out", source(tmp_path / "a.jsonl", chat=chat)) == [PAIR]
    (tmp_path / "b.jsonl").write_bytes(lines({"turns": SHAREGPT, "messages": []}))
    assert told(tmp_path / "out2", source(tmp_path / "b.jsonl", chat={"conversation": "turns"})) == [MESSAGES]
    for wrong in ({"question": "q"}, {"conversation": "m", "question": "q", "answer": "a"}, {"context": "c"}):
        with pytest.raises(ValueError, match=r"name both|exclude|as well"):
            source(tmp_path, chat=wrong)
    with pytest.raises(ValueError, match="is text and holds no conversation"):
        SourceConfig.model_validate({"name": "s", "path": "builtin:python-docs", "chat": {}})


USER, ANSWER = {"role": "user", "content": "Hm?"}, {"role": "assistant", "content": "Ah."}
WRONG: list[tuple[Any, str]] = [
    (b"{oops", "not JSON"),
    ([USER, ANSWER], "is a JSON list, expected an object"),
    ({"text": "hm"}, "has no key 'messages' (keys: text)"),
    ({"messages": "hm"}, "'messages' is text, expected a list"),
    ({"messages": []}, "'messages' is an empty list, expected a list"),
    ({"messages": [USER, "hm"]}, "'messages'[1] is text, expected an object"),
    ({"messages": [USER, ANSWER | {"content": None}]}, "'messages'[1].content is null, expected text"),
    ({"messages": [USER, ANSWER | {"content": [{"text": "a"}]}]}, "'messages'[1].content is a list, expected text"),
    ({"messages": [USER, ANSWER | {"tool_calls": [{}]}]}, "'messages'[1] has tool_calls"),
    ({"messages": [USER, ANSWER], "tools": [{}]}, "the record has tools, which is not supported"),
    ({"messages": [USER, ANSWER | {"reasoning_content": "hm"}]}, "'messages'[1] has reasoning_content"),
    ({"messages": [USER, ANSWER | {"weight": 0}]}, "'messages'[1].weight is 0"),
    ({"messages": [USER, {"role": "wizard", "content": "x"}]}, "'messages'[1].role is 'wizard'"),
    ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "message 1 (assistant) is blank"),
    ({"messages": [USER]}, "has no answer"),
    ({"messages": [ANSWER, USER]}, "begins with an answer"),
    ({"messages": [USER, {"role": "system", "content": "x"}, ANSWER]}, "message 1 is a system message"),
    (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "half of a surrogate pair"),
]


def test_wrong_records_are_set_aside_with_place_and_reason(tmp_path: Path) -> None:
    data = b"".join(one + b"\n" if isinstance(one, bytes) else lines(one) for one, _ in WRONG)
    (tmp_path / "a.jsonl").write_bytes(b"\n" + lines({"messages": MESSAGES}) + data + lines({"messages": MESSAGES[1:]}))
    ledger = build_corpus(CorpusConfig(sources=(source(tmp_path / "a.jsonl"),)), tmp_path / "out")
    entry = ledger["sources"][0]
    assert entry["documents_in"] == len(WRONG) + 2
    assert (entry["documents"], entry["dropped"]) == (2, {"no usable conversation": len(WRONG)})
    found = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert ledger["rejected"] == {"records": len(WRONG), "first": found[:20]}
    for number, (one, (_, reason)) in enumerate(zip(found, WRONG, strict=True), 3):
        assert one["path"] == f"{tmp_path / 'a.jsonl'}:{number}"
        assert reason in one["reason"], one


def test_files_without_any_conversation_are_bad_files(tmp_path: Path) -> None:
    cases = {
        "a.jsonl": (lines({"text": "x"}), r"a\.jsonl:1: no known conversation \(keys: text\); name the keys"),
        "b.jsonl": (lines({"messages": 1}, {"messages": 2}), "none of the 2 records is a conversation"),
        "c.json": (b'{"messages": []}', "is a JSON dict, expected a list"),
        "d.json": (b"[1", r"d\.json: not JSON"),
        "e.json": (b"[]", "holds no record"),
        "f.txt": (b"text", r"ends in '\.txt'; expected \.jsonl \.json"),
        "g.jsonl.gz": (gzip.compress(lines({"messages": MESSAGES}))[:-9], "damaged or cut"),
    }
    (tmp_path / "in").mkdir()
    for name, (data, message) in cases.items():
        (tmp_path / "in" / name).write_bytes(data)
        with pytest.raises(BadInput, match=message):
            told(tmp_path / "out", source(tmp_path / "in" / name))
        assert not (tmp_path / "out").exists()
    (tmp_path / "in" / "good.jsonl").write_bytes(lines({"messages": MESSAGES}))
    ledger = build_corpus(CorpusConfig(sources=(source(tmp_path / "in"),), bad_files="skip"), tmp_path / "out")
    assert ledger["sources"][0]["documents"] == 1
    assert len(ledger["skipped_files"]) == len(cases) - 1


def test_conversations_are_told_apart_by_role_and_never_cut(tmp_path: Path) -> None:
    swapped = [{"role": "system", "content": "Hm?"}, USER | {"content": "Ah."}, ANSWER]
    long = [USER, ANSWER | {"content": "x" * 5000}]
    (tmp_path / "a.jsonl").write_bytes(lines({"messages": [USER, ANSWER]}, {"messages": [USER, ANSWER]}))
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(lines({"messages": swapped}, {"messages": long}))
    ledger = build_corpus(
        CorpusConfig(sources=(source(tmp_path / "a.jsonl"),), max_document_bytes=1024), tmp_path / "out"
    )
    dropped = {"exact duplicate": 1, "longer than max_document_bytes": 1}
    assert ledger["sources"][0]["dropped"] == dropped
    assert ledger["sources"][0]["documents"] == 2


def test_public_sets_are_read_whole(trine_data: Path, tmp_path: Path) -> None:
    if not (trine_data / "instruct").is_dir():
        pytest.skip("no instructions in TRINE_DATA")
    files = {"dolly15k_no_category.jsonl": ("instruction", "response"), "gsm8k_train.jsonl": ("question", "answer")}
    for name, (question, answer) in files.items():
        some = (trine_data / "instruct" / name).read_text().splitlines()[:1500]
        (tmp_path / name).write_text("\n".join(some))
        found = told(tmp_path / f"out-{name}", source(tmp_path / name), dedup="none")
        records = [json.loads(line) for line in some]
        assert len(found) == len(records)
        for messages, record in zip(found, records, strict=True):
            assert messages[-1] == {"role": "assistant", "content": record[answer]}
            assert messages[0]["content"].startswith(record[question])
            assert messages[0]["content"].endswith(record.get("context") or record[question])
