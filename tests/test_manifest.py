"""Publishing: whole or absent, checksummed, never over something else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trine.errors import BadInput, TrineError, nearest
from trine.manifest import digest_of, publish, read_manifest, remove_stale, verify, write_file


def make(folder: Path) -> Path:
    with publish(folder, "sample", {"answer": 42}) as out:
        (out / "a.txt").write_text("text")
        (out / "deep").mkdir()
        (out / "deep" / "b.bin").write_bytes(b"\0" * 1000)
    return folder


def test_a_published_folder_lists_every_file(tmp_path: Path) -> None:
    record = verify(make(tmp_path / "out"), "sample")
    assert set(record["files"]) == {"a.txt", "deep/b.bin"}
    assert record["meta"] == {"answer": 42}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_error_inside_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with publish(tmp_path / "out", "sample") as out:
            (out / "a.txt").write_text("text")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not list(tmp_path.iterdir())


def test_an_existing_name_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(BadInput, match="already exists"), publish(tmp_path / "out", "sample"):
        pass
    assert (tmp_path / "out" / "mine").read_text() == "precious"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda out: (out / "a.txt").write_text("tex"), "3 bytes"),
        (lambda out: (out / "a.txt").write_text("texT"), "SHA-256 differs"),
        (lambda out: (out / "deep" / "b.bin").unlink(), "missing"),
    ],
    ids=["cut", "flipped", "gone"],
)
def test_damage_is_found_and_named(tmp_path: Path, damage, said: str) -> None:
    out = make(tmp_path / "out")
    damage(out)
    with pytest.raises(TrineError, match=said):
        verify(out)


def test_folders_that_are_not_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such folder"):
        read_manifest(tmp_path / "absent", "corpus")
    (tmp_path / "bare").mkdir()
    with pytest.raises(BadInput, match=r"no manifest\.json"):
        read_manifest(tmp_path / "bare")
    with pytest.raises(BadInput, match="holds a sample, expected a corpus"):
        read_manifest(make(tmp_path / "out"), "corpus")
    (tmp_path / "out" / "manifest.json").write_text("[]")
    with pytest.raises(BadInput, match="not a manifest"):
        read_manifest(tmp_path / "out")


def test_leftovers_of_the_dead_are_swept_and_of_the_living_kept(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    gone, alive = tmp_path / f".out.tmp-{dead.stdout.strip()}", tmp_path / f".out.tmp-{os.getppid()}"
    gone.mkdir()
    alive.mkdir()
    remove_stale(tmp_path / "out")
    assert not gone.exists()
    assert alive.exists()


def test_killed_while_publishing(tmp_path: Path) -> None:
    """A seeded sample of what bench/faults.py does at length."""
    code = (
        "import sys; from pathlib import Path; from trine.manifest import publish\n"
        "print('ready', flush=True)\n"
        "for i in range(1000):\n"
        "    with publish(Path(sys.argv[1]) / f'out-{i}', 'sample') as out:\n"
        "        for j in range(5): (out / str(j)).write_bytes(bytes([j]) * 20000)\n"
    )
    for wait in (0.005, 0.03, 0.08):
        child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / str(wait))], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(wait)
        child.send_signal(signal.SIGKILL)
        child.wait()
        for folder in (tmp_path / str(wait)).glob("out-*"):
            verify(folder, "sample")


def test_a_file_is_replaced_at_once(tmp_path: Path) -> None:
    write_file(tmp_path / "a", "one")
    write_file(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_files_are_readable_as_the_umask_says(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        out = make(tmp_path / "out")
    finally:
        os.umask(mask)
    assert (out / "a.txt").stat().st_mode & 0o777 == 0o644


def test_digest_does_not_depend_on_order() -> None:
    assert digest_of({"a": 1, "b": [2]}) == digest_of(json.loads('{"b": [2], "a": 1}'))
    assert digest_of({"a": 1}) != digest_of({"a": 2})


def test_nearest_names() -> None:
    assert nearest("stpes", ["steps", "seed"]) == "; did you mean 'steps'?"
    assert nearest("zzz", ["steps"]) == ""
