"""Dense models to a mixture of experts: each donor's MLPs become an expert of every layer, all else is the base's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trine.config.load import load_config
from trine.errors import BadInput
from trine.merge.config import ModelReference
from trine.merge.dtypes import NAMES, Array
from trine.merge.engine import Options
from trine.merge.jobs import Job
from trine.merge.models import Model, open_models
from trine.merge.names import place_of
from trine.progress import Progress, silent
from trine.surgery.config import Expert, MoeConfig
from trine.surgery.copying import build, computed, copy_of, plan_of_copies
from trine.surgery.targets import PROJECTIONS, Target, choose, lacking, output_config

_MLP = tuple(f".mlp.{one}.weight" for one in PROJECTIONS)


@dataclass(frozen=True)
class Upcycling:
    """What will be built, from headers alone."""

    config: MoeConfig
    target: Target
    models: dict[ModelReference, Model]
    layers: int
    stored: str
    """Type of the output."""
    jobs: list[Job]
    """Every tensor but routers, biases of experts and added biases of attention."""
    text: str
    resolved: dict[str, Any]

    @property
    def base(self) -> Model:
        """The base model."""
        return self.models[self.config.base_model]


def plan_moe(path: Path, allow_same: bool = False) -> Upcycling:
    """Read and check a config and the headers of its models.

    Raises BadInput with a line per mistake; naming missing tensors where a donor does not fit the target.
    """
    loaded = load_config(MoeConfig, path)
    config = loaded.config
    every = (*config.experts, *(config.shared_experts or ()))
    if not allow_same and len(config.experts) > 1 and len({str(one.source_model) for one in config.experts}) == 1:
        raise BadInput(
            f"{path}: experts: all are '{config.experts[0].source_model}', so the model would do what that one does at "
            "a higher price; --allow-same-experts builds it all the same, to be trained"
        )
    references = list(dict.fromkeys([config.base_model, *(one.source_model for one in every)]))
    if adapted := [one for one in references if one.lora is not None]:
        raise BadInput(f"{path}: '{adapted[0]}' has an adapter; merge it into the model first (passthrough)")
    models = open_models(references)
    base = models[config.base_model]
    target = choose(config, base.config, set(base.tensors))
    if missing := lacking(target, base.config, set(base.tensors)):
        raise BadInput(f"'{config.base_model}': lacks {', '.join(missing)}, which {target.name} needs")
    _check_donors(config, every, models)
    stored = NAMES[config.dtype.removeprefix("torch.")] if config.dtype else base.tensors["model.norm.weight"].dtype
    jobs = list(_jobs(config, target, models, stored))
    layers = base.config["num_hidden_layers"]
    return Upcycling(
        config, target, models, layers, stored, jobs, path.read_text(encoding="utf-8-sig"), loaded.resolved
    )


def _check_donors(config: MoeConfig, every: tuple[Expert, ...], models: dict[ModelReference, Model]) -> None:
    """Every expert has an MLP like the base's in every layer, and no other weight in it."""
    base, problems = models[config.base_model], []
    wanted = {name: info.shape for name, info in base.tensors.items() if (at := place_of(name)) and at.rest in _MLP}
    for reference in dict.fromkeys([config.base_model, *(one.source_model for one in every)]):
        tensors = models[reference].tensors
        for name, shape in wanted.items():
            if name not in tensors:
                problems.append(f"'{reference}': lacks {name}")
            elif tensors[name].shape != shape:
                problems.append(f"'{reference}': {name} is {list(tensors[name].shape)}, the base's {list(shape)}")
        for name in tensors:
            at = place_of(name)
            if at and at.rest.startswith(".mlp.") and (name not in wanted or at.rest not in _MLP):
                problems.append(f"'{reference}': has {name}, for which an expert has no place")
    if problems:
        more = [f"... and {len(problems) - 12} more"] if len(problems) > 12 else []
        raise BadInput("\n".join([*problems[:12], *more]))


