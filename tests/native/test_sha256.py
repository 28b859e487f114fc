"""SHA-256 of several files at once against hashlib, at every length around a block and a piece."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from trine.native import sha256
from trine.native.sha256 import _PIECE, hash_files


def files(folder: Path) -> list[Path]:
    data = np.random.default_rng(0).bytes(2 * _PIECE + 200)
    sizes = [
        0,
        1,
        55,
        56,
        63,
        64,
        65,
        119,
        120,
        _PIECE - 9,
        _PIECE - 8,
        _PIECE - 1,
        _PIECE,
        _PIECE + 1,
        2 * _PIECE + 77,
    ]
    for i, size in enumerate(sizes):
        (folder / f"{i}").write_bytes(data[i : i + size])
    return [folder / f"{i}" for i in range(len(sizes))]


@pytest.mark.parametrize("with_kernel", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 15])
def test_digests_are_those_of_hashlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, with_kernel: bool
) -> None:
    if not with_kernel:
        monkeypatch.setattr(sha256, "_kernel", lambda: None)
    elif sha256._kernel() is None:
        pytest.skip("no compiler or no SHA instructions")
    paths = files(tmp_path)[-count:]
    found: dict[Path, str] = {}
    hash_files(iter(paths), found.__setitem__, lambda: False)
    assert found == {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_it_stops_and_says_nothing_of_files_it_did_not_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sha256, "_PIECES", 1)
    (tmp_path / "long").write_bytes(bytes(5 * _PIECE))
    found: dict[Path, str] = {}
    answers = iter([False, True, True, True])
    hash_files(iter([tmp_path / "long"]), found.__setitem__, lambda: next(answers))
    assert not found


def test_a_file_that_is_cut_while_it_is_read_has_the_digest_of_what_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sha256, "_PIECES", 2)
    path, data = tmp_path / "cut", np.random.default_rng(1).bytes(9 * _PIECE)
    path.write_bytes(data)
    found: dict[Path, str] = {}
    looks = iter(range(100))

    def stopped() -> bool:
        if next(looks) == 1:
            path.write_bytes(data[: 4 * _PIECE + 7])
        return False

    hash_files(iter([path]), found.__setitem__, stopped)
    assert found == {path: hashlib.sha256(data[: 4 * _PIECE + 7]).hexdigest()}
