"""Meters: laps add up, the peak is a speed, memory follows what is held."""

from __future__ import annotations

import gc
import time

import pytest
import torch

from trine.train.meters import StepMeter, peak_flops, used_bytes

CPU = torch.device("cpu")


def test_laps_of_one_name_add_up() -> None:
    meter, began = StepMeter(CPU), time.perf_counter()
    for name in ("a", "b", "a"):
        time.sleep(0.01)
        meter.lap(name)
    assert list(meter.seconds) == ["a", "b"]
    assert meter.seconds["a"] >= 0.02
    assert meter.seconds["b"] >= 0.01
    assert sum(meter.seconds.values()) <= time.perf_counter() - began


def test_memory_is_the_most_seen_at_a_lap() -> None:
    gc.collect()  # or what other tests left would be freed in between
    before, meter = used_bytes(CPU), StepMeter(CPU)
    held = torch.ones(256 * 2**20, dtype=torch.uint8)
    meter.lap("held")
    del held
    meter.lap("freed")
    assert meter.memory_bytes - before == pytest.approx(256 * 2**20, rel=0.1)


def test_peak_uses_the_threads_asked_for_and_leaves_the_setting() -> None:
    before, state = torch.get_num_threads(), torch.get_rng_state()
    found = peak_flops(CPU, torch.float32, 1)
    assert found > 0
    assert peak_flops(CPU, torch.float32, 1) == found
    assert torch.get_num_threads() == before
    assert torch.equal(torch.get_rng_state(), state)