def _jobs(config: MoeConfig, target: Target, models: dict[ModelReference, Model], stored: str) -> Iterator[Job]:
    """Copies in the order of the base's files, each layer's experts where its MLP was."""
    base = models[config.base_model]
    for name in base.ordered:
        at = place_of(name)
        if at is None or at.rest not in _MLP:
            yield copy_of(config.base_model, base, name, name, stored)
            continue
        projection = at.rest.split(".")[2]
        stem = f"{at.stack}{at.layer}."
        for number, one in enumerate(config.experts):
            yield _expert(one, models, name, stem + target.expert_name(number, projection), stored)
        for one in config.shared_experts or ():
            yield _expert(one, models, name, f"{stem}{target.shared_stem}.{projection}.weight", stored)


def _expert(one: Expert, models: dict[ModelReference, Model], source: str, name: str, stored: str) -> Job:
    scale = one.residual_scale if ".down_proj." in source else None
    return copy_of(one.source_model, models[one.source_model], source, name, stored, scale=scale, noise=one.noise_scale)


def make_moe(found: Upcycling, out: Path, options: Options, progress: Progress = silent) -> dict[str, Any]:
    """Build the model into the new folder `out`; the manifest's record.

    Raises as `trine.merge.engine.merge` and `trine.surgery.gates.make_gates` do.
    """
    config, target = found.config, found.target

    def make(folder: Path) -> None:
        from safetensors.numpy import save_file

        save_file(_made(found, options.seed, progress), folder / "model.safetensors", metadata={"format": "pt"})

    resolved = {**found.resolved, "seed": options.seed, "verb": "moe"}
    reference, made = computed(out, resolved, found.models, make)
    title = f"A mixture of {len(config.experts)} experts ({target.name}) from dense models"
    shape = output_config(target, config, found.base.config)
    plan = plan_of_copies(config.base_model, found.models, "moe", title, shape, found.text, resolved)
    plan.jobs = [*found.jobs, *(_from_made(reference, made, name, found.stored) for name in made.ordered)]
    plan.notes = list(_notes(found, made))
    return build(plan, out, options, progress)


def _from_made(reference: ModelReference, made: Model, name: str, stored: str) -> Job:
    return copy_of(reference, made, name, name, "F32" if name.endswith("expert_bias") else stored)


def _made(found: Upcycling, seed: int, progress: Progress) -> dict[str, Array]:
    """Routers, and what the target has that no donor gives."""
    from trine.surgery.gates import make_gates

    config, target = found.config, found.target
    gates = make_gates(config, config.experts, found.base.folder, seed, 0, progress)
    tensors = {f"model.layers.{i}.{target.router}": np.ascontiguousarray(rows) for i, rows in enumerate(gates)}
    if target.shared_gate:
        shared = make_gates(config, config.shared_experts or (), found.base.folder, seed, 1, progress)
        tensors |= {f"model.layers.{i}.{target.shared_gate}": np.ascontiguousarray(one) for i, one in enumerate(shared)}
    for i in range(found.layers):
        if target.expert_bias:
            tensors[f"model.layers.{i}.mlp.expert_bias"] = np.zeros(len(config.experts), np.float32)
        for kind in "qkv" if target.biased else "":
            name = f"model.layers.{i}.self_attn.{kind}_proj."
            if f"{name}bias" not in found.base.tensors:
                tensors[f"{name}bias"] = np.zeros(found.base.tensors[f"{name}weight"].shape[0], np.float32)
    return tensors


def _notes(found: Upcycling, made: Model) -> Iterator[str]:
    """Layers whose router rows nearly depend on each other, so that some expert will hardly be chosen."""
    from trine.weights.reader import TensorReader

    if len(found.config.experts) & (len(found.config.experts) - 1):
        yield f"{len(found.config.experts)} experts: not a power of two, which some engines want"
    reader, weak = TensorReader(made.folder), []
    for layer in range(found.layers):
        rows = reader.read(f"model.layers.{layer}.{found.target.router}").numpy()
        if np.linalg.cond(rows) > _CONDITION:
            weak.append(layer)
    if weak:
        yield f"router rows nearly alike in {len(weak)} of {found.layers} layers: the prompts may be too similar"


_CONDITION = 5.0
"""Condition number of a layer's router rows from which they are called alike, as mergekit-moe does."""
