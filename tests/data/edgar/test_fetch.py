"""Fetching from a server that imitates EDGAR: rate, faults, resume, and nothing sent anywhere else."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from edgar_server import PASSING, Edgar, filing, serving
from faults_edgar import stored

from trine.data.edgar.fetch import fetch
from trine.data.edgar.pace import Pace
from trine.data.edgar.site import Policy
from trine.data.edgar.store import JOURNAL, OBJECTS, Store
from trine.errors import BadInput

AGENT = "Example Ltd data@example.com"
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def edgar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Edgar]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serving() as server:
        yield server


def policy(edgar: Edgar, **changes: float) -> Policy:
    quick = Policy(AGENT, edgar.url, first_wait=0.02, connect=2, silence=1.5, grace=1.5, slowest=1e6)
    return dataclasses.replace(quick, **{"per_second": 10.0, "attempts": 6, **changes})  # type: ignore[arg-type]


def test_every_passing_fault_is_survived_and_nothing_wrong_is_kept(edgar: Edgar, tmp_path: Path) -> None:
    paths = {f"/a/{n}.txt": fault for n, fault in enumerate(PASSING)}
    edgar.files = {path: filing(n) for n, path in enumerate(paths)}
    edgar.faults = {path: [fault] for path, fault in paths.items()}
    record = fetch([path[1:] for path in paths], tmp_path / "store", policy(edgar))
    assert record["failed"] == {}
    assert stored(tmp_path / "store") == {path[1:]: data for path, data in edgar.files.items()}
    again = {path for path, count in edgar.counts().items() if count >= 2}
    assert again >= {path for path, fault in paths.items() if fault != "gzip"}, "a fault that was not noticed"
    assert edgar.busiest_second() <= 10
    assert {agent for _, _, agent in edgar.seen} == {AGENT}


def test_lasting_faults_fail_with_a_reason_and_the_rest_goes_on(
    edgar: Edgar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lasting = {"off host": "outside 127.0.0.1", "file": "outside", "other scheme": "outside", "denied": "no such file"}
    with serving() as other:
        edgar.elsewhere = other.url
        monkeypatch.setenv("HTTP_PROXY", other.url)
        monkeypatch.setenv("ALL_PROXY", other.url)
        edgar.files = {f"/a/{n}.txt": filing(n) for n in range(6)}
        edgar.faults = {f"/a/{n}.txt": [fault] for n, fault in enumerate(lasting)} | {"/a/4.txt": ["rate page"] * 9}
        paths = [path[1:] for path in edgar.files]
        record = fetch([*paths, "nowhere.txt"], tmp_path / "store", policy(edgar, attempts=2))
        assert other.seen == []
    for number, why in enumerate(lasting.values()):
        assert why in record["failed"][f"a/{number}.txt"]
    assert "limits requests" in record["failed"]["a/4.txt"]
    assert "no such file (404)" in record["failed"]["nowhere.txt"]
    assert stored(tmp_path / "store") == {"a/5.txt": filing(5)}
    assert edgar.counts()["/a/0.txt"] == 1, "what will not change is not asked again"


def test_resume_asks_only_for_what_is_missing_or_damaged(edgar: Edgar, tmp_path: Path) -> None:
    edgar.files = {f"/a/{n}.txt": filing(n % 5) for n in range(6)}
    paths, store = [path[1:] for path in edgar.files], tmp_path / "store"
    first = fetch(paths[:3], store, policy(edgar))
    (first["files"]["a/0.txt"]).write_bytes(b"damaged")
    with (store / JOURNAL).open("ab") as journal:
        journal.write(b'{"path": "a/5.txt", "sha')
    (store / OBJECTS / ".tmp-999999999-0").write_bytes(b"left by a killed process")
    edgar.seen.clear()
    second = fetch(paths, store, policy(edgar))
    assert (second["fetched"], second["present"], second["failed"]) == (4, 2, {})
    assert sorted(edgar.counts()) == ["/a/0.txt", "/a/3.txt", "/a/4.txt", "/a/5.txt"]
    lines = [line for line in (store / JOURNAL).read_text().splitlines() if line.endswith("}")]
    (store / JOURNAL).write_text("\n".join(lines) + "\n")
    assert stored(store) == {path[1:]: data for path, data in edgar.files.items()}
    assert len(list((store / OBJECTS).rglob("*.txt"))) == 5, "equal bytes are kept once"


def test_retry_after_is_obeyed_by_all(edgar: Edgar, tmp_path: Path) -> None:
    edgar.files = {f"/a/{n}.txt": filing(n) for n in range(4)}
    edgar.faults = {"/a/0.txt": ["429"]}
    fetch([path[1:] for path in edgar.files], tmp_path / "store", policy(edgar, per_second=4.0))
    times = sorted(when for when, _, _ in edgar.seen)
    assert max(after - before for before, after in itertools.pairwise(times)) >= 0.95


PROCESS = """
import sys
from pathlib import Path
from trine.data.edgar.fetch import fetch
from trine.data.edgar.site import Policy
url, folder, *paths = sys.argv[1:]
record = fetch(paths, Path(folder), Policy("Example Ltd data@example.com", url, 10.0, first_wait=0.02))
sys.exit(len(record["failed"]))
"""


def test_two_processes_share_the_rate_and_the_store(edgar: Edgar, tmp_path: Path) -> None:
    edgar.files = {f"/a/{n}.txt": filing(n) for n in range(24)}
    edgar.faults = {"/a/3.txt": ["503"], "/a/7.txt": ["reset"], "/a/11.txt": ["cut"]}
    paths, store = [path[1:] for path in edgar.files], tmp_path / "store"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", PROCESS, edgar.url, str(store)]
    began = time.monotonic()
    running = [subprocess.Popen([*command, *order], env=environment) for order in (paths, paths[::-1])]
    assert [one.wait(60) for one in running] == [0, 0]
    assert edgar.busiest_second() <= 10
    assert len(edgar.seen) == 27, "each file is asked for once, the three with faults once more"
    assert time.monotonic() - began > 26 / 10
    assert stored(store) == {path[1:]: data for path, data in edgar.files.items()}


def test_a_killed_process_leaves_nothing_wrong(edgar: Edgar, tmp_path: Path) -> None:
    edgar.files = {f"/a/{n}.txt": filing(n) for n in range(12)}
    paths, store = [path[1:] for path in edgar.files], tmp_path / "store"
    command = [sys.executable, "-c", PROCESS, edgar.url, str(store), *paths]
    running = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
    while len(edgar.seen) < 4:
        time.sleep(0.02)
    running.kill()
    running.wait()
    record = fetch(paths, store, policy(edgar))
    assert record["failed"] == {}
    assert stored(store) == {path[1:]: data for path, data in edgar.files.items()}
    assert edgar.busiest_second() <= 10


async def take(pace: Pace, count: int, answer_after: float = 0.0) -> list[float]:
    """Take turns side by side; when each began."""
    begun = []

    async def one() -> None:
        async with pace.turn():
            begun.append(time.monotonic())
            await asyncio.sleep(answer_after)

    await asyncio.gather(*(one() for _ in range(count)))
    return begun


def test_a_turn_counts_until_a_second_after_its_answer(tmp_path: Path) -> None:
    begun = asyncio.run(take(Pace(tmp_path / "pace.json", 4.0), 5, answer_after=0.9))
    assert begun[3] - begun[0] < 1.0
    assert begun[4] - begun[0] >= 1.9, "the first was not answered before 0.9 seconds"


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("", 0.0, 0.5),
        ("{broken", 1.0, 1.5),
        ('{"turns": 7}', 1.0, 1.5),
        ('{"turns": [{"pid": 1, "number": 1, "begun": 9e9, "ended": 9e9}], "hold": 9e9}', 0.0, 0.5),
    ],
)
def test_pace_after_a_broken_write_and_after_a_reboot(tmp_path: Path, text: str, least: float, most: float) -> None:
    path, began = tmp_path / "pace.json", time.monotonic()
    path.write_text(text)
    asyncio.run(take(Pace(path, 10.0), 1))
    assert least <= time.monotonic() - began < most + 1.0


def test_turns_of_a_dead_process_end(tmp_path: Path) -> None:
    path, dead = tmp_path / "pace.json", subprocess.Popen(["true"])
    dead.wait()
    turns = [{"pid": dead.pid, "number": n, "begun": time.monotonic(), "ended": None} for n in range(10)]
    path.write_text(json.dumps({"turns": turns, "hold": 0.0}))
    began = time.monotonic()
    asyncio.run(take(Pace(path, 10.0), 1))
    assert 1.0 <= time.monotonic() - began < 2.5


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"user_agent": " "}, "--user-agent is empty"),
        ({"user_agent": "a\nHost: b"}, "printable ASCII"),
        ({"per_second": 10.5}, "at most 10"),
        ({"per_second": 0.0}, "at most 10"),
        ({"base_url": "ftp://x"}, "expected http"),
        ({"base_url": "https://user:word@x"}, "expected http"),
        ({"base_url": "www.sec.gov"}, "expected http"),
    ],
)
def test_bad_policies_are_refused(changes: dict[str, object], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        Policy(**({"user_agent": AGENT} | changes))  # type: ignore[arg-type]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BadInput, match="is not empty"):
        Store(tmp_path)
    with pytest.raises(BadInput, match="is a file"):
        Store(tmp_path / "mine.txt")
