"""Kernels' threads: as many as asked for, without helpers of their own; and the compiled files they run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trine.native.build import library
from trine.native.threads import on_threads

PROGRAM = """
import torch
from trine.native.threads import on_threads
def count():
    return sum(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("Threads:"))
torch.set_num_threads(2)
one = torch.randn(512, 512)
one @ one, one.bfloat16() @ one.bfloat16()
before = count()
def products(_):
    left = torch.randn(512, 512)
    left @ left, left.bfloat16() @ left.bfloat16(), left * 2
    return torch.get_num_threads()
print(on_threads(products, 3), count() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_products_on_the_threads_start_no_more_threads() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[1,", "1,", "2]", "2"]


def test_results_come_in_the_order_of_the_numbers() -> None:
    assert on_threads(lambda i: i * i, 4) == [0, 1, 4, 9]
    with pytest.raises(ZeroDivisionError):
        on_threads(lambda i: 1 // i, 2)


def test_without_a_compiler_there_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    assert library("experts", "-DNOT_COMPILED_BEFORE") is None


def test_a_file_that_does_not_compile_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert library("experts", "-fno-such-flag") is None
    assert not list(tmp_path.rglob("*.so"))
