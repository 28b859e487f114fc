"""Reports by item to texts: no company on both sides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.study.tunings import write_reports
from trine.errors import BadInput
from trine.study.spectrum.items import write_items


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_companies_are_split_and_every_long_item_is_there_once(tmp_path: Path) -> None:
    source = write_reports(tmp_path, companies=6, each=3)
    meta = write_items(source, 0.34, tmp_path / "out")
    train, held = (read(tmp_path / "out" / f"{name}.jsonl") for name in ("train", "heldout"))
    assert {one["cik"] for one in train} & {one["cik"] for one in held} == set()
    assert len(train) + len(held) == 6 * 3 * 2
    assert {one["item"] for one in train} == {"1", "7A"}
    texts = {text for path in source.iterdir() for text in json.loads(path.read_text()).values()}
    assert all(one["text"] in texts for one in [*train, *held])
    size = sum(len(one["text"]) for one in held)
    assert meta["heldout"] == {"companies": len({one["cik"] for one in held}), "characters": size}
    assert 0 < size <= 0.34 * (size + meta["train"]["characters"])


def test_a_share_too_small_for_any_company_holds_out_the_smallest(tmp_path: Path) -> None:
    meta = write_items(write_reports(tmp_path, companies=3), 0.001, tmp_path / "out")
    sizes = dict[str, int]()
    for one in read(tmp_path / "out" / "train.jsonl"):
        sizes[one["cik"]] = sizes.get(one["cik"], 0) + len(one["text"])
    assert meta["heldout"]["companies"] == 1
    assert meta["heldout"]["characters"] <= min(sizes.values())


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no .json file"),
        ({"a.json": "[1, 2]"}, "expected a report by item"),
        ({"a.json": '{"item_1": "x"}'}, "expected a report by item"),
        ({"a.json": json.dumps({"cik": "1", "item_1": "x" * 300})}, "1 companies with text"),
    ],
)
def test_other_folders_are_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    (tmp_path / "in").mkdir()
    for name, text in files.items():
        (tmp_path / "in" / name).write_text(text)
    with pytest.raises(BadInput, match=message):
        write_items(tmp_path / "in", 0.1, tmp_path / "out")
    assert not (tmp_path / "out").exists()
