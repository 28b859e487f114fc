"""Seconds until `trine --help` and `trine check` answer, each a fresh process; no peer, limits of our own.

python bench/startup.py [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from table import finish

ROOT = Path(__file__).resolve().parents[1]
TRINE = str(Path(sys.executable).with_name("trine"))
COMMANDS = {
    "startup/help": ([TRINE, "--help"], 0.3),
    "startup/check": ([TRINE, "check", str(ROOT / "recipes" / "quickstart.yaml")], 0.5),
}


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for name, (command, limit) in COMMANDS.items():
        median = statistics.median(seconds(command) for _ in range(options.rounds))
        ratio = round(limit / median, 3)
        rows.append({"name": name, "unit": "s", "ours": round(median, 3), "peer": None, "ratio": ratio, "goal": 1.0})
        print(f"{name:16} {median:6.3f} s   limit {limit} s   share {ratio}")
    return finish(rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
