"""A recipe and the headers of its models to a plan: every output tensor with its inputs, parameters and place.

Everything that can be wrong is found here, before a byte is merged: missing tensors, shapes, types, vocabularies, layer
ranges, parameters. Cost: the headers, and about 30 microseconds per output tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from trine.errors import BadInput
from trine.merge.catalog import Parameter, Spec
from trine.merge.config import ModelReference
from trine.merge.dtypes import NAMES, STORED, promote
from trine.merge.gather import Gather
from trine.merge.jobs import Job, Plan, Tensor
from trine.merge.models import Model
from trine.merge.names import (
    EMBEDDING,
    HEAD,
    VOCABULARY,
    comes_after,
    layer_counts,
    may_be_missing,
    module_of,
    place_of,
)
from trine.merge.reading import Part, Recipe, Slice
from trine.merge.scopes import Scope, is_fixed, lookup
from trine.merge.vocabulary import Vocabulary


def make_plan(recipe: Recipe, models: dict[ModelReference, Model], vocabulary: Vocabulary | None = None) -> Plan:
    """Plan a recipe over opened models. Raises BadInput with a line per mistake, naming tensor and model.

    `vocabulary`: the one that tables with a row per token are brought to.
    """
    donor = recipe.models[0]
    plan = Plan(recipe, models, donor, notes=list(recipe.notes))
    problems: list[str] = []
    for module, slices in recipe.modules.items():
        _Planner(plan, module, slices, problems, vocabulary).run()
    if not plan.jobs and not problems:
        problems.append(f"{models[donor].folder}: no tensor to merge")
    if problems:
        shown = problems[:20] + ([f"... and {len(problems) - 20} more"] if len(problems) > 20 else [])
        raise BadInput("\n".join(shown))
    return plan


class _Planner:
    """One module's slices to jobs."""

    def __init__(
        self,
        plan: Plan,
        module: str | None,
        slices: tuple[Slice, ...],
        problems: list[str],
        vocabulary: Vocabulary | None,
    ) -> None:
        self.plan, self.slices, self.problems, self.vocabulary = plan, slices, problems, vocabulary
        self.recipe = plan.recipe
        self.modules = [one for one in plan.recipe.modules if one not in (None, "default")]
        self.module = None if module in (None, "default") else module
        self.opened = {id(part): plan.models[part.model] for one in slices for part in one.parts}
        self.replaced = {model: opened.types for model, opened in plan.models.items() if opened.types}
        self.fixed: dict[int, dict[str, Any] | None] = {}

    def run(self) -> None:
        if self.slices[0].parts[0].layers is None:
            self._whole(self.slices[0])
        else:
            self._stacked()

    def _names(self, model: ModelReference) -> list[str]:
        """The names of this module's tensors, in the order of the model's files."""
        names = self.plan.models[model].ordered
        return [name for name in names if module_of(name, self.modules) == self.module] if self.modules else names

    def _union(self, one: Slice) -> list[str]:
        """Names of all the slice's models: the base's (or first model's) order, what only others have at the end."""
        first = one.base if one.base and any(part.model == one.base for part in one.parts) else one.parts[0].model
        names = dict.fromkeys(self._names(first))
        for part in one.parts:
            names |= dict.fromkeys(self._names(part.model))
        return list(names)

    def _whole(self, one: Slice) -> None:
        counts = {part.model: layer_counts(self._names(part.model)) for part in one.parts}
        first = counts[one.parts[0].model]
        for model, count in counts.items():
            if count != first:
                self.problems.append(
                    f"'{model}' has {_layers(count)}, '{one.parts[0].model}' {_layers(first)}; "
                    "models that are merged whole have as many layers (use slices to choose layers)"
                )
                return
        for name in self._union(one):
            place = place_of(name)
            position = _position(place.layer, first[place.stack]) if place else 0.0
            self._add(one, name, position, [name] * len(one.parts))

    def _stacked(self) -> None:
        first, last = self.slices[0], self.slices[-1]
        stacks = {stack for part in first.parts for stack in layer_counts(self._names(part.model))}
        if len(stacks) != 1:
            self.problems.append(
                f"slices: '{first.parts[0].model}' has {len(stacks)} stacks of layers ({', '.join(sorted(stacks))}); "
                "name the part that is sliced under modules"
            )
            return
        stack = stacks.pop()
        if self._out_of_range(stack):
            return
        outside = [name for name in self._union(first) if place_of(name) is None and not comes_after(name)]
        for name in outside:
            self._add(first, name, 0.0, [name] * len(first.parts))
        number = 0
        for one in self.slices:
            number = self._layers_of(one, stack, number)
        for name in (name for name in self._union(last) if place_of(name) is None and comes_after(name)):
            self._add(last, name, 0.0, [name] * len(last.parts))

    def _out_of_range(self, stack: str) -> bool:
        wrong = False
        for i, one in enumerate(self.slices):
            for part in one.parts:
                assert part.layers is not None
                count = layer_counts(self._names(part.model)).get(stack, 0)
                if part.layers[1] > count:
                    wrong = True
                    self.problems.append(
                        f"slices.{i}: layer_range {list(part.layers)} of '{part.model}', which has {count} layers"
                    )
        return wrong

    def _layers_of(self, one: Slice, stack: str, number: int) -> int:
        """The layers of one slice, from output layer `number` on; the number after them."""
        leader = next((part for part in one.parts if part.model == one.base), one.parts[0])
        by_layer: dict[int, dict[str, None]] = {}
        for part in (leader, *one.parts):
            assert part.layers is not None
            for name in self._names(part.model):
                place = place_of(name)
                if place and place.stack == stack and part.layers[0] <= place.layer < part.layers[1]:
                    by_layer.setdefault(place.layer - part.layers[0], {})[place.rest] = None
        assert leader.layers is not None
        length = leader.layers[1] - leader.layers[0]
        for layer in range(length):
            self.plan.layers.append((leader.model, leader.layers[0] + layer))
            for rest in by_layer.get(layer, {}):
                names = [f"{stack}{p.layers[0] + layer}{rest}" for p in one.parts if p.layers]
                self._add(one, f"{stack}{number + layer}{rest}", _position(layer, length), names)
        return number + length

    def _add(self, one: Slice, name: str, position: float, names: list[str]) -> None:
        """The job of output tensor `name`, which the parts call `names`."""
        named = [(part, own, self._tensor(part, own)) for part, own in zip(one.parts, names, strict=True)]
        found = [(part, tensor) for part, _, tensor in named if tensor]
        if all(tensor.name not in names for _, tensor in found):
            return  # a head that every model ties to its embedding
        if not may_be_missing(name):
            for part, own, tensor in named:
                if tensor is None:
                    self.problems.append(f"{own}: not in '{part.model}', though {found[0][1].info.file} has it")
                    return
        if self.vocabulary is not None and VOCABULARY.search(name):
            found = self._with_one_vocabulary(self.vocabulary, one, name, found)
        shapes = {tensor.shape for _, tensor in found}
        if len(shapes) > 1:
            self.problems.append(_shapes(name, [tensor for _, tensor in found]))
            return
        if not found:
            return  # refused
        self._decide(one, name, position, found, len(found) < len(named))

    def _with_one_vocabulary(
        self, vocabulary: Vocabulary, one: Slice, name: str, found: list[tuple[Part, Tensor]]
    ) -> list[tuple[Part, Tensor]]:
        """The tables, their rows those of the output's tokens."""
        try:
            held = [(tensor.model, tensor.shape[0]) for _, tensor in found]
            rows = vocabulary.rows(name, held, one.base)
        except BadInput as error:
            self.problems.append(str(error))
            return []
        if rows is None:
            return found
        tables = tuple(tensor for _, tensor in found)
        return [
            (part, replace(tensor, gather=Gather(tables, own))) for (part, tensor), own in zip(found, rows, strict=True)
        ]

    def _tensor(self, part: Part, name: str) -> Tensor | None:
        """A model's tensor; the embedding for the head of a model that ties them. None when it has neither."""
        opened = self.opened[id(part)]
        if name not in opened.tensors and HEAD.search(name):
            name = next((other for other in opened.tensors if EMBEDDING.search(other)), name)
        if name not in opened.tensors:
            return None
        return Tensor(part.model, name, opened.tensors[name], adapter=opened.adapters.get(name))

    def _decide(self, one: Slice, name: str, position: float, found: list[tuple[Part, Tensor]], partial: bool) -> None:
        """Who is base and who is merged, the parameters, and the output's type."""
        method, spec = self.recipe.method, self.recipe.spec
        base = next((tensor for part, tensor in found if spec.base != "ignored" and part.model == one.base), None)
        others = [(part, tensor) for part, tensor in found if tensor is not base]
        types = [self._type(tensor) for _, tensor in found]
        if any(kind not in STORED for kind in types):
            self._copy(name, [tensor for _, tensor in found], types)
            return
        if partial and (len(found) == 1 or not _fits(spec, base, len(others))):
            kept = next((one for one in found if one[1] is base), found[0])
            self.plan.notes.append(f"{name}: not in enough of the models, copied from '{kept[0].model}'")
            found, others, base, method = [kept], [kept], None, "passthrough"
        narrow = NAMES[self.recipe.dtype] if self.recipe.dtype else promote(types)
        out = NAMES[self.recipe.out_dtype] if self.recipe.out_dtype else narrow
        alone = method != self.recipe.method
        each, shared = (({},), {}) if alone else self._parameters(one, name, position, others)
        tensors = tuple(tensor for _, tensor in others)
        self.plan.jobs.append(Job(name, method, found[0][1].shape, out, narrow, tensors, base, each, shared))

    def _type(self, tensor: Tensor) -> str:
        """The model's own type, also of a tensor that an adapter replaces."""
        held = tensor.info.dtype
        return self.replaced.get(tensor.model, {}).get(tensor.name, held) if self.replaced else held

    def _copy(self, name: str, tensors: list[Tensor], types: list[str]) -> None:
        kinds = set(types)
        if len(kinds) > 1 or any(kind.startswith(("F8", "F6", "F4")) for kind in kinds):
            held = ", ".join(f"{t.info.dtype} in '{t.model}'" for t in tensors)
            self.problems.append(f"{name}: {held}; only {', '.join(NAMES)} are merged, convert the model first")
            return
        first = tensors[0].info
        kind = first.dtype
        self.plan.jobs.append(Job(name, "copy", first.shape, kind, kind, tuple(tensors), None, (), {}))

    def _parameters(
        self, one: Slice, name: str, position: float, others: Sequence[tuple[Part, Tensor]]
    ) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
        spec = self.recipe.spec
        each = tuple(
            self._values(part, spec.inputs, (part.parameters, *one.scopes), tensor.name, position)
            for part, tensor in others
        )
        shared = self._values(one, spec.shared, one.scopes, name, position)
        self.problems += _missing(spec, name, others, each, shared)
        if text := _impossible(self.recipe.method, each, shared):
            self.problems.append(f"{name}: {text}")
        return each, shared

    def _values(
        self, owner: Part | Slice, parameters: dict[str, Parameter], scopes: Sequence[Scope], name: str, position: float
    ) -> dict[str, Any]:
        """A tensor's parameters; those of an owner whose settings are the same for all tensors are found once."""
        if id(owner) not in self.fixed:
            same = all(is_fixed(scope) for scope in scopes)
            self.fixed[id(owner)] = lookup(parameters, scopes, name, position) if same else None
        fixed = self.fixed[id(owner)]
        return lookup(parameters, scopes, name, position) if fixed is None else fixed


