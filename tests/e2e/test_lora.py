"""`trine lora extract` through the installed command."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import Command
from tests.e2e.cards import made_again
from tests.surgery.test_lora import tuned
from trine.manifest import verify


def test_an_adapter_is_extracted(trine: Command, tmp_path: Path) -> None:
    tuned(tmp_path, 2)
    done = trine("lora", "extract", "tuned", "base", "adapter", "--rank", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "21 modules at rank 2" in done.stdout
    verify(tmp_path / "adapter", "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["base_model_name_or_path"]) == ("LORA", 2, "base")
    made_again(tmp_path / "adapter", tmp_path)
    page = trine("report", "adapter", cwd=tmp_path)
    assert (page.returncode, "`trine lora extract`, of which there is no page" in page.stderr) == (2, True)
    again = trine("lora", "extract", "tuned", "base", "adapter", cwd=tmp_path)
    assert (again.returncode, "already exists" in again.stderr) == (2, True)
