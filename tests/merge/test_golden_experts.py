"""Golden case 31: experts one by one, where mergekit stacks those of a layer, gate above up, before it merges.

Class E where a method looks at each element alone; what looks at a whole tensor is per expert here.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.merge.checkpoints import read_weights, transformers_model, write_weights
from tests.merge.golden import Tensors, assert_equal, assert_equal_off_threshold, ours, peer
from trine.cli.merge import merge as command
from trine.errors import BadInput

pytest.importorskip("mergekit")
_EXPERT = re.compile(r"^(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight$")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three Qwen3-MoE in the Hub's layout, and in `stacked` the same as mergekit stacks them."""
    root = tmp_path_factory.mktemp("experts")
    for i, name in enumerate(("base", "a", "b")):
        transformers_model(root / name, "qwen3_moe", i, "float32")
        write_weights(root / "stacked" / name / "model.safetensors", stacked(read_weights(root / name)))
        shutil.copy(root / name / "config.json", root / "stacked" / name / "config.json")
    return root


def stacked(tensors: Tensors) -> Tensors:
    """gate_up_proj [experts, 2 inner, width] and down_proj [experts, width, inner] of each layer."""
    found: Tensors = {}
    layers: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    for name, one in tensors.items():
        if expert := _EXPERT.match(name):
            layers.setdefault(expert[1], {}).setdefault(expert[3], {})[int(expert[2])] = one
        else:
            found[name] = one
    for stem, kinds in layers.items():
        gate, up, down = (
            np.stack([kinds[kind][e] for e in range(len(kinds[kind]))]) for kind in ("gate", "up", "down")
        )
        found[f"{stem}.gate_up_proj"] = np.concatenate([gate, up], 1)
        found[f"{stem}.down_proj"] = down
    return found


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_case_31_the_same_bits_expert_by_expert(zoo: Path, tmp_path: Path, method: str) -> None:
    text = f"merge_method: {method}\nbase_model: {zoo}/base\nparameters: {{weight: 0.4}}\n"
    text += f"models: [{{model: {zoo}/a}}, {{model: {zoo}/b}}]\n"
    found, wanted = ours(text, tmp_path / "ours"), peer(text, tmp_path / "peer")
    assert any(_EXPERT.match(name) for name in found)
    assert any(name.endswith(".experts.gate_up_proj") for name in wanted)
    assert_equal(stacked(found), wanted)


def test_case_31_ties_looks_at_each_expert(zoo: Path, tmp_path: Path) -> None:
    """mergekit's numbers are those of the stacked tensors, which the same merge of stacked models has here too."""
    text = "merge_method: ties\nbase_model: ROOT/base\nparameters: {weight: 0.4, density: 0.5}\n"
    text += "models: [{model: ROOT/a}, {model: ROOT/b}]\n"
    from transformers import AutoModelForCausalLM

    found = stacked(ours(text.replace("ROOT", str(zoo)), tmp_path / "ours"))
    fused = ours(text.replace("ROOT", str(zoo / "stacked")), tmp_path / "fused")
    wanted = peer(text.replace("ROOT", str(zoo)), tmp_path / "peer")
    (tmp_path / "merge.yaml").write_text(text.replace("ROOT", str(zoo)))
    command(tmp_path / "merge.yaml", tmp_path / "made", numerics="mergekit", experts="stacked")
    assert_equal(read_weights(tmp_path / "made"), fused)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "made", output_loading_info=True)
    assert not any(loaded[1].values()), loaded[1]
    models: list[tuple[Tensors, float | list[float], float]] = [
        (stacked(read_weights(zoo / name)), 0.5, 0.0) for name in "ab"
    ]
    assert_equal_off_threshold(fused, wanted, models, stacked(read_weights(zoo / "base")), "F32")
    for name, one in wanted.items():
        if ".experts." in name:
            assert 0 < (found[name] != one).mean() < 0.2, name
        else:
            np.testing.assert_array_equal(found[name], fused[name])


def test_what_cannot_be_stacked(zoo: Path, tmp_path: Path) -> None:
    text = f"merge_method: linear\nmodels: [{{model: {zoo}/a}}, {{model: {zoo}/b}}]\nparameters: {{weight: WEIGHT}}\n"
    by_expert = "[{filter: experts.2, value: 1}, {value: 0.5}]"
    (tmp_path / "merge.yaml").write_text(text.replace("WEIGHT", by_expert))
    with pytest.raises(BadInput, match=r"experts.2.\w+_proj.weight: merged in another way or shape than .*experts.0"):
        command(tmp_path / "merge.yaml", tmp_path / "out", experts="stacked")
    (tmp_path / "merge.yaml").write_text(text.replace(f"{zoo}/", f"{zoo}/stacked/").replace("WEIGHT", "1"))
    with pytest.raises(BadInput, match=r"no tensor named \*.experts.N.gate_proj.weight"):
        command(tmp_path / "merge.yaml", tmp_path / "out", experts="stacked")
    assert not (tmp_path / "out").exists()
