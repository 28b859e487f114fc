"""Long proofs of what survives a fault: processes are killed at random instants, then everything is checked.

    python bench/faults.py                      every row at its full count
    python bench/faults.py --row kill-train --trials 20 --seconds 600 --json out.json

Each trial forks from this warm process, so a trial costs about a second. A row passes when every trial does;
the exit code is 1 when any failed. The rows of merging are in faults_merge.py, those of filings in
faults_edgar.py.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from faults_edgar import FetchFaults, HostileFilings
from faults_merge import DamageMerge, FullDisk, KillMerge, StrayByte, in_child
from table import finish

from trine.data.shards import ShardWriter, token_dtype, write_index
from trine.errors import TrineError
from trine.manifest import publish, verify
from trine.model.config import ModelConfig
from trine.optim.config import OptimConfig
from trine.train.checkpoint import list_checkpoints
from trine.train.config import EvalConfig, TrainConfig
from trine.train.loop import fit
from trine.train.metrics import CLOCK, read_metrics

MODEL = ModelConfig(
    vocab_size=256,
    hidden_size=32,
    intermediate_size=64,
    moe_intermediate_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    num_experts=4,
    num_experts_per_tok=2,
    sliding_window=16,
)
TRAIN = TrainConfig(
    steps=24,
    sequence_length=32,
    batch_sequences=4,
    micro_batch_sequences=2,
    threads=1,
    device="cpu",
    checkpoint_every_steps=2,
    eval=EvalConfig(every_steps=6),
)


def write_tokens(folder: Path) -> Path:
    """A small token folder with a training and a held-out set, from a fixed random stream."""
    rng = np.random.default_rng(0)
    with publish(folder, "tokens") as out:
        entries = {}
        for name, documents in (("train", 200), ("heldout", 20)):
            with ShardWriter(out, name, token_dtype(256), 1 << 16) as writer:
                for _ in range(documents):
                    length = int(rng.integers(5, 80))
                    writer.add(rng.integers(2, 256, length), length)
            entries[name] = writer.summary()
        write_index(out, entries, np.ones(256, dtype=np.uint16), bos=0, eos=1, tokenizer_sha256="none")
    return folder


def train(tokens: Path, run: Path) -> None:
    """One run of the training under test."""
    fit(MODEL, OptimConfig(), TRAIN, tokens, run)


def trace(run: Path) -> list[dict[str, Any]]:
    """What a run logged, without the clock."""
    return [{k: v for k, v in one.items() if k not in CLOCK} for one in read_metrics(run / "metrics.jsonl")]


def check_checkpoints(run: Path) -> None:
    """Every folder that looks like a checkpoint must be one."""
    for folder in list_checkpoints(run):
        verify(folder, "checkpoint")


class KillTrain:
    """SIGKILL training at a random instant, up to three times, then resume to the end."""

    trials = 300

    def __init__(self, folder: Path) -> None:
        self.folder, self.tokens = folder, write_tokens(folder / "tokens")
        started = time.monotonic()
        assert in_child(lambda: train(self.tokens, folder / "whole")) == 0
        self.length = time.monotonic() - started
        self.expected = trace(folder / "whole")
        self.weights = (list_checkpoints(folder / "whole")[0] / "model.safetensors").read_bytes()

    def trial(self, seed: int) -> None:
        rng, run = random.Random(seed), self.folder / f"run-{seed}"
        for _ in range(rng.randint(1, 3)):
            in_child(lambda: train(self.tokens, run), kill_after=rng.uniform(0, self.length))
            check_checkpoints(run)
        if in_child(lambda: train(self.tokens, run)) != 0:
            raise AssertionError("the resumed run failed")
        assert trace(run) == self.expected, "the resumed trace differs from the uninterrupted one"
        weights = (list_checkpoints(run)[0] / "model.safetensors").read_bytes()
        assert weights == self.weights, "the final weights differ"
        shutil.rmtree(run)


class KillPublish:
    """SIGKILL a process that publishes a folder again and again: the name holds nothing or a whole folder."""

    trials = 300

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def trial(self, seed: int) -> None:
        rng, target = random.Random(seed), self.folder / f"out-{seed}"

        def work() -> None:
            with publish(target, "sample") as folder:
                for i in range(8):
                    (folder / f"{i}.bin").write_bytes(np.random.default_rng(i).bytes(200_000))

        in_child(work, kill_after=rng.uniform(0, 0.02))
        if target.exists():
            verify(target, "sample")
        else:
            assert in_child(work) == 0
            verify(target, "sample")
        left = [p.name for p in self.folder.glob(f".{target.name}.tmp-*")]
        assert not left, f"left behind: {left}"
        shutil.rmtree(target)


ROWS: dict[str, Any] = {
    "kill-train": KillTrain,
    "kill-publish": KillPublish,
    "kill-merge": KillMerge,
    "damage-merge": DamageMerge,
    "stray-byte-merge": StrayByte,
    "full-disk-merge": FullDisk,
    "hostile-filings": HostileFilings,
    "fetch-faults": FetchFaults,
}


def run_row(name: str, trials: int | None, seconds: float | None) -> dict[str, Any]:
    """All trials of a row, or as many as fit in `seconds`; failures are printed as they happen."""
    with tempfile.TemporaryDirectory(prefix="trine-faults-") as temporary:
        row = ROWS[name](Path(temporary))
        wanted, done, failed, started = trials or row.trials, 0, 0, time.monotonic()
        while done < wanted and (seconds is None or time.monotonic() - started < seconds):
            try:
                row.trial(done)
            except (AssertionError, TrineError) as error:
                failed += 1
                print(f"{name} trial {done}: {error}", file=sys.stderr)
            done += 1
            print(f"\r{name}: {done}/{wanted} trials, {failed} failed", end="", file=sys.stderr)
        print(file=sys.stderr)
    passed = (done - failed) / done if done else 0.0
    return {"name": name, "unit": "trials", "ours": done - failed, "peer": None, "ratio": passed, "goal": 1.0}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=ROWS, action="append", help="default: every row")
    parser.add_argument("--trials", type=int, help="default: the row's full count")
    parser.add_argument("--seconds", type=float, help="stop a row after so long")
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args()
    rows = [run_row(name, options.trials, options.seconds) for name in options.row or ROWS]
    for row in rows:
        print(f"{row['name']:16} {row['ours']} trials passed, share {row['ratio']:.3f} (goal 1)")
    return finish(rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
