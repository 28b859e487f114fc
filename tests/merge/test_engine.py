"""Merges of small checkpoints: right bytes in a valid folder, whatever the threads, shards and interruptions."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.merge.checkpoints import random_tensors, read_weights, write_weights
from trine.errors import BadInput, TrineError
from trine.manifest import verify
from trine.merge.engine import Options, merge, partial_folder
from trine.merge.jobs import Plan
from trine.merge.models import open_models
from trine.merge.plan import make_plan
from trine.merge.reading import load_recipe

TIES = """merge_method: ties
base_model: {0}/base
models:
  - {{model: {0}/a, parameters: {{weight: 0.6, density: 0.5}}}}
  - {{model: {0}/b, parameters: {{weight: 0.4, density: 0.7}}}}
dtype: bfloat16
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    base = random_tensors(0)
    for number, name in enumerate(("base", "a", "b")):
        tensors = base if name == "base" else random_tensors(number, base=base)
        write_weights(tmp_path / name / "model.safetensors", tensors, "BF16")
        (tmp_path / name / "config.json").write_text(json.dumps({"num_hidden_layers": 3, "dtype": "bfloat16"}))
    return tmp_path


def plan_of(folder: Path, text: str = TIES) -> Plan:
    (folder / "merge.yaml").write_text(text.format(folder))
    recipe = load_recipe(folder / "merge.yaml")
    return make_plan(recipe, open_models(recipe.models))


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}


def test_the_output_is_a_valid_folder(models: Path) -> None:
    out = models / "out"
    record = merge(plan_of(models), out, Options())
    verify(out, "model")
    assert record["files"]["model.safetensors"]["sha256"] == hashes(out)["model.safetensors"]
    assert not partial_folder(out).exists()
    found, base = read_weights(out), read_weights(models / "base")
    assert {name: one.shape for name, one in found.items()} == {name: one.shape for name, one in base.items()}
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert "merge_method: ties" in (out / "README.md").read_text()
    name = str(models / "a" / "model.safetensors")
    assert record["meta"]["inputs"][name] == hashes(models / "a")["model.safetensors"]
    assert any(note.startswith("inputs unverified") for note in record["meta"]["notes"])


def test_safetensors_reads_what_was_written(models: Path) -> None:
    from safetensors import safe_open

    merge(plan_of(models), models / "out", Options(shard_bytes=3000))
    index = json.loads((models / "out" / "model.safetensors.index.json").read_text())
    found = read_weights(models / "out")
    assert set(index["weight_map"]) == set(found)
    assert len(set(index["weight_map"].values())) > 2
    for name, file in index["weight_map"].items():
        with safe_open(models / "out" / file, framework="pt") as opened:
            np.testing.assert_array_equal(opened.get_tensor(name).float().numpy(), found[name])


def test_threads_and_shards_change_no_number(models: Path) -> None:
    merge(plan_of(models), models / "one", Options(threads=1))
    merge(plan_of(models), models / "four", Options(threads=4))
    assert hashes(models / "one") == hashes(models / "four")
    merge(plan_of(models), models / "shards", Options(threads=3, shard_bytes=2000))
    one, shards = read_weights(models / "one"), read_weights(models / "shards")
    assert all(np.array_equal(one[name], shards[name]) for name in one)


def test_an_existing_output_is_refused(models: Path) -> None:
    (models / "out").mkdir()
    (models / "out" / "model.safetensors").write_text("old")
    with pytest.raises(BadInput, match="already exists"):
        merge(plan_of(models), models / "out", Options())
    assert (models / "out" / "model.safetensors").read_text() == "old"


def test_two_merges_into_one_folder_are_refused(models: Path) -> None:
    import fcntl

    partial_folder(models / "out").mkdir()
    handle = os.open(partial_folder(models / "out"), os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(BadInput, match="another process"):
        merge(plan_of(models), models / "out", Options())
    os.close(handle)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(models: Path, value: float) -> None:
    tensors = read_weights(models / "b")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].copy()
    tensors[name][3, 2:5] = value
    write_weights(models / "b" / "model.safetensors", tensors, "BF16")
    with pytest.raises(TrineError, match=r"'model.layers.1.mlp.up_proj.weight' holds 3 values"):
        merge(plan_of(models), models / "out", Options())
    assert not (models / "out").exists()
    assert not partial_folder(models / "out").exists()
    merge(plan_of(models), models / "out", Options(allow_nonfinite=True))
    clean = read_weights(models / "out")
    assert np.isfinite(clean["model.layers.0.mlp.up_proj.weight"]).all()


