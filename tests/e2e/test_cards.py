"""A model card's command makes the same files again, whatever its options and paths."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Command
from tests.e2e.cards import command_in, made_again
from tests.merge.checkpoints import random_tensors, write_weights
from trine.manifest import read_manifest

DARE = (
    "merge_method: dare_ties\nbase_model: the base\nparameters: {density: 0.5}\nmodels:\n"
    "  - {model: it's a, parameters: {weight: 0.5}}\n  - {model: b, parameters: {weight: 0.25}}\n"
)


def three(folder: Path) -> None:
    """A base and two models near it, with names that a shell would take apart."""
    base = random_tensors(0)
    for number, name in enumerate(("the base", "it's a", "b")):
        write_weights(folder / name / "model.safetensors", random_tensors(number, base=base if number else None))


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--numerics", "mergekit", "--seed", "3", "--shard-bytes", "9000"),
        ("--seed=7", "--allow-nonfinite", "--threads", "2", "--json", "--report", "page.html"),
    ],
)
def test_a_merge(trine: Command, tmp_path: Path, options: tuple[str, ...]) -> None:
    three(tmp_path)
    if "--allow-nonfinite" in options:
        tensors = random_tensors(9)
        tensors["model.norm.weight"][3] = np.inf
        write_weights(tmp_path / "b" / "model.safetensors", tensors)
    (tmp_path / "my $merge.yaml").write_text(DARE)
    done = trine("merge", "my $merge.yaml", "out & out/model", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out & out" / "model"
    assert command_in(out / "README.md").startswith("trine merge 'my $merge.yaml' 'out & out/model'")
    made_again(out, tmp_path)


def test_an_aligned_merge(trine: Command, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in "ab":
        stem = "model.layers.0.mlp"
        shapes = {f"{stem}.experts.{expert}.up_proj.weight": (6, 8) for expert in range(4)}
        shapes[f"{stem}.gate.weight"] = (4, 8)
        tensors = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
        write_weights(tmp_path / name / "model.safetensors", tensors)
    (tmp_path / "merge.yaml").write_text(
        "merge_method: linear\nparameters: {weight: 0.5}\nmodels: [{model: a}, {model: b}]\n"
    )
    done = trine("merge", "merge.yaml", "out", "--align-experts", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made_again(tmp_path / "out", tmp_path)


def test_a_merge_of_a_sweep(trine: Command, tmp_path: Path) -> None:
    three(tmp_path)
    (tmp_path / "merge.yaml").write_text(DARE)
    (tmp_path / "sweep.yaml").write_text(
        f"score: '{sys.executable} -c print(1) {{model}}'\nkeep: all\n"
        "vary: [{at: models.0.parameters.weight, values: [0.1, 1]}]\n"
    )
    words = ("--sweep", "sweep.yaml", "--shard-bytes", "9000", "--allow-nonfinite", "--seed", "5")
    done = trine("merge", "merge.yaml", "swept", *words, "--numerics", "mergekit", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for number in range(2):
        made_again(tmp_path / "swept" / f"model-{number:04}", tmp_path)
    record = read_manifest(tmp_path / "swept" / "model-0001")
    assert json.loads(record["meta"]["config"])["models"][0]["parameters"]["weight"] == 1