def _position(layer: int, count: int) -> float:
    """Where a layer lies in its slice: 0 the first, 1 the last (and the only one)."""
    return layer / (count - 1) if count > 1 else 1.0


def _layers(counts: dict[str, int]) -> str:
    return " and ".join(f"{count} layers ({stack}*)" for stack, count in counts.items()) or "no layers"


def _fits(spec: Spec, base: Tensor | None, others: int) -> bool:
    return others >= spec.least and (base is not None or spec.base != "required")


def _shapes(name: str, tensors: list[Tensor]) -> str:
    held = ", ".join(f"{list(tensor.info.shape)} in '{tensor.model}'" for tensor in tensors)
    shapes = [tensor.info.shape for tensor in tensors]
    if (EMBEDDING.search(name) or HEAD.search(name)) and len({shape[1:] for shape in shapes}) == 1:
        return f"{name}: {held}; the vocabularies differ, choose one with tokenizer_source: union, base or a model"
    return f"{name}: {held}; tensors that are merged have one shape"


def _missing(
    spec: Spec,
    name: str,
    others: Sequence[tuple[Part, Tensor]],
    each: tuple[dict[str, Any], ...],
    shared: dict[str, Any],
) -> Iterator[str]:
    for key, parameter in spec.shared.items():
        if parameter.required and shared[key] is None:
            yield f"{name}: no value of {key}: no filter under parameters fits it and there is no default"
    for (part, tensor), values in zip(others, each, strict=True):
        for key, parameter in spec.inputs.items():
            if parameter.required and values[key] is None:
                yield f"{tensor.name}: no value of {key} for '{part.model}': no filter fits it and there is no default"


def _impossible(method: str, each: tuple[dict[str, Any], ...], shared: dict[str, Any]) -> str | None:
    """Values that a method cannot work with."""
    weights = [values["weight"] for values in each if values.get("weight") is not None]
    if method == "linear" and shared["normalize"] and weights and abs(sum(weights)) < 1e-12:
        return "the weights sum to 0, which normalize cannot divide by; set normalize: false or change a weight"
    if method == "multislerp" and shared["normalize_weights"] and len(weights) > 1 and abs(sum(weights)) < 1e-12:
        return "the weights sum to 0, which normalize_weights cannot divide by"
    if method.startswith("della"):
        for values in each:
            density, epsilon = values["density"], values["epsilon"]
            if 0 < density < 1 and (density - epsilon <= 0 or density + epsilon >= 1):
                return (
                    f"density {density:g} with epsilon {epsilon:g}; density - epsilon and + epsilon lie within (0, 1)"
                )
    return None
