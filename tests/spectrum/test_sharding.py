"""A scan shared by threads and ranks: the same numbers as by one, resumed across any number of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import trine.spectrum.scan as module
from trine.errors import BadInput, TrineError
from trine.spectrum.journal import journal_of, journals
from trine.spectrum.matrices import Matrix
from trine.spectrum.scan import Where, scan
from trine.spectrum.sharding import Rank, device_of, shared


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    torch.manual_seed(0)
    tensors = {f"model.layers.{i}.mlp.up_proj.weight": torch.randn(40 + i, 24) for i in range(9)}
    tensors["model.layers.9.mlp.experts.down_proj"] = torch.randn(4, 24, 16)
    save_file(tensors, folder / "model.safetensors")
    return folder


def scanned(model: Path, out: Path, **where: Any) -> dict[str, Any]:
    record = scan(str(model), out, where=Where(**where))
    assert record is not None
    return record


def as_rank(monkeypatch: pytest.MonkeyPatch, number: int, of: int) -> None:
    monkeypatch.setenv("RANK", str(number))
    monkeypatch.setenv("WORLD_SIZE", str(of))


def test_threads_scan_as_one_does(model: Path, tmp_path: Path) -> None:
    alone = scanned(model, tmp_path / "alone.json")
    threads = torch.get_num_threads()
    assert scan(str(model), tmp_path / "many.json", where=Where(workers=3)) == alone
    assert torch.get_num_threads() == threads
    assert journals(tmp_path / "many.json") == []


def test_a_fault_in_one_thread_ends_the_scan_and_keeps_what_is_finished(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, real, calls = scanned(model, tmp_path / "whole.json"), module.measure_matrix, []

    def failing(matrix: torch.Tensor, *rest: Any) -> Any:
        calls.append(matrix.shape)
        if matrix.shape[0] == 46:
            raise RuntimeError("out of memory")
        return real(matrix, *rest)

    out = tmp_path / "scan.json"
    monkeypatch.setattr(module, "measure_matrix", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        scan(str(model), out, where=Where(workers=2))
    kept = len(journal_of(out).read_text().splitlines()) - 1
    assert kept >= 4
    monkeypatch.setattr(module, "measure_matrix", lambda *given: calls.append(given[0].shape) or real(*given))
    calls.clear()
    assert scan(str(model), out, where=Where(workers=2)) == whole
    assert len(calls) == len(whole["modules"]) - kept


def test_ranks_meet_through_files_and_other_numbers_of_them_go_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = scanned(model, tmp_path / "whole.json"), tmp_path / "scan.json"
    for number in (2, 1):
        as_rank(monkeypatch, number, 3)
        assert scan(str(model), out) is None
        assert journal_of(out, number).is_file()
    assert not out.exists()
    with journal_of(out, 2).open("ab") as file:
        file.write(b'{"name": "cut')
    calls: list[Any] = []
    real = module.measure_matrix
    monkeypatch.setattr(module, "measure_matrix", lambda *given: calls.append(given[0].shape) or real(*given))
    as_rank(monkeypatch, 1, 2)
    assert scan(str(model), out) is None
    as_rank(monkeypatch, 0, 2)
    assert scan(str(model), out) == whole
    assert 0 < len(calls) < len(whole["modules"])
    assert journals(out) == []


def test_the_first_rank_gives_up_on_ranks_that_finish_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_rank(monkeypatch, 0, 2)
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.02)
    with pytest.raises(TrineError, match=r"matrices of other ranks are missing.*same command again"):
        scan(str(model), tmp_path / "scan.json")
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert len(scanned(model, tmp_path / "scan.json")["modules"]) == 13


def test_ranks_at_once_through_the_command(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, out = scanned(model, tmp_path / "whole.json"), tmp_path / "scan.json"
    code = "import sys; from trine.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "spectrum", "scan", str(model), "--out", str(out), "--device", "cpu"]
    ranks = os.environ | {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    with subprocess.Popen(command, env=ranks, stdout=subprocess.PIPE, text=True) as second:
        as_rank(monkeypatch, 0, 2)
        assert scan(str(model), out) == whole == json.loads(out.read_text())
        said, _ = second.communicate(timeout=100)
    assert (second.returncode, "the first rank writes the file" in said) == (0, True)
    assert journals(out) == []


def test_a_damaged_line_is_named(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "scan.json"
    as_rank(monkeypatch, 1, 3)
    assert scan(str(model), out) is None
    path = journal_of(out, 1)
    head, first, *others = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([head, first[:9], *others]))
    as_rank(monkeypatch, 0, 1)
    with pytest.raises(BadInput, match="is damaged"):
        scan(str(model), out)


def test_shares_are_whole_and_even() -> None:
    matrices = [Matrix(str(i), (8 * (1 + i % 7), 64), str(i)) for i in range(200)]
    shares = [shared(matrices, lambda one: one.parameters, Rank(i, 4)) for i in range(4)]
    assert sorted(one.name for share in shares for one in share) == sorted(one.name for one in matrices)
    loads = [sum(one.parameters for one in share) for share in shares]
    assert max(loads) < 1.02 * min(loads)


def test_what_is_not_there_is_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_of("cpu", Rank()) == torch.device("cpu")
    for name, why in [("mps", "CPU or a CUDA"), ("nowhere", "expected auto"), ("cuda:99", "CUDA device")]:
        with pytest.raises(BadInput, match=why):
            device_of(name, Rank())
    with pytest.raises(BadInput, match="--workers 0"):
        scan(str(model), tmp_path / "scan.json", where=Where(workers=0))
    as_rank(monkeypatch, 2, 2)
    with pytest.raises(BadInput, match="RANK=2 WORLD_SIZE=2"):
        scan(str(model), tmp_path / "scan.json")


def test_an_interruption_is_not_waited_out(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.measure_matrix

    def slow(*given: Any) -> Any:
        time.sleep(0.05)
        return real(*given)

    def interrupting(done: int, total: int | None, what: str) -> None:
        if done:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "measure_matrix", slow)
    with pytest.raises(KeyboardInterrupt):
        scan(str(model), tmp_path / "scan.json", "calibrated", interrupting, Where(workers=2))
    assert len(journal_of(tmp_path / "scan.json").read_text().splitlines()) < 6
