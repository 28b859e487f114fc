"""Controls to compare a selection with: each by its rule, at as many parameters, never more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.spectrum.test_select import layers, names, scanned
from trine.errors import BadInput
from trine.spectrum.choose import Options, choose
from trine.spectrum.gradients import read_gradients
from trine.spectrum.scanned import Scanned, read_scan

ATTENTION = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(8)]
UP = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(8)]


@pytest.fixture
def found(tmp_path: Path) -> Scanned:
    """Eight layers of matrices of 40 and of 120 parameters; layer 3 stands out."""
    path = tmp_path / "scan.json"
    values = [0.5, 0.6, 0.7, 9.0, 0.8, 0.9, 1.0, 1.1]
    scanned(tmp_path, layers("self_attn.q_proj", values) | layers("mlp.up_proj", values))
    record = json.loads(path.read_text())
    for name in UP:
        record["modules"][name]["shape"] = [12, 10]
    path.write_text(json.dumps(record))
    return read_scan(path)


def control(found: Scanned, rule: str, like: list[str], **rest: Any) -> list[str]:
    options = Options(rule, top=None, **{k: v for k, v in rest.items() if k != "gradients"})  # type: ignore[arg-type]
    chosen = choose(found, options, dict.fromkeys(like, 1), rest.get("gradients"))
    return [one.name for one in chosen.entries]


def parameters(found: Scanned, chosen: list[str]) -> int:
    return sum(one.parameters or 0 for one in found.entries if one.name in chosen)


def test_each_rule_ranks_by_its_own_and_trains_as_many_parameters(found: Scanned) -> None:
    best = names(found, top=25.0)
    assert set(best) == {ATTENTION[3], ATTENTION[7], UP[3], UP[7]}
    assert set(control(found, "lowest-snr", best)) == {*ATTENTION[:2], *UP[:2]}
    assert set(control(found, "top-layers", best)) == {*ATTENTION[6:], *UP[6:]}
    gradients = {name: float(i in (2, 5)) + i / 100 for i in range(8) for name in (ATTENTION[i], UP[i])}
    assert set(control(found, "gradient-norm", best, gradients=gradients)) == {
        name for i in (2, 5) for name in (ATTENTION[i], UP[i])
    }
    drawn = [control(found, "random", best, seed=seed) for seed in range(20)]
    assert drawn[0] == control(found, "random", best, seed=0)
    assert len({tuple(one) for one in drawn}) > 10
    assert {name for one in drawn for name in one} == {*ATTENTION, *UP}
    assert {parameters(found, one) for one in drawn} == {parameters(found, best)} == {320}


def test_the_closest_number_of_parameters_that_is_not_more(found: Scanned) -> None:
    for like in ([UP[0]], [UP[0], ATTENTION[0]], [*ATTENTION[:5], UP[1]], [*UP, *ATTENTION[:1]]):
        wanted = parameters(found, like)
        for rule in ("random", "lowest-snr"):
            assert 0 <= wanted - parameters(found, control(found, rule, like)) < 40, (rule, like)
    chosen = control(found, "top-layers", [UP[0], UP[1], *ATTENTION[:3]])
    assert chosen == [*ATTENTION[5:], *UP[6:]]


def test_top_layers_go_no_lower_to_fill_up(found: Scanned) -> None:
    chosen = control(found, "top-layers", [UP[0], *ATTENTION[:4]])
    assert set(chosen) == {ATTENTION[7], UP[7], ATTENTION[6]}


def test_experts_of_a_layer_are_one(tmp_path: Path) -> None:
    snrs: dict[str, float | None] = {
        f"model.layers.{i}.mlp.experts.{e}.up_proj.weight": 1.0 + i for i in range(4) for e in range(3)
    }
    found = scanned(tmp_path, snrs)
    chosen = control(found, "random", list(snrs)[:6], seed=3)
    assert len(chosen) == 6
    assert {len([one for one in chosen if f"layers.{i}." in one]) for i in range(4)} == {0, 3}
    gradients = {name: 1.0 if ".experts.1." in name and "layers.2." in name else 0.1 for name in snrs}
    assert {one.split(".")[2] for one in control(found, "gradient-norm", list(snrs)[:3], gradients=gradients)} == {"2"}


def test_what_does_not_fit_is_refused(found: Scanned, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"the scan has no 'model.layers.9.*did you mean"):
        control(found, "random", ["model.layers.9.mlp.up_proj.weight"])
    with pytest.raises(BadInput, match=r"--gradients gives no norm for 'model.layers.0.self_attn.q_proj.weight'"):
        control(found, "gradient-norm", UP, gradients=dict.fromkeys(UP, 1.0))
    path = tmp_path / "g.json"
    for text in ("[]", "{", '{"meta": {"format": "x"}, "modules": {}}', '{"meta": {"format": "trine-gradients-1"}}'):
        path.write_text(text)
        with pytest.raises(BadInput, match="expected a file of `trine spectrum gradients`"):
            read_gradients(path)
    path.write_text('{"meta": {"format": "trine-gradients-1"}, "modules": {"a": {"norm": -1}}}')
    with pytest.raises(BadInput, match="the norm of 'a' is -1"):
        read_gradients(path)