def test_verified_inputs_that_are_damaged_are_named(models: Path) -> None:
    path = models / "a" / "model.safetensors"
    known = ((f"{models}/a/model.safetensors", hashlib.sha256(path.read_bytes()).hexdigest()),)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(TrineError, match=r"a/model.safetensors: its SHA-256 .* damaged"):
        merge(plan_of(models), models / "out", Options(checksums=known))
    assert not (models / "out").exists()


def test_a_full_disk_is_known_before_anything_is_written(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(BadInput, match="free"):
        merge(plan_of(models), models / "out", Options())
    assert not partial_folder(models / "out").exists()


class _Killed(BaseException):
    pass


def stop_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let a merge end as if killed once `count` tensors are journalled, its folder left as it is."""
    from trine.merge.journal import Journal

    written, plain = [], Journal.tensor

    def tensor(self: Journal, name: str, crc32: int) -> None:
        plain(self, name, crc32)
        written.append(name)
        if len(written) == count:
            raise _Killed

    monkeypatch.setattr(Journal, "tensor", tensor)


@pytest.mark.parametrize("damage", ["none", "output", "journal", "journal cut", "zeroed"])
def test_a_killed_merge_goes_on_to_the_same_bits(models: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    merge(plan_of(models), models / "whole", Options())
    with monkeypatch.context() as patched:
        stop_after(patched, 6)
        with pytest.raises(_Killed):
            merge(plan_of(models), models / "out", Options(threads=1))
    folder = partial_folder(models / "out")
    journal, output = folder / "journal.jsonl", folder / "model.safetensors"
    assert journal.exists()
    match damage:
        case "output":
            data = bytearray(output.read_bytes())
            data[2000] ^= 4
            output.write_bytes(data)
        case "zeroed":
            output.write_bytes(bytes(output.stat().st_size))
        case "journal":
            data = bytearray(journal.read_bytes())
            data[len(data) // 2] ^= 1
            journal.write_bytes(data)
        case "journal cut":
            journal.write_bytes(journal.read_bytes()[:-7])
    merge(plan_of(models), models / "out", Options())
    assert hashes(models / "out") == hashes(models / "whole")


def test_going_on_refuses_other_inputs_and_other_recipes(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        stop_after(patched, 6)
        with pytest.raises(_Killed):
            merge(plan_of(models), models / "out", Options(threads=1))
    with pytest.raises(BadInput, match="another config"):
        merge(plan_of(models, TIES.replace("0.6", "0.7")), models / "out", Options())
    path = models / "a" / "model.safetensors"
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(1, 1))
    with pytest.raises(BadInput, match=r"a/model.safetensors: changed since"):
        merge(plan_of(models), models / "out", Options())


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_kill_9_at_any_moment_changes_no_bit(tmp_path: Path) -> None:
    base = random_tensors(0, layers=30, width=96)
    for number, name in enumerate(("base", "a", "b")):
        tensors = base if name == "base" else random_tensors(number, layers=30, width=96, base=base)
        write_weights(tmp_path / name / "model.safetensors", tensors)
    (tmp_path / "merge.yaml").write_text(TIES.format(tmp_path))
    program = [str(Path(sys.executable).with_name("trine")), "merge", str(tmp_path / "merge.yaml")]
    subprocess.run([*program, str(tmp_path / "whole")], check=True, capture_output=True)
    for delay in (0.02, 0.05, 0.09):
        process = subprocess.Popen([*program, str(tmp_path / "out")], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not (partial_folder(tmp_path / "out") / "journal.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (tmp_path / "out").exists():
            break
    if not (tmp_path / "out").exists():
        subprocess.run([*program, str(tmp_path / "out")], check=True, capture_output=True)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
