"""A model with the tokenizer of another: shared tokens keep their rows, the others' rows are approximated."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trine.errors import BadInput, TrineError
from trine.manifest import digest_of, sha256_file
from trine.merge.config import ModelPath, ModelReference
from trine.merge.engine import Options
from trine.merge.jobs import Job
from trine.merge.models import Model, checksums_in, open_models
from trine.merge.names import EMBEDDING, HEAD
from trine.progress import Progress, silent
from trine.surgery.config import TokenMethod
from trine.surgery.copying import build, computed, copy_of, plan_of_copies, stamp_of
from trine.surgery.landmarks import METHODS, Combination, Landmarks, batch_rows, combined
from trine.surgery.pieces import Pieces
from trine.surgery.tables import TYPES, block_rows, created, mapped, mean_row
from trine.surgery.token_ids import output_config, output_generation
from trine.surgery.vocabulary import Matching, Vocabulary, match, read_vocabulary
from trine.weights.index import TensorInfo


@dataclass(frozen=True)
class Transplant:
    """What will be done, from headers and tokenizers."""

    model: ModelReference
    donor: ModelReference
    models: dict[ModelReference, Model]
    method: TokenMethod
    k: int
    vocabulary: Vocabulary
    """The donor's."""
    matching: Matching
    config: dict[str, Any]
    generation: dict[str, Any] | None
    tables: dict[str, str]
    """Names of the model's embedding, and its head where it is not tied, to the donor's table for each."""
    new: list[int]
    """The donor's ids of tokens to approximate."""
    shared: list[int]
    """The donor's ids of tokens that both tables have rows of: the landmarks."""

    @property
    def record(self) -> dict[str, Any]:
        """Counts, for people and programs."""
        sources = self.matching.sources
        kept = sum(number in sources for number in self.vocabulary.by_id)
        return {
            "method": self.method,
            "k": self.k if self.method in METHODS else None,
            "tokens": len(self.vocabulary.by_id),
            "rows": self.vocabulary.size,
            "shared": kept,
            "by_bytes": self.matching.respelled,
            "roles": {role: list(pair) for role, pair in self.matching.roles.items()},
            "approximated": len(self.new),
            "mean": self.vocabulary.size - kept - len(self.new),
            "tables": list(self.tables),
        }

    def table(self, model: ModelReference, name: str) -> TensorInfo:
        """The header of a model's table."""
        return self.models[model].tensors[name]


def plan_transplant(model: str, donor: str, method: TokenMethod = "omp", k: int = 64) -> Transplant:
    """Read headers and tokenizers. Raises BadInput for a missing tokenizer, equal ones, or a k that is too large."""
    ours, theirs = (ModelReference(model=ModelPath(path=one)) for one in (model, donor))
    models = open_models([ours, theirs])
    old, new = (read_vocabulary(models[one].folder) for one in (ours, theirs))
    if old.tokens == new.tokens:
        raise BadInput(f"'{model}' and '{donor}': have the same vocabulary, so there is nothing to transplant")
    tables = _tables(models[ours], models[theirs])
    matching = match(old, new)
    rows = min(models[ours].tensors[name].shape[0] for name in tables)
    given = min(models[theirs].tensors[name].shape[0] for name in tables.values()) if method in METHODS else new.size
    sources = {number: source for number, source in matching.sources.items() if source < rows}
    matching.sources = sources
    shared = sorted(number for number in sources if number < given)
    missing = sorted(number for number in new.by_id if number not in sources and number < given)
    if method in METHODS and missing and not shared:
        raise BadInput(f"'{model}' and '{donor}': share no token that others could be made of; use --method mean")
    if method in METHODS and missing and not 1 <= k <= len(shared):
        raise BadInput(f"-k {k}: expected 1 to {len(shared)}, the tokens that '{model}' and '{donor}' share")
    config = output_config(models[ours], models[theirs], old, new, matching)
    generation = output_generation(models[ours], models[theirs], config)
    return Transplant(ours, theirs, models, method, k, new, matching, config, generation, tables, missing, shared)


def _tables(model: Model, donor: Model) -> dict[str, str]:
    """The model's embedding and head by name, each with the donor's; a tied donor's embedding is its head."""
    found = {}
    for pattern in (EMBEDDING, HEAD):
        ours, theirs = ([name for name in one.tensors if pattern.search(name)] for one in (model, donor))
        if pattern is HEAD and not ours:
            continue
        theirs = theirs or [name for name in donor.tensors if EMBEDDING.search(name)]
        for one, names in ((model, ours), (donor, theirs)):
            if len(names) != 1:
                raise BadInput(f"{one.folder}: has {len(names)} tensors named like a token embedding, expected 1")
            info = one.tensors[names[0]]
            if info.dtype not in TYPES or len(info.shape) != 2:
                raise BadInput(f"{info.file}: '{names[0]}' is {info.dtype} {list(info.shape)}, expected a float matrix")
        found[ours[0]] = theirs[0]
    biased = [
        name for name in model.tensors if HEAD.search(name.replace(".bias", ".weight")) and name.endswith(".bias")
    ]
    if biased:
        raise BadInput(f"{model.folder}: '{biased[0]}' has a number per token, which no donor's row gives")
    return found


