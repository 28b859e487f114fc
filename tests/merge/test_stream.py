"""Kernels that read and write files by themselves: the same bits as numpy gives from memory, and the same refusals."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.merge.tensors import fine_tunes, inputs_of
from tests.merge.test_fused import CASES, COUNTS, ROUNDED
from trine.errors import TrineError
from trine.merge import fused
from trine.merge.config import ModelReference
from trine.merge.dtypes import STORED, Array, narrow, widen
from trine.merge.jobs import Tensor
from trine.merge.methods import inputs as blocks
from trine.merge.methods import select
from trine.merge.methods.inputs import Direct, InMemory, Inputs, Target, merged
from trine.merge.methods.table import METHODS
from trine.merge.source import Buffers, NotFinite, Stored
from trine.weights.index import TensorInfo

SHAPE = (130, 70)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    library = fused._library()
    if library is None or not library.has_crc32():
        pytest.skip("no compiler, or no instructions for CRC-32")
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 3000)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for handle in HANDLES:
        os.close(handle)
    HANDLES.clear()


HANDLES: list[int] = []


def stored(values: Array, path: Path, dtype: str, slot: int, finite: bool = True) -> Stored:
    """`values` in a file, 13 bytes into it."""
    path.write_bytes(b"x" * 13 + narrow(values.reshape(-1), dtype).tobytes())
    info = TensorInfo(path, dtype, values.shape, values.size * STORED[dtype].itemsize, 13)
    HANDLES.append(os.open(path, os.O_RDONLY))
    tensor = Tensor(ModelReference.model_validate(path.name), "layer.weight", info)
    return Stored(tensor, HANDLES[-1], Buffers(), slot, np.float32, None, finite)


def pair(folder: Path, method: str, dtype: str, base: Array, models: list[Array], **parameters: Any) -> list[Inputs]:
    """The same inputs in files, and in memory as the files hold them."""
    given = inputs_of(method, models, None if method in ("linear", "karcher") else base, **parameters)

    def kept(values: Array) -> InMemory:
        out = np.empty(values.shape, np.float32)
        widen(narrow(values, dtype), dtype, out)
        return InMemory(out)

    files = [stored(one, folder / f"model{i}", dtype, i) for i, one in enumerate(models)]
    first = replace(given, models=files, base=given.base and stored(base, folder / "base", dtype, len(models)))
    return [first, replace(given, models=[kept(one) for one in models], base=given.base and kept(base))]


def poured(inputs: Inputs, method: str, path: Path, dtype: str) -> tuple[Array, int]:
    """The merged tensor out of a file, 5 bytes into it, and the CRC-32 of what was written."""
    kernel = METHODS[method](inputs)
    assert isinstance(kernel, Direct)
    assert kernel.pour is not None
    path.write_bytes(b"y" * 5)
    handle = os.open(path, os.O_RDWR)
    target = Target(handle, 5, dtype)
    for start, stop in inputs.spans(2):
        kernel.pour(start, stop, target)
    os.close(handle)
    return np.frombuffer(path.read_bytes()[5:], STORED[dtype]), target.crc


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("method", [*CASES, *ROUNDED, "passthrough"])
def test_files_are_merged_as_memory_is(folder: Path, monkeypatch: pytest.MonkeyPatch, method: str, dtype: str) -> None:
    monkeypatch.setattr(select, "_COLLECT", 1000)
    base, models = fine_tunes({**COUNTS, "passthrough": 1}.get(method, 3), SHAPE)
    models[0][:40] = base[:40]
    parameters = {**CASES, **ROUNDED, "passthrough": {"scale": 0.7}}[method]
    files, memory = pair(folder, method, dtype, base, models, **parameters)
    found, crc = poured(files, method, folder / "out", dtype)
    assert crc == zlib.crc32(found.tobytes())
    monkeypatch.setattr(fused, "_library", lambda: None)
    expected = narrow(merged(METHODS[method], memory).reshape(-1), dtype)
    if method not in ROUNDED:
        np.testing.assert_array_equal(found, expected)
        return
    wide = [widen(one, dtype, np.empty(one.size, np.float32)) for one in (found, expected)]
    np.testing.assert_allclose(*wide, rtol=2**-8 if dtype == "BF16" else 2e-6, atol=1e-8)


@pytest.mark.parametrize("method", ["ties", "sce", "breadcrumbs"])
def test_a_bracket_that_holds_too_many_falls_back_to_the_histogram(
    folder: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(select, "_MOST", 10)
    base, models = fine_tunes(3, SHAPE)
    files, memory = pair(folder, method, "BF16", base, models, **CASES[method])
    found, _ = poured(files, method, folder / "out", "BF16")
    np.testing.assert_array_equal(found, narrow(merged(METHODS[method], memory).reshape(-1), "BF16"))


@pytest.mark.parametrize("method", ["linear", "ties", "karcher", "sce", "della"])
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_numbers_that_are_not_finite_are_refused(folder: Path, method: str, dtype: str, bad: float) -> None:
    base, models = fine_tunes(3, SHAPE)
    models[1][129, 69] = bad
    files, _ = pair(folder, method, dtype, base, models, **{**CASES, **ROUNDED}[method])
    with pytest.raises(NotFinite) as refused:
        poured(files, method, folder / "out", dtype)
    assert refused.value.tensor.info.file == folder / "model1"


def test_a_file_that_ends_early_is_named(folder: Path) -> None:
    base, models = fine_tunes(3, SHAPE)
    files, _ = pair(folder, "linear", "BF16", base, models, **CASES["linear"])
    os.truncate(folder / "model2", 9000)
    with pytest.raises(TrineError, match=r"model2: ends at byte 9000"):
        poured(files, "linear", folder / "out", "BF16")


def test_a_failure_to_write_is_an_os_error(folder: Path) -> None:
    base, models = fine_tunes(3, SHAPE)
    files, _ = pair(folder, "linear", "BF16", base, models, **CASES["linear"])
    kernel = METHODS["linear"](files)
    assert isinstance(kernel, Direct)
    assert kernel.pour is not None
    handle = os.open(folder / "model0", os.O_RDONLY)
    with pytest.raises(OSError, match="Bad file descriptor"):
        kernel.pour(0, 3000, Target(handle, 0, "BF16"))
    os.close(handle)
