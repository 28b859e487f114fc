"""The command in a model's card, run again as it is printed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from trine.manifest import verify


def command_in(card: Path) -> str:
    """The indented line under `## Command`."""
    text = card.read_text().split("## Command\n")[1].split("\n## ")[0]
    (line,) = [one for one in text.splitlines() if one.startswith("    ")]
    return line[4:]


def made_again(folder: Path, cwd: Path) -> None:
    """Move a published folder away, run its card's command in a shell: every file has the same SHA-256."""
    before = verify(folder)
    command = command_in(folder / "README.md")
    folder.rename(folder.with_name(f"{folder.name} before"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, shell=True, cwd=cwd, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (command, done.stderr)
    after = verify(folder)
    assert before["files"] == after["files"]
    assert any(name.endswith(".safetensors") for name in after["files"])
