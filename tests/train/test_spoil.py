"""Planted bad batches: where they fall, what they hold, and that a run with them resumes bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tokens import write_tokens
from tests.train.test_loop import MODEL, OPTIM, Stop, config, trace
from trine.data.loader import Batch
from trine.train.config import BadBatchConfig
from trine.train.loop import fit
from trine.train.spoil import spoiled


def good() -> Batch:
    tokens = torch.arange(24).view(3, 8)
    targets = tokens + 1
    targets[1, 2:5] = -1
    return Batch(tokens, targets, torch.zeros(3, 8, dtype=torch.int32))


def test_bursts_fall_on_multiples() -> None:
    plan = BadBatchConfig(every_steps=10, burst_steps=2)
    assert [step for step in range(1, 35) if plan.planted(step)] == [10, 11, 20, 21, 30, 31]


@pytest.mark.parametrize("kind", ["repeat", "random"])
def test_text_is_replaced_and_everything_else_stays(kind: str) -> None:
    before = good()
    after = spoiled(before, kind, 97, "0/10/0")
    assert after.document_ids is before.document_ids
    hidden = before.targets < 0
    assert torch.equal(after.targets < 0, hidden)
    assert torch.equal(before.tokens, good().tokens)
    shown = ~hidden[:, :-1]
    assert torch.equal(after.targets[:, :-1][shown], after.tokens[:, 1:][shown])
    distinct = [len(row.unique()) for row in after.tokens]
    assert distinct == [1, 1, 1] if kind == "repeat" else min(distinct) > 3
    assert int(after.tokens.max()) < 97


def test_draws_are_keyed() -> None:
    one, same, other = (spoiled(good(), "random", 97, key).tokens for key in ("0/1/0", "0/1/0", "0/1/1"))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_run_sees_them_at_their_steps_alone_and_resumes_inside_a_burst(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens")
    planted = config(steps=8, bad_batches={"every_steps": 5, "burst_steps": 3}, checkpoint_every_steps=2)
    fit(MODEL, OPTIM, config(steps=8, checkpoint_every_steps=2), tokens, tmp_path / "clean")
    fit(MODEL, OPTIM, planted, tokens, tmp_path / "bad")
    clean, bad = trace(tmp_path / "clean"), trace(tmp_path / "bad")
    assert clean[:4] == bad[:4]
    assert all(ours["loss"] != theirs["loss"] for ours, theirs in zip(bad[4:], clean[4:], strict=True))
    assert bad[4]["max_vio"] > 1.5 * clean[4]["max_vio"]
    with pytest.raises(KeyboardInterrupt):
        fit(MODEL, OPTIM, planted, tokens, tmp_path / "stopped", Stop(7))
    fit(MODEL, OPTIM, planted, tokens, tmp_path / "stopped")
    assert trace(tmp_path / "stopped") == bad
