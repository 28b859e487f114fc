"""Golden cases 19, 20 and 23's arcee_fusion: random masks agree in distribution, and bit for bit given the mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.merge.golden import Tensors, llama, ours, peer, stored_types, write_llama
from trine.merge.dtypes import Array, rounded

pytest.importorskip("mergekit")
METHODS = ["dare_linear", "dare_ties", "della_linear", "della"]
NAMES = {"F32": "float32", "BF16": "bfloat16"}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ROOT/TYPE/NAME: a base of zeros, so that a merge is its differences, and two models."""
    root = tmp_path_factory.mktemp("random")
    for stored in NAMES:
        write_llama(root / stored / "base", {name: 0 * one for name, one in llama(0).items()}, stored)
        for i, name in enumerate("ab", 1):
            write_llama(root / stored / name, llama(i), stored)
    return root


def merged(zoo: Path, tmp_path: Path, stored: str, method: str, parameters: str) -> tuple[Tensors, Tensors, Tensors]:
    """What we and mergekit make of model a, and a itself."""
    text = f"merge_method: {method}\nbase_model: {zoo / stored}/base\nmodels: [{{model: {zoo / stored}/a}}]\n"
    text += f"parameters: {{weight: 1, normalize: false, {parameters}}}\n"
    whole = {name: rounded(one, stored) for name, one in llama(1).items()}
    return ours(text, tmp_path / "ours"), peer(text, tmp_path / "peer"), whole


@pytest.mark.parametrize("stored", NAMES)
@pytest.mark.parametrize("rescale", ["true", "false"])
@pytest.mark.parametrize("method", METHODS)
def test_shares_and_scales(zoo: Path, tmp_path: Path, method: str, rescale: str, stored: str) -> None:
    """The share kept within five standard deviations; what is kept scaled to the tensor's sum of magnitudes."""
    *both, whole = merged(zoo, tmp_path, stored, method, f"density: 0.5, rescale: {rescale}")
    for found in both:
        total = kept = 0
        for name, one in found.items():
            mask = one != 0
            total, kept = total + mask.size, kept + int(mask.sum())
            scale = np.abs(whole[name]).sum(dtype=np.float64) / np.abs(whole[name][mask]).sum(dtype=np.float64)
            wanted = whole[name][mask] * (scale if rescale == "true" else 1)
            np.testing.assert_allclose(one[mask], wanted, rtol=1e-5 if stored == "F32" else 2.0**-6)
        assert abs(kept / total - 0.5) < 5 * np.sqrt(0.25 / total)


@pytest.mark.parametrize("method", ["della_linear", "della"])
def test_larger_elements_of_a_row_stay_more_often(zoo: Path, tmp_path: Path, method: str) -> None:
    *both, whole = merged(zoo, tmp_path, "F32", method, "density: 0.5, epsilon: 0.3")
    for found in both:
        quarters: list[list[Array]] = [[], [], [], []]
        for name, one in found.items():
            rows = np.abs(whole[name]).reshape(-1, one.shape[-1])
            ranks = rows.argsort(axis=1).argsort(axis=1) / (rows.shape[1] - 1)
            for i, part in enumerate(quarters):
                part.append(one.reshape(rows.shape)[(ranks >= i / 4) & (ranks < (i + 1) / 4 + i // 3)])
        shares = [float(np.mean(np.concatenate(part) != 0)) for part in quarters]
        np.testing.assert_allclose(shares, [0.275, 0.425, 0.575, 0.725], atol=0.03)


def test_masks_of_two_models_are_independent(zoo: Path, tmp_path: Path) -> None:
    """Both are kept in a quarter of the elements: a of zeros and ones beside twos tells which."""
    for name, value in (("one", 1), ("two", 2)):
        write_llama(tmp_path / name, {key: np.full_like(one, value) for key, one in llama(0).items()})
    text = f"merge_method: dare_linear\nbase_model: {zoo}/F32/base\n"
    text += "parameters: {weight: 1, density: 0.5, rescale: false}\n"
    text += f"models: [{{model: {tmp_path}/one}}, {{model: {tmp_path}/two}}]\n"
    for found in (ours(text, tmp_path / "ours"), peer(text, tmp_path / "peer")):
        sums = np.concatenate([one.reshape(-1) for one in found.values()])
        for value in (0, 1, 2, 3):
            assert abs(np.mean(sums == value) - 0.25) < 5 * np.sqrt(0.19 / sums.size)


def test_arcee_fusion(zoo: Path, tmp_path: Path) -> None:
    """Class T off its threshold; mergekit's output is fp32 whatever `dtype` says, here it has the type asked for."""
    base = llama(0)
    for name, tensors in (("base", base), ("a", llama(1, base))):
        write_llama(tmp_path / name, tensors)
    text = f"merge_method: arcee_fusion\nbase_model: {tmp_path}/base\nmodels: [{{model: {tmp_path}/a}}]\n"
    found, wanted = ours(text, tmp_path / "ours"), peer(text, tmp_path / "peer")
    different = np.concatenate([(found[name] != one).reshape(-1) for name, one in wanted.items()])
    assert different.mean() < 1e-3
    ours(text + "dtype: bfloat16\n", tmp_path / "ours16")
    peer(text + "dtype: bfloat16\n", tmp_path / "peer16")
    assert set(stored_types(tmp_path / "ours16").values()) == {"BF16"}
    assert set(stored_types(tmp_path / "peer16").values()) == {"F32"}
