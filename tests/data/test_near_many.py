"""Near-duplicates by datatrove's executors: what they find, what they keep, and how failing tasks are named."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from planted import background, jaccard, plant, write_items

from trine.data.config import (
    CorpusConfig,
    ExecutorConfig,
    FilingsConfig,
    HeldoutRule,
    NearDuplicatesConfig,
    SourceConfig,
)
from trine.data.corpus import build_corpus, read_rows
from trine.data.near_many import buckets_for
from trine.errors import BadInput, TrineError


def rows_of(corpus: Path, name: str = "train") -> list[dict[str, Any]]:
    return [row for rows in read_rows(corpus, name) for row in rows]


def write_programs(folder: Path, programs: dict[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in programs.items():
        (folder / name).write_text("#!/bin/bash\n" + text.replace("HERE", str(folder)) + "\n")
        (folder / name).chmod(0o755)


@pytest.mark.parametrize("heldout", [(), (HeldoutRule(set="exam", by="cik", fraction=0.3),)])
def test_datatrove_finds_what_one_process_finds(tmp_path: Path, heldout: tuple[HeldoutRule, ...]) -> None:
    rows, _, _ = plant(background(60, 9), 9, near=12, blocks=0, leaks=0, personal=0, nulls=2)
    rows += [dict(row, accession="copy") for row in rows[:3]]
    for i in range(3):
        write_items(rows[i::3], tmp_path / f"items-{i}.parquet")
    source = SourceConfig(name="f", path=str(tmp_path / "items-*.parquet"), filings=FilingsConfig())
    near = NearDuplicatesConfig(executor=ExecutorConfig(tasks=2, options={"workers": 1}))
    config = CorpusConfig(sources=(source,), heldout=heldout, near_duplicates=near)
    ledger = build_corpus(config, tmp_path / "out")
    kept = {name: rows_of(tmp_path / "out", name) for name in ledger["sets"]}
    everything = [row for rows in kept.values() for row in rows]
    names = {f"{row['accession']}/{row['item']}" for row in everything}
    assert len(everything) == len(rows) - 2 - ledger["sources"][0]["dropped"]["near-duplicate"] - 3
    assert ledger["sources"][0]["dropped"]["exact duplicate"] == 3
    assert ledger["sources"][0]["dropped"]["near-duplicate"] >= 11
    if heldout:
        train = [row["text"] for row in kept["train"]]
        assert not any(jaccard(row["text"], text) > 0.9 for row in kept["exam"] for text in train)
    assert not list((tmp_path / "out").glob("survey*"))
    alone = build_corpus(CorpusConfig(sources=(source,), near_duplicates=NearDuplicatesConfig()), tmp_path / "alone")
    mine = {f"{row['accession']}/{row['item']}" for row in rows_of(tmp_path / "alone")}
    assert alone["sources"][0]["dropped"]["near-duplicate"] >= 11
    assert heldout or len(mine ^ names) <= 2


def test_options_that_datatrove_does_not_know_are_named(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("x y z")
    source = SourceConfig(name="s", path=str(tmp_path / "s.txt"))
    near = NearDuplicatesConfig(executor=ExecutorConfig(options={"no_such_option": 1}))
    with pytest.raises(BadInput, match="no_such_option"):
        build_corpus(CorpusConfig(sources=(source,), near_duplicates=near), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_buckets_are_datatroves_own_at_the_default_threshold() -> None:
    assert buckets_for(0.8) == (14, 8)
    for threshold in (0.5, 0.7, 0.9):
        buckets, rows = buckets_for(threshold)
        assert buckets * rows <= 112
        assert 1 - (1 - threshold**rows) ** buckets >= 0.9


PROGRAMS = {
    "sbatch": """script="${@: -1}"; cp "$script" HERE/script-$$; touch HERE/job-$$
tasks=$(grep -o 'array=0-[0-9]*' HERE/script-$$ | grep -o '[0-9]*$')
(for i in $(seq 0 ${tasks:-0}); do SLURM_ARRAY_TASK_ID=$i SLURM_NODELIST=localhost bash HERE/script-$$; done
rm HERE/job-$$) > HERE/log-$$ 2>&1 &
echo "Submitted batch job $$\"""",
    "squeue": "[ -e HERE/job-${@: -1} ] && echo running; exit 0",
    "srun": 'while [ "$1" != launch_pickled_pipeline ]; do shift; done; FAIL; exec "$@"',
    "scontrol": "echo localhost",
}
"""Stand-ins of Slurm's programs, which run jobs on this machine."""


@pytest.mark.slow
def test_slurm_makes_the_same_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    write_programs(programs, {name: text.replace("FAIL", "true") for name, text in PROGRAMS.items()})
    monkeypatch.setenv("PATH", f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setattr("trine.data.near_many._POLL_SECONDS", 0.2)
    rows, _, _ = plant(background(40, 9), 9, near=6, blocks=0, leaks=0, personal=0, nulls=0)
    write_items(rows, tmp_path / "items.parquet")
    source = SourceConfig(name="f", path=str(tmp_path / "items.parquet"), filings=FilingsConfig())
    options = {"slurm": {"time": "1:00:00", "partition": "any", "tasks_per_job": 20}, "local": {"workers": 1}}
    for kind in ("local", "slurm"):
        executor = ExecutorConfig.model_validate({"kind": kind, "options": options[kind]})
        near = NearDuplicatesConfig(executor=executor)
        ledger = build_corpus(CorpusConfig(sources=(source,), near_duplicates=near), tmp_path / kind)
        assert ledger["sources"][0]["dropped"]["near-duplicate"] >= 5
    assert (tmp_path / "slurm" / "manifest.json").read_text() == (tmp_path / "local" / "manifest.json").read_text()
    write_programs(programs, {name: text.replace("FAIL", "exit 1") for name, text in PROGRAMS.items()})
    executor = ExecutorConfig.model_validate({"kind": "slurm", "options": options["slurm"]})
    config = CorpusConfig(sources=(source,), near_duplicates=NearDuplicatesConfig(executor=executor))
    with pytest.raises(TrineError, match="1 of 1 tasks did not end well"):
        build_corpus(config, tmp_path / "failed")
