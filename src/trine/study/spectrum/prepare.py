"""What every run of a study needs: models, tokens, scans, selections, and what models reach before they are tuned.

Each stage is a folder or a file of its own, made once; stopped at any moment, the next call goes on. What runs and
pages need to know of a stage is kept beside the page, since models are too large to be.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trine.chain import Watcher, claimed, run_chain, write_json
from trine.data.shards import TokenShards
from trine.errors import BadInput
from trine.manifest import digest_of, read_manifest, write_file
from trine.model.shape import build, read_shape
from trine.spectrum.choose import Chosen, Options, choose
from trine.spectrum.gradients import read_gradients
from trine.spectrum.measure import Measure
from trine.spectrum.scan import scan
from trine.spectrum.scanned import Scanned, read_scan
from trine.spectrum.selection import summary, text
from trine.study.spectrum.config import StartConfig, TextConfig, WayConfig
from trine.study.spectrum.items import write_items
from trine.study.spectrum.layout import Cell, Layout
from trine.train.config import LoraConfig
from trine.train.gradients import measure_gradients
from trine.train.lora import resolve_targets
from trine.train.metrics import read_metrics
from trine.train.scoring import score_start
from trine.train.setup import folder_digest
from trine.weights.selected import read_selection


def prepare(layout: Layout, watch: Watcher) -> None:
    """Every stage of every cell, and `prepared-*.json` of each. Raises what the stages raise."""
    run_chain(layout.pretraining_data(), layout.pretraining, watch)
    for model in layout.config.models:
        _pretrain(layout, model, watch)
    for data in layout.config.data:
        _tokens(layout, data, watch)
    for cell in layout.cells:
        _prepare_cell(layout, cell, watch)


def _pretrain(layout: Layout, model: StartConfig, watch: Watcher) -> None:
    run = layout.start_run(model)
    if (run / "model").is_dir():
        with claimed(layout.start(model), run):
            read_manifest(run / "model")
    else:
        watch.on_event(f"pretraining {model.name}")
        run_chain(layout.start(model), run, watch)
    measures: set[Measure] = {arm.measure for arm in layout.config.arms}
    for measure in measures:
        path = layout.scan(model, measure)
        path.parent.mkdir(parents=True, exist_ok=True)
        scan(str(run / "model"), path, measure, watch.progress)


def _tokens(layout: Layout, data: TextConfig, watch: Watcher) -> None:
    texts = layout.texts(data)
    if data.items is not None and not texts.exists():
        write_items(Path(data.items).expanduser(), data.heldout_fraction, texts, watch.progress)
    run_chain(layout.tuning_data(data), layout.data_run(data), watch)


def _prepare_cell(layout: Layout, cell: Cell, watch: Watcher) -> None:
    folder, config = layout.folder(cell), layout.tuning(cell)
    folder.mkdir(parents=True, exist_ok=True)
    assert config.train is not None
    assert config.train.tokens is not None
    tokens, before, gradients = Path(config.train.tokens), folder / "before.json", folder / "gradients.json"
    start = digest_of(folder_digest(layout.start_run(cell.model) / "model"))[:16]
    if not before.exists():
        watch.on_event(f"scoring {cell.model.name} on {cell.data.name}, as it is")
        write_json(before, score_start(config.optim, config.train, tokens))
    if not gradients.exists() and any(arm.rule == "gradient-norm" for arm in layout.config.arms):
        count = layout.config.gradient_batches
        write_json(gradients, measure_gradients(config.optim, config.train, tokens, count, watch.progress))
    arms = _selections(layout, cell, gradients)
    known = (layout.read_prepared(cell) or {"before": {}})["before"]
    scores = known | {start: _read(before)}
    layout.kept.mkdir(parents=True, exist_ok=True)
    write_json(layout.prepared(cell), _about(layout, cell, scores, arms))


def _selections(layout: Layout, cell: Cell, gradients: Path) -> dict[str, Any]:
    """Write what each arm trains; by arm, parameters and how it was chosen."""
    measures = {arm.measure for arm in layout.config.arms}
    scans = {measure: read_scan(layout.scan(cell.model, measure)) for measure in measures}
    found = dict[str, Any]()
    for arm in sorted(layout.config.arms, key=lambda arm: arm.like is not None):
        if arm.lora:
            found[arm.name] = _rank(layout, cell, found[arm.like or ""]["parameters"])
        elif arm.top is not None or arm.rule is not None:
            seeds = layout.config.seeds if arm.rule == "random" else (0,)
            made = [_select(layout, cell, arm, seed, scans[arm.measure], gradients) for seed in seeds]
            found[arm.name] = {
                "parameters": max(one["parameters"] for one in made),
                "of_parameters": made[0]["of_parameters"],
                "lowest_layer": min(one["lowest_layer"] for one in made),
                "notes": list(dict.fromkeys(note for one in made for note in one["notes"])),
            }
    return found


def _select(layout: Layout, cell: Cell, arm: WayConfig, seed: int, scanned: Scanned, gradients: Path) -> dict[str, Any]:
    """The selection of an arm, by the scores there are: equal ones in the order of the scan, and matrices without one
    left frozen, both of which the notes tell."""
    options = Options(arm.rule or "default", seed, arm.top, ties="order", unscored="freeze")
    like = read_selection(layout.selection(cell, layout.reference(arm), seed)) if arm.like else None
    norms = read_gradients(gradients) if arm.rule == "gradient-norm" else None
    chosen: Chosen = choose(scanned, options, like, norms)
    write_file(layout.selection(cell, arm, seed), text(scanned, chosen, "trine", options))
    return {"notes": chosen.notes, **summary(scanned, chosen)}


def _rank(layout: Layout, cell: Cell, parameters: int) -> dict[str, Any]:
    """The rank at which LoRA of all linear layers comes nearest to so many parameters."""
    skeleton = build(read_shape(layout.start_run(cell.model) / "model"), "meta")
    layers: list[Any] = [skeleton.get_submodule(name) for name in resolve_targets(LoraConfig(), skeleton)]
    each = sum(one.in_features + one.out_features for one in layers)
    rank = max(1, round(parameters / each))
    return {"parameters": rank * each, "rank": rank, "layers": len(layers), "notes": []}


def _about(layout: Layout, cell: Cell, before: dict[str, Any], arms: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a cell beside its runs; `before` are the scores of each training of the model, by its weights."""
    run, tokens = layout.start_run(cell.model), layout.data_run(cell.data) / "tokens"
    steps, ledger = read_metrics(run / "metrics.jsonl"), _ledger(tokens)
    if not steps:
        raise BadInput(f"{run}: has no metrics.jsonl; remove the folder, and it is trained again")
    shards, shape = TokenShards(tokens), read_shape(run / "model")
    return {
        "model": {
            "name": cell.model.name,
            "parameters": sum(one.numel() for one in build(shape, "meta").parameters()),
            "tokens": steps[-1]["tokens"],
            "bits_per_byte": steps[-1].get("bits_per_byte"),
        },
        "data": {name: {"tokens": one.tokens, "documents": one.documents} for name, one in shards.sets.items()},
        "sources": [{key: one.get(key) for key in ("name", "set", "licence", "documents")} for one in ledger],
        "before": before,
        "arms": arms,
    }


def _ledger(tokens: Path) -> list[dict[str, Any]]:
    return _read(tokens / "ledger.json")["sources"]


def _read(path: Path) -> Any:
    return json.loads(path.read_text())
