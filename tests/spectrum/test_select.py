"""Choosing from scans: the published file reproduced, quotas, budgets, ties and what has no score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from trine.errors import BadInput
from trine.spectrum.choose import Options, choose
from trine.spectrum.matrices import place
from trine.spectrum.scanned import Scanned, read_scan
from trine.spectrum.selection import choose_published, published_text, text

NAMED = "snr_results_meta-llama-Meta-Llama-3.1-8B-Instruct"


def scanned(tmp_path: Path, snrs: dict[str, float | None], **meta: Any) -> Scanned:
    modules: dict[str, dict[str, Any]] = {
        name: {"type": place(name).type, "shape": [4, 10], "snr": snr} for name, snr in snrs.items()
    }
    path = tmp_path / "scan.json"
    path.write_text(
        json.dumps({"meta": {"model": "m", "measure": "calibrated", "problems": {}} | meta, "modules": modules})
    )
    return read_scan(path)


def layers(kind: str, snrs: list[float]) -> dict[str, float | None]:
    return {f"model.layers.{i}.{kind}.weight": snr for i, snr in enumerate(snrs)}


def names(found: Scanned, **options: Any) -> list[str]:
    return [one.name for one in choose(found, Options(**options)).entries]


def test_the_published_file_from_its_json(trine_data: Path) -> None:
    found = read_scan(trine_data / "snr_published" / f"{NAMED}.json")
    expected = (trine_data / "snr_published" / f"{NAMED}_unfrozenparameters_50percent.yaml").read_text()
    chosen = choose_published(found, 50)
    assert published_text(found, chosen) == expected
    assert any("input_layernorm: 32 of 32 have SNR inf" in note for note in chosen.notes)
    with pytest.raises(BadInput, match=r"cannot be ranked.*--rule published"):
        choose(found, Options())


def test_every_published_scan_is_read(trine_data: Path) -> None:
    for path in sorted((trine_data / "snr_published").glob("*.json")):
        found = read_scan(path)
        raw = json.loads(path.read_text())
        nested = "snr" not in next(iter(raw.values()))
        assert len(found.entries) == (sum(map(len, raw.values())) if nested else len(raw))
        assert choose_published(found, 25).entries


def test_the_best_of_each_type_and_one_at_least(tmp_path: Path) -> None:
    found = scanned(tmp_path, layers("self_attn.q_proj", [1, 4, 2, 3]) | layers("mlp.up_proj", [0.3, 0.1]))
    assert names(found, top=50.0) == [
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.3.self_attn.q_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
    ]
    assert len(names(found, top=1.0)) == 2
    assert names(found, top=25.0, everywhere=True) == ["model.layers.1.self_attn.q_proj.weight"]
    assert names(found, top=100.0, from_layer=2) == [f"model.layers.{i}.self_attn.q_proj.weight" for i in (2, 3)]


def test_a_budget_is_kept(tmp_path: Path) -> None:
    found = scanned(tmp_path, layers("self_attn.q_proj", [1, 4, 2, 3]) | layers("mlp.up_proj", [0.3, 0.1]))
    assert len(names(found, top=None, parameters=159)) == 3
    assert len(names(found, top=None, bytes=14 * 160)) == 4
    with pytest.raises(BadInput, match="needs 80"):
        names(found, top=None, parameters=79)


def test_embeddings_and_head_are_in_or_out(tmp_path: Path) -> None:
    ends = {"model.embed_tokens.weight": 9.0, "lm_head.weight": None}
    found = scanned(tmp_path, ends | layers("mlp.up_proj", [2, 1]))
    assert names(found) == ["model.layers.0.mlp.up_proj.weight"]
    assert names(found, embeddings=True, head=True) == [*ends, "model.layers.0.mlp.up_proj.weight"]
    with pytest.raises(BadInput, match="keep one"):
        names(found, embeddings=True, from_layer=1)


def test_experts_together_and_separate(tmp_path: Path) -> None:
    snrs = {(0, 0): 9.0, (0, 1): 1.0, (1, 0): 6.0, (1, 1): 6.5}
    found = scanned(tmp_path, {f"model.layers.{i}.mlp.experts.{e}.up_proj.weight": v for (i, e), v in snrs.items()})
    assert names(found, top=50.0) == [f"model.layers.1.mlp.experts.{e}.up_proj.weight" for e in (0, 1)]
    assert names(found, top=25.0, experts="separate") == ["model.layers.0.mlp.experts.0.up_proj.weight"]


def test_ties_and_missing_scores_are_refused_by_name(tmp_path: Path) -> None:
    tied = scanned(tmp_path, layers("mlp.up_proj", [2, 2, 2, 1]))
    with pytest.raises(BadInput, match=r"mlp.up_proj: 3 of 4 have SNR 2, 2 are to be chosen"):
        names(tied, top=50.0)
    assert names(tied, top=50.0, ties="order") == [f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1)]
    assert len(names(tied, top=75.0)) == 3
    name = "model.layers.2.mlp.up_proj.weight"
    missing = scanned(tmp_path, layers("mlp.up_proj", [3, 2]) | {name: None}, problems={name: "all zero"})
    with pytest.raises(BadInput, match=rf"{name}: all zero"):
        names(missing)
    assert names(missing, top=100.0, unscored="freeze") == [f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1)]


def test_each_format_names_the_parameters(tmp_path: Path) -> None:
    found = scanned(tmp_path, layers("mlp.up_proj", [2, 1]))
    options = Options()
    chosen = choose(found, options)
    name = "model.layers.0.mlp.up_proj.weight"
    assert text(found, chosen, "plain", options) == f"{name}\n"
    own = YAML(typ="safe").load(text(found, chosen, "trine", options))
    assert (own["train"], own["parameters"], own["of_parameters"]) == ([name], 40, 80)
    axolotl = YAML(typ="safe").load(text(found, chosen, "axolotl", options))
    assert axolotl == {"unfrozen_parameters": [r"^model\.layers\.0\.mlp\.up_proj\.weight$"]}
