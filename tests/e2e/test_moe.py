"""`trine moe` through the installed command."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import Command
from tests.e2e.cards import made_again
from tests.e2e.test_merge import load
from tests.surgery.donors import dense
from trine.manifest import verify


def test_a_mixture_is_built_and_its_command_builds_it_again(trine: Command, tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        dense(tmp_path / name, "mistral", seed, "bfloat16")
    (tmp_path / "moe.yaml").write_text(
        "base_model: a\nexperts:\n  - {source_model: a, positive_prompts: [code loop]}\n"
        "  - {source_model: b, positive_prompts: [law court]}\n"
    )
    plan = trine("moe", "moe.yaml", "out", "--dry-run", "--json", cwd=tmp_path)
    assert plan.returncode == 0, plan.stderr
    assert json.loads(plan.stdout)["target"] == "mixtral"
    done = trine("moe", "moe.yaml", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mixtral, 2 experts in 3 layers, gates hidden" in done.stdout
    assert str(load(tmp_path / "out").dtype) == "torch.bfloat16"
    record = verify(tmp_path / "out", "model")
    assert record["meta"]["command"] == "trine moe moe.yaml out"
    assert set(record["meta"]["inputs"]) == {"a/model.safetensors", "b/model.safetensors"}
    made_again(tmp_path / "out", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "moe.yaml", "out", "out before"]
    page = trine("report", "out", cwd=tmp_path)
    assert (page.returncode, "out: was made by `trine moe`, of which there is no page" in page.stderr) == (2, True)
    refused = trine("moe", "moe.yaml", "out", cwd=tmp_path)
    assert (refused.returncode, "already exists" in refused.stderr) == (2, True)
