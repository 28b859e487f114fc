"""`trine generate --out`: what has ended is kept, and the same command goes on with the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_cli import Said
from tests.test_completion import write_model
from trine.completion import TextModel


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_stopped_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = write_model(tmp_path / "model"), tmp_path / "prompts.txt"
    prompts.write_text("the model\nthen a\nit\nagain it writes\n")
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    sizes = ["--max-new-tokens", 5, "--batch", 2, "--samples", 2]
    options = ["generate", model, "--prompts", prompts, "--seed", 3, *sizes]
    assert Said(capsys, *options, "--out", tmp_path / "whole.jsonl").code == 0
    original, computed = TextModel._pieces, []

    def failing(self: TextModel, prompts: Any, rows: Any, *rest: Any) -> Any:
        if len(computed) == 2:
            raise KeyboardInterrupt
        computed.append(len(rows))
        return original(self, prompts, rows, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(TextModel, "_pieces", failing)
        with pytest.raises(SystemExit):
            Said(capsys, *options, "--out", out)
    assert not out.exists()
    assert len(lines_of(partial)) == 1 + 4
    with partial.open("a") as file:
        file.write('{"prompt": 2, "samp')  # a line cut short
    other = Said(capsys, *options, "--top-k", 3, "--out", out)
    assert other.code == 2
    assert "out.jsonl.partial: holds 4 completions of another command" in other.err
    computed.clear()
    monkeypatch.setattr(TextModel, "_pieces", failing)
    assert Said(capsys, *options, "--out", out).code == 0
    assert computed == [2, 2]
    assert lines_of(out) == lines_of(tmp_path / "whole.jsonl")
    assert not partial.exists()
