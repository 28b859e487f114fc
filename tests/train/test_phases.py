"""Runs that change on the way: stopped inside each change and resumed, they log the schedule of a run that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tokens import write_tokens
from tests.train.test_loop import MODEL, OPTIM, Stop, config, trace, weights
from trine.errors import BadInput
from trine.optim.config import ScheduleConfig
from trine.train.loop import fit

SCHEDULE = OPTIM.model_copy(update={"schedule": ScheduleConfig(warmup_steps=2, decay_steps=3)})
MIX = ({"source": "web", "share": 0.7}, {"source": "code", "share": 0.3})
CHANGING: dict[str, Any] = {
    "steps": 16,
    "checkpoint_every_steps": 2,
    "sequence_length": 16,
    "mix": MIX,
    "batch_ramp": {"begin_sequences": 2, "tokens": 150},
    "phases": (
        {
            "begin_tokens": 320,
            "sequence_length": 32,
            "packing": "best_fit",
            "mix": ({"source": "code", "share": 1.0},),
        },
        {
            "begin_tokens": 800,
            "packing": "rsdb",
            "rsdb_documents": 6,
            "document_mask": False,
            "batch_sequences": 2,
            "micro_batch_sequences": 1,
            "schedule": {"warmup_steps": 3, "peak_ratio": 0.5, "decay": "cosine", "final_ratio": 0.1},
        },
    ),
}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("tokens") / "tokens", sources=("web", "code"))


@pytest.fixture(scope="module")
def whole(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    fit(MODEL, SCHEDULE, config(**CHANGING), tokens, run)
    return run


def test_the_log_tells_the_schedule(whole: Path) -> None:
    records = trace(whole)
    shown = [(r["phase"], r["batch_sequences"], r["sequence_length"], r["tokens"]) for r in records]
    assert shown == [
        *((0, 2, 16, 32 * k) for k in (1, 2, 3, 4, 5)),
        *((0, 4, 16, 160 + 64 * k) for k in (1, 2, 3)),
        *((1, 4, 32, 352 + 128 * k) for k in (1, 2, 3, 4)),
        *((2, 2, 32, 864 + 64 * k) for k in (1, 2, 3, 4)),
    ]
    peak = OPTIM.muon.lr
    assert records[1]["lr"] == peak
    assert records[11]["lr"] == pytest.approx(0.0)
    assert [r["lr"] for r in records[12:]] == pytest.approx([peak / 6, peak / 3, peak / 2, peak * 0.1])


@pytest.mark.parametrize("stop", [2, 5, 7, 9, 11, 14])
def test_stopped_inside_each_change_and_resumed_bit_for_bit(
    tokens: Path, whole: Path, tmp_path: Path, stop: int
) -> None:
    """2: ramp; 5, 7: its later sizes; 9, 11: length and best fit; 14: buffer and re-warm."""
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fit(MODEL, SCHEDULE, config(**CHANGING), tokens, run, Stop(stop))
    fit(MODEL, SCHEDULE, config(**CHANGING, loader_workers=2), tokens, run)
    assert trace(run) == trace(whole)
    assert weights(run) == weights(whole)


@pytest.mark.parametrize(
    ("mix", "said"),
    [
        (({"source": "web", "share": 0.5}, {"source": "cod", "share": 0.5}), "did you mean 'code'"),
        (({"source": "web", "share": 0.9, "max_epochs": 0.5}, {"source": "code", "share": 0.1}), "max_epochs 0.5"),
    ],
)
def test_a_mix_that_cannot_be_is_refused_before_a_step(
    tokens: Path, tmp_path: Path, mix: tuple[dict[str, Any], ...], said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        fit(MODEL, OPTIM, config(mix=mix), tokens, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tokens_without_sources_cannot_be_mixed(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no named source"):
        fit(MODEL, OPTIM, config(mix=MIX), write_tokens(tmp_path / "tokens"), tmp_path / "run")


def test_a_phase_after_the_end_is_told(tokens: Path, tmp_path: Path) -> None:
    observer = Stop(-1)
    fit(MODEL, OPTIM, config(steps=2, phases=({"begin_tokens": 10**9},)), tokens, tmp_path / "run", observer)
    assert any("train.phases.0 would begin after the run has ended" in text for text in observer.events)
