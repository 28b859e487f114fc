"""What several rooms' tests need: real data when there is any, the installed command, small texts."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run side by side; threads that spin would starve each other

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first, so that two workers end at about the same time."""
    items.sort(key=lambda item: not item.nodeid.startswith(("tests/train", "tests/e2e", "tests/study")))


@pytest.fixture(scope="session")
def trine_data() -> Path:
    """Folder of real public data; the test is skipped where there is none."""
    folder = Path(os.environ.get("TRINE_DATA", ROOT.parent / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip("no real data: TRINE_DATA is not set to a folder")
    return folder


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def trine() -> Command:
    """Run the installed `trine` command: trine("check", config, cwd=..., env=...)."""
    program = Path(sys.executable).with_name("trine")

    def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "NO_COLOR": "1", **options.pop("env", {})}
        return subprocess.run(
            [str(program), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=300,
            env=environment,
            check=False,
            **options,
        )

    return run


_WORDS = (
    "the a of and to in is was model reads writes small large token layer expert router gate value key "
    "window attention step loss rate learns forgets keeps moves reads 12 345 6789 said then when where"
).split()


def write_texts(folder: Path, documents: int, seed: int = 0) -> Path:
    """A folder of plain text files with English-like sentences, the same for the same seed."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(documents):
        sentences = (" ".join(rng.choices(_WORDS, k=rng.randint(5, 15))) for _ in range(rng.randint(8, 30)))
        (folder / f"{i:03}.txt").write_text(". ".join(sentences) + ".\n")
    return folder


def read_json(path: Path) -> Any:
    """The JSON value of a file."""
    return json.loads(path.read_text())
