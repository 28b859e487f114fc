"""Plans: what two depths tell of a third, what fits, what to change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.model.shapes import small_config
from tests.model.test_causal import write_peer
from trine.errors import TrineError
from trine.estimate.machine import Machine
from trine.estimate.plan import make_plan
from trine.estimate.probe import FEWEST, Job
from trine.estimate.probing import Costs, Probes, ProbeTimeout
from trine.estimate.shape import dump_shape, with_layers
from trine.estimate.size import measure_size
from trine.estimate.trial import run_trial
from trine.model.config import ModelConfig
from trine.model.shape import read_shape
from trine.optim.config import OptimConfig
from trine.progress import silent
from trine.train.config import EvalConfig, TrainConfig

OPTIM = OptimConfig()
TRAIN = TrainConfig(sequence_length=64, batch_sequences=8, micro_batch_sequences=4, threads=1)
SHAPE = small_config(num_hidden_layers=8, global_attn_every_n_layers=2)
ROOMY = Machine("cpu", 1, 1 << 34, 1 << 34)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine fails no test."""
    monkeypatch.setattr("trine.estimate.trial.BUDGET_SECONDS", 200.0)


def job(shape: ModelConfig, train: TrainConfig = TRAIN, **changes: Any) -> Job:
    given: dict[str, Any] = {"vocabulary": shape.vocab_size, "steps": 5, "seconds": 60, "memory": 1 << 33} | changes
    alone = {"eval": EvalConfig(sets=()), "checkpoint_every_steps": 1000}
    return Job(shape=dump_shape(shape), optim=OPTIM, train=train.model_copy(update=alone), **given)


def run(job: Job, limit: float) -> Costs | None:
    with Probes() as probes:
        return probes.run(job, limit)


def test_a_probe_runs_the_runs_own_steps_and_minds_its_memory() -> None:
    costs = run(job(SHAPE), limit=60)
    assert costs is not None
    assert len(costs.seconds) == 5
    assert {"data", "forward", "backward", "optimizer"} <= set(costs.seconds[0])
    assert costs.peak > measure_size(SHAPE, OPTIM, 64).static


def test_one_process_runs_a_probe_after_another_failed() -> None:
    wide = small_config(vocab_size=1 << 20, hidden_size=64)
    with Probes() as probes:
        assert probes.run(job(wide, memory=1 << 27), limit=60) is None
        with pytest.raises(ProbeTimeout, match="no step of the probe ended within 0 s"):
            probes.run(job(SHAPE), limit=0)
        with pytest.raises(TrineError, match="the probe failed: "):
            probes.run(job(SHAPE, TRAIN.model_copy(update={"device": "nowhere"})), limit=60)
        costs = probes.run(job(SHAPE, seconds=0), limit=60)
    assert costs is not None
    assert len(costs.seconds) == FEWEST


def test_kept_activations_of_two_depths_tell_those_of_the_whole() -> None:
    kept = {}
    for layers in (2, 4, 8):
        costs = run(job(with_layers(SHAPE, range(layers)), seconds=0), limit=60)
        assert costs is not None
        assert costs.activations is not None
        kept[layers] = costs.activations
    assert kept[4] + 2 * (kept[4] - kept[2]) == pytest.approx(kept[8], rel=0.02)
    assert kept[8] > 8 * 4 * 64 * 32 * 2


def test_a_model_of_transformers_is_probed_too(tmp_path: Path) -> None:
    shape = read_shape(write_peer(tmp_path / "peer", "llama"))
    trial = run_trial(shape, OPTIM, TRAIN.model_copy(update={"init_from": "elsewhere"}), 1 << 33, silent)
    assert trial is not None
    assert trial.layers == 2


def test_a_trial_of_a_model_within_the_time_has_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trine.estimate.trial.BUDGET_SECONDS", 300.0)
    trial = run_trial(SHAPE, OPTIM, TRAIN, 1 << 33, silent)
    assert trial is not None
    assert trial.layers == 8
    assert trial.step_seconds(1.0) == pytest.approx(sum(trial.parts.values()))
    assert trial.working > trial.activations


def test_a_probe_without_time_for_a_step_leaves_time_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trine.estimate.trial.BUDGET_SECONDS", 0.01)
    plan = make_plan(SHAPE, OPTIM, TRAIN.model_copy(update={"compile": "never"}), ROOMY)
    assert plan["time"] is None
    assert "no step of the probe ended" in plan["note"]
    assert plan["fits"]["memory"]


def test_what_fits_is_not_refused_and_needs_no_advice() -> None:
    plan = make_plan(SHAPE, OPTIM, TRAIN, ROOMY, probe=False)
    assert plan["fits"] == {"memory": True, "disk": True}
    assert plan["advice"] == []
    assert plan["work"]["tokens"] == 8 * 64 * TRAIN.steps
    assert plan["memory"]["peak"] is None
    assert plan["time"] is None


def test_phases_count_each_with_its_length_and_batch() -> None:
    phases = {"phases": ({"begin_tokens": 5120, "sequence_length": 128, "micro_batch_sequences": 8},)}
    train = TrainConfig.model_validate(TRAIN.model_dump() | {"steps": 30} | phases)
    plan = make_plan(SHAPE, OPTIM, train, ROOMY, probe=False)
    assert plan["work"]["tokens"] == 10 * 8 * 64 + 20 * 8 * 128
    flops = [measure_size(SHAPE, OPTIM, length).flops_per_token for length in (64, 128)]
    assert plan["work"]["flops"] == pytest.approx(8 * (10 * 64 * flops[0] + 20 * 128 * flops[1]))
    assert plan["memory"]["loss_chunk"] == 8 * 128 * 97 * 4
    assert plan["work"]["tokens_per_step"] == 8 * 128


def test_too_little_memory_and_disk_name_changes_that_would_do() -> None:
    optim = OptimConfig.model_validate({"matrices": "adamw"})
    size = measure_size(SHAPE, optim, 64)
    used = make_plan(SHAPE, optim, TRAIN, ROOMY, probe=False)["memory"]["needed"] - size.static
    machine = replace(ROOMY, memory=used + size.static - 4096, disk=int(2.5 * size.checkpoint) + size.export)
    plan = make_plan(SHAPE, optim, TRAIN, machine, probe=False)
    assert plan["fits"] == {"memory": False, "disk": False}
    changes = {one["key"]: one["value"] for one in plan["advice"]}
    assert changes["train.keep_checkpoints"] == 1
    assert changes["optim.matrices"] == "muon"
    fewer = changes["model.num_hidden_layers"]
    cut = measure_size(with_layers(SHAPE, range(fewer)), optim, 64)
    assert cut.static <= size.static - 4096 < measure_size(with_layers(SHAPE, range(fewer + 1)), optim, 64).static


def test_no_change_is_named_where_none_would_do() -> None:
    plan = make_plan(ModelConfig.model_validate({"preset": "large"}), OPTIM, TRAIN, ROOMY)
    assert plan["fits"] == {"memory": False, "disk": False}
    assert plan["advice"] == []