def transplant(found: Transplant, out: Path, options: Options, progress: Progress = silent) -> dict[str, Any]:
    """Build the model into the new folder `out`; the manifest's record.

    Raises BadInput when a table holds NaN or infinity, and as `trine.merge.engine.merge` does.
    """
    tokens = sorted(found.matching.sources.items())
    resolved = {
        "verb": "tokens transplant",
        "model": str(found.model),
        "donor": str(found.donor),
        "method": found.method,
        "k": found.k,
        "rows": found.vocabulary.size,
        "tokens": digest_of([tokens, found.new]),
    }
    pieces = Pieces(out, stamp_of(resolved, found.models))
    reference, made = computed(out, resolved, found.models, lambda folder: _make(found, folder, pieces, progress))
    pieces.remove()
    title = f"{_last(found.model)} with the tokenizer of {_last(found.donor)}"
    keys = ("model", "donor", "method", "k") if found.method in METHODS else ("model", "donor", "method")
    text = "".join(f"{key}: {resolved[key]}\n" for key in keys)
    plan = plan_of_copies(found.model, found.models, "tokens transplant", title, found.config, text, resolved)
    plan.tokenizer, plan.generation = found.models[found.donor].folder, found.generation
    plan.sources = _donor_hashes(found)
    plan.jobs = [_job(found, reference, made, name) for name in found.models[found.model].ordered]
    plan.notes = list(_notes(found))
    return build(plan, out, options, progress)


def _last(model: ModelReference) -> str:
    return model.model.path.rstrip("/").rpartition("/")[2]


def _job(found: Transplant, reference: ModelReference, made: Model, name: str) -> Job:
    if name in found.tables:
        return copy_of(reference, made, name, name)
    return copy_of(found.model, found.models[found.model], name, name)


def _notes(found: Transplant) -> Iterator[str]:
    record = found.record
    yield (
        f"{record['shared']:,} of {record['tokens']:,} tokens are shared and keep their rows, "
        f"{record['approximated']:,} are approximated ({found.method})"
    )
    for role, (donor, model) in found.matching.roles.items():
        yield f"{role}: '{donor}' has the row of '{model}'"
    if record["mean"]:
        yield f"{record['mean']:,} rows that the donor has no embedding or no token for are the mean of all"


def _donor_hashes(found: Transplant) -> dict[str, str]:
    """SHA-256 of the donor's files that were read. Raises TrineError when its manifest says something else."""
    files = sorted({found.table(found.donor, name).file for name in found.tables.values()})
    known, hashes = checksums_in(files[0].parent), {}
    for path in files:
        hashes[str(path)] = sha256_file(path)
        if known.get(path.name, hashes[str(path)]) != hashes[str(path)]:
            raise TrineError(f"{path}: its SHA-256 is {hashes[str(path)]}, expected {known[path.name]}: it is damaged")
    return hashes


def _make(found: Transplant, folder: Path, pieces: Pieces, progress: Progress) -> None:
    """The tables of the output, filled in their file."""
    shapes = {}
    for name in found.tables:
        info = found.table(found.model, name)
        shapes[name] = (info.dtype, (found.vocabulary.size, info.shape[1]))
    outputs = created(folder / "model.safetensors", shapes)
    inputs = {}
    for name, other in found.tables.items():
        info, given = found.table(found.model, name), found.table(found.donor, other)
        inputs[name] = mapped(info)
        mean_row(mapped(given), given, other)
        _fill(outputs[name], inputs[name], found, mean_row(inputs[name], info, name))
    if found.method == "zero":
        for output in outputs.values():
            output[torch.tensor(found.new, dtype=torch.long)] = 0
    if found.method not in METHODS or not found.new:
        return
    sources = torch.tensor([found.matching.sources[number] for number in found.shared])
    for other in dict.fromkeys(found.tables.values()):
        names = [name for name, one in found.tables.items() if one == other]
        for ids, combination in _combinations(found, other, pieces, progress):
            for name in names:
                rows = combined(Landmarks(inputs[name], sources), combination)
                outputs[name][ids] = rows.to(outputs[name].dtype)


def _fill(out: Tensor, table: Tensor, found: Transplant, mean: Tensor) -> None:
    """Shared rows as they are, all others the mean."""
    sources = torch.full((len(out),), -1)
    pairs = torch.tensor(list(found.matching.sources.items()), dtype=torch.long).reshape(-1, 2)
    sources[pairs[:, 0]] = pairs[:, 1]
    step = block_rows(out.shape[1])
    for start in range(0, len(out), step):
        part = sources[start : start + step]
        block = mean.to(out.dtype).repeat(len(part), 1)
        block[part >= 0] = table[part[part >= 0]]
        out[start : start + step] = block


def _combinations(
    found: Transplant, other: str, pieces: Pieces, progress: Progress
) -> Iterator[tuple[Tensor, Combination]]:
    """(ids, their combinations of shared tokens in the donor's table `other`), batch by batch."""
    table = mapped(found.table(found.donor, other))
    landmarks = Landmarks(table, torch.tensor(found.shared))
    step = batch_rows(table.shape[1], found.k)
    what = f"{found.method}: tokens of {other}"
    for start in range(0, len(found.new), step):
        progress(start, len(found.new), what)
        ids = torch.tensor(found.new[start : start + step])
        find = partial(METHODS[found.method], landmarks, table[ids].float(), found.k)
        yield ids, pieces.get(f"{other}-{start}", find)
    progress(len(found.new), len(found.new), what)


def pursuit_seconds(found: Transplant) -> float:
    """About how long the search for combinations takes here, from one product of the size that it is made of."""
    if found.method not in METHODS or not found.new:
        return 0.0
    seconds = 0.0
    for other in set(found.tables.values()):
        width = found.table(found.donor, other).shape[1]
        targets, rows = torch.ones(batch_rows(width, found.k), width), torch.ones(min(4096, len(found.shared)), width)
        began = time.perf_counter()
        (targets @ rows.T).abs_().max(dim=1)
        passes = found.k if found.method == "omp" else 1
        share = len(found.new) / len(targets) * len(found.shared) / len(rows)
        seconds += (time.perf_counter() - began) * share * passes
    return seconds
