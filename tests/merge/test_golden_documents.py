"""Golden case 29: configs of several documents, mergekit's own command line beside."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Command
from tests.merge.checkpoints import read_weights
from tests.merge.golden import assert_close, assert_equal, llama, write_llama
from trine.cli.merge import merge as command
from trine.errors import BadInput

pytest.importorskip("mergekit")
SEVERAL = """# the last merge comes first in the file
merge_method: task_arithmetic
base_model: a
models:
  - {model: left, parameters: {weight: 0.6}}
  - {model: right, parameters: {weight: 0.3}}
---
name: left
merge_method: linear
parameters: {weight: 0.5}
models: [{model: a}, {model: b}]
--- # with a comment
merge_method: slerp
name: right
base_model: left
parameters: {t: 0.25}
models: [{model: c}]
"""


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of three models, which is the current one."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate("abc"):
        write_llama(tmp_path / name, llama(i))
    return tmp_path


def peer_several(text: str, folder: Path) -> None:
    """mergekit-multi, in this process: its results lie in `peer` and `peer-parts`."""
    from click.testing import CliRunner
    from mergekit.scripts.multimerge import main

    (folder / "peer.yaml").write_text(text)
    words = [folder / "peer.yaml", "--out-path", folder / "peer", "-I", folder / "peer-parts"]
    CliRunner().invoke(main, [*map(str, words), "--no-copy-tokenizer", "--no-write-model-card"], catch_exceptions=False)


def merge(*more: Any, text: str = SEVERAL) -> list[dict[str, Any]]:
    """What was done to each document, here."""
    Path("merge.yaml").write_text(text)
    return command(Path("merge.yaml"), Path("out"), numerics="mergekit", **dict(more)).record["documents"]


def refusal(text: str = SEVERAL) -> str:
    with pytest.raises(BadInput) as error:
        merge(text=text)
    return str(error.value)


def test_case_29_a_merge_of_merges(trine: Command, zoo: Path) -> None:
    planned = merge(("dry_run", True))
    assert [(one["name"], one["state"]) for one in planned] == [
        ("left", "planned"),
        ("right", "waits"),
        (None, "waits"),
    ]
    assert not (zoo / "out").exists()
    done = trine("merge", "merge.yaml", "out", "--numerics", "mergekit", "--json", cwd=zoo)
    assert done.returncode == 0, done.stderr
    assert [one["name"] for one in json.loads(done.stdout)["documents"]] == ["left", "right", None]
    peer_several(SEVERAL, zoo)
    assert_equal(read_weights(zoo / "out.parts" / "left"), read_weights(zoo / "peer-parts" / "left"))
    assert_close(read_weights(zoo / "out.parts" / "right"), read_weights(zoo / "peer-parts" / "right"), "F32")
    assert_close(read_weights(zoo / "out"), read_weights(zoo / "peer"), "F32")


def test_case_29_finished_ones_stay(zoo: Path) -> None:
    """mergekit skips what is there, whatever it is; here it must be of the same recipe, settings and inputs."""
    merge()
    stamps = [(zoo / one / "manifest.json").stat().st_mtime_ns for one in ("out", "out.parts/left")]
    assert [one["state"] for one in merge()] == ["kept", "kept", "kept"]
    shutil.rmtree(zoo / "out.parts" / "right")
    assert [one["state"] for one in merge()] == ["kept", "merged", "kept"]
    assert stamps == [(zoo / one / "manifest.json").stat().st_mtime_ns for one in ("out", "out.parts/left")]
    other = SEVERAL.replace("t: 0.25", "t: 0.5")
    assert "out.parts/right: already exists and is the result of another recipe" in refusal(other)
    shutil.rmtree(zoo / "out.parts" / "right")
    assert "out: already exists and is merged from another 'out.parts/right/model.safetensors'" in refusal(other)
    os.utime(zoo / "b" / "model.safetensors")
    assert "out.parts/left: already exists and is merged from another 'b/model.safetensors'" in refusal()
    (zoo / "out.parts" / "left" / "manifest.json").unlink()
    assert "out.parts/left: already exists and is no finished merge" in refusal()


def test_case_29_circles_and_other_mistakes(trine: Command, zoo: Path) -> None:
    circle = SEVERAL.replace("models: [{model: a}, {model: b}]", "models: [{model: a}, {model: right}]")
    with pytest.raises(ValueError, match="Circular dependency"):
        peer_several(circle, zoo)
    (zoo / "merge.yaml").write_text(circle)
    done = trine("merge", "merge.yaml", "out", cwd=zoo)
    assert done.returncode == 2
    assert "merge.yaml: left needs right needs left: documents that need each other" in done.stderr
    for text, words in (
        (SEVERAL.replace("name: right", "name: left"), "two documents are named 'left'"),
        (SEVERAL.replace("name: right\n", ""), "two documents have no name"),
        (SEVERAL.replace("name: right", "name: ../right"), "merge.yaml:14: name: got '../right'"),
        (SEVERAL.replace("t: 0.25", "tt: 0.25"), "merge.yaml:16: parameters.tt"),
        (SEVERAL.replace("{model: c}", "{model: cc}"), "'cc': no such folder"),
        (SEVERAL.replace("name: left", "{name: left, x: 1}"), "merge.yaml:"),
    ):
        assert words in refusal(text)
    assert not [one for one in zoo.iterdir() if one.name.startswith(("out", ".out"))]


def test_all_of_them_may_have_names(zoo: Path) -> None:
    text = SEVERAL.split("---\n")[1].replace("--- # with a comment", "---")
    assert [one["name"] for one in merge(text=text)] == ["left", "right"]
    assert sorted(one.name for one in (zoo / "out").iterdir()) == ["left", "right"]
    assert [one["name"] for one in merge(("parts", Path("pieces")), text=text)] == ["left", "right"]
    assert sorted(one.name for one in (zoo / "pieces").iterdir()) == ["left", "right"]
