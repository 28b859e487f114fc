"""A config file to a recipe: the one form that planning reads, with every mistake said at its line.

`models`, `slices` and `modules` become modules of slices of sources; the base model is among the sources.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trine.config.explain import dotted
from trine.config.load import load_config
from trine.config.yaml import KeyPath, Problem, read_yaml, refusal
from trine.merge.catalog import SPECS, Spec
from trine.merge.chat import wrong_template
from trine.merge.config import InputModel, MergeConfig, ModelReference, Module, OutputSlice, Tokenizer
from trine.merge.scopes import Scope, problems


@dataclass(frozen=True)
class Part:
    """What one model gives to a slice: all its layers (`layers` None) or [first, last)."""

    model: ModelReference
    layers: tuple[int, int] | None
    parameters: Scope


@dataclass(frozen=True)
class Slice:
    """Layers merged from as many layers of each part."""

    parts: tuple[Part, ...]
    base: ModelReference | None
    scopes: tuple[Scope, ...]
    """Parameters of the slice, its module and the config."""


@dataclass(frozen=True)
class Recipe:
    """A config, checked and in one form."""

    method: str
    spec: Spec
    modules: dict[str | None, tuple[Slice, ...]]
    """By name; None stands for the whole model."""
    base: ModelReference | None
    dtype: str | None
    out_dtype: str | None
    tokenizer: Tokenizer | None
    chat_template: str | None
    notes: tuple[str, ...]
    """What is accepted and changes nothing."""
    resolved: dict[str, Any]
    text: str
    """The config file as it was."""

    @property
    def models(self) -> list[ModelReference]:
        """Each model once: the base first, then in the order of the config."""
        found = dict.fromkeys([self.base] if self.base else [])
        for slices in self.modules.values():
            for one in slices:
                found |= dict.fromkeys([*([one.base] if one.base else []), *(part.model for part in one.parts)])
        return list(found)


def load_recipe(path: Path) -> Recipe:
    """Read and check a merge config. Raises BadInput with one line per mistake: file, line, what was expected."""
    loaded = load_config(MergeConfig, path)
    config, lines = loaded.config, read_yaml(path).lines
    found = [Problem(_where(path, lines, at), at, f"{dotted(at)}: {text}") for at, text in _check(config)]
    if found:
        raise refusal(sorted(found, key=lambda one: int(one.where.rpartition(":")[2])))
    tokenizer = config.tokenizer
    if config.tokenizer_source is not None:
        tokenizer = Tokenizer(source=config.tokenizer_source)
    return Recipe(
        config.merge_method,
        SPECS[config.merge_method],
        _modules(config),
        config.base_model,
        _plain(config.dtype),
        _plain(config.out_dtype),
        tokenizer,
        config.chat_template,
        tuple(_notes(config)),
        loaded.resolved,
        path.read_text(encoding="utf-8-sig"),
    )


def _plain(dtype: str | None) -> str | None:
    return dtype.removeprefix("torch.") if dtype else None


def _where(path: Path, lines: dict[KeyPath, int], at: KeyPath) -> str:
    line = next((lines[at[:end]] for end in range(len(at), -1, -1) if at[:end] in lines), 1)
    return f"{path}:{line}"


def _modules(config: MergeConfig) -> dict[str | None, tuple[Slice, ...]]:
    if config.modules is None:
        whole = Module(models=config.models, slices=config.slices)
        return {None: _slices(whole, config.base_model, (config.parameters,))}
    return {
        name: _slices(module, config.base_model, (module.parameters, config.parameters))
        for name, module in config.modules.items()
    }


def _slices(module: Module, base: ModelReference | None, scopes: tuple[Scope, ...]) -> tuple[Slice, ...]:
    if module.models is not None:
        parts = tuple(Part(one.model, None, one.parameters) for one in module.models)
        return (Slice(_with_base(parts, base), base, scopes),)
    assert module.slices is not None
    return tuple(
        Slice(
            tuple(Part(part.model, part.layer_range, part.parameters) for part in one.sources),
            one.base_model or base,
            (one.parameters, *scopes),
        )
        for one in module.slices
    )


def _with_base(parts: tuple[Part, ...], base: ModelReference | None) -> tuple[Part, ...]:
    """`models` with the base model at the end, unless it is there."""
    if base is None or any(part.model == base for part in parts):
        return parts
    return (*parts, Part(base, None, None))


_Found = Iterator[tuple[KeyPath, str]]


def _check(config: MergeConfig) -> _Found:
    """What the models of pydantic cannot see: keys that exclude each other, roles, parameters, ranges."""
    if wrong := list(_one_of(config, ("models", "slices", "modules"), ())):
        yield from wrong
        return
    if config.tokenizer is not None and config.tokenizer_source is not None:
        yield ("tokenizer_source",), "given beside `tokenizer`, which says the same in its `source`; keep one"
    if config.chat_template is not None and (text := wrong_template(config.chat_template)):
        yield ("chat_template",), text
    spec, method = SPECS[config.merge_method], config.merge_method
    yield from problems(config.parameters, spec, method, ("parameters",))
    for path, module in _modules_at(config):
        if path:
            yield from _one_of(module, ("models", "slices"), path)
            yield from problems(module.parameters, spec, method, (*path, "parameters"))
        wider = [config.parameters] if not path else [module.parameters, config.parameters]
        if module.models is not None:
            yield from _entries(module.models, config.base_model, spec, config, (*path, "models"), wider)
        for number, one in enumerate(module.slices or ()):
            yield from _slice(one, config, spec, (*path, "slices", number), wider)


def _modules_at(config: MergeConfig) -> Iterator[tuple[KeyPath, Module]]:
    if config.modules is None:
        yield (), Module(models=config.models, slices=config.slices)
        return
    for name, module in config.modules.items():
        yield ("modules", name), module


def _one_of(section: MergeConfig | Module, keys: Sequence[str], path: KeyPath) -> _Found:
    given = [key for key in keys if getattr(section, key) is not None]
    if not given:
        yield path, f"none of {', '.join(keys)}; expected one of them"
    for key in given[1:]:
        yield (*path, key), f"given beside `{given[0]}`; keep one of {', '.join(keys)}"


def _slice(one: OutputSlice, config: MergeConfig, spec: Spec, path: KeyPath, wider: list[Scope]) -> _Found:
    yield from problems(one.parameters, spec, config.merge_method, (*path, "parameters"))
    lengths = []
    for number, source in enumerate(one.sources):
        first, end = source.layer_range
        lengths.append(end - first)
        at = (*path, "sources", number, "layer_range")
        if end < first:
            yield at, f"got [{first}, {end}]; the end comes before the beginning"
        elif lengths[-1] != lengths[0]:
            yield at, f"{lengths[-1]} layers, where the slice's first source has {lengths[0]}; they must be as many"
    base = one.base_model or config.base_model
    yield from _entries(one.sources, base, spec, config, (*path, "sources"), [one.parameters, *wider])


def _entries(
    entries: Sequence[Any],
    base: ModelReference | None,
    spec: Spec,
    config: MergeConfig,
    path: KeyPath,
    wider: list[Scope],
) -> _Found:
    """The models of one slice: each one's parameters; when these are in order, what is missing."""
    method = config.merge_method
    if spec.base == "required" and base is None:
        yield (), f"base_model: missing; {method} takes differences from it"
        return
    wrong = list(_duplicates(entries, path))
    for number, one in enumerate(entries):
        wrong += problems(one.parameters, spec, method, (*path, number, "parameters"))
    yield from wrong or _needs(entries, base, spec, method, path, wider)


def _duplicates(entries: Sequence[Any], path: KeyPath) -> _Found:
    seen: set[Any] = set()
    for number, one in enumerate(entries):
        key = (one.model, getattr(one, "layer_range", None))
        if key in seen:
            yield (*path, number), f"'{one.model}' is given twice; give it once with the sum of both weights"
        seen.add(key)


def _needs(
    entries: Sequence[Any], base: ModelReference | None, spec: Spec, method: str, path: KeyPath, wider: list[Scope]
) -> _Found:
    """The number of models, the base among the sources of a slice, and required parameters."""
    listed = base is not None and any(one.model == base for one in entries)
    others = [one for one in entries if spec.base == "ignored" or one.model != base]
    added = spec.base == "ignored" and base is not None and not listed and isinstance(entries[0], InputModel)
    if spec.base == "required" and not listed and not isinstance(entries[0], InputModel):
        yield path, f"the base model '{base}' is not among the sources; {method} needs its layers, add a source for it"
    count = len(others) + added
    if count < spec.least or (spec.most is not None and count > spec.most):
        need = f"exactly {spec.least}" if spec.least == spec.most else f"at least {spec.least}"
        beside = " beside the base model" if spec.base != "ignored" and base is not None else ""
        yield path, f"{count} model(s){beside}; {method} takes {need}"
    for name in (name for name, parameter in spec.shared.items() if parameter.required):
        if not _given(name, wider):
            yield path, f"parameter {name} of {method} is missing; add it under parameters"
    for name in (name for name, parameter in spec.inputs.items() if parameter.required):
        for number, one in enumerate(entries):
            if one in others and not _given(name, [one.parameters, *wider]):
                text = f"parameter {name} of {method} is missing for '{one.model}'; add it under parameters"
                yield (*path, number), text
        if added and not _given(name, wider):
            yield ("base_model",), f"'{base}' is merged too by {method} and has no {name}; list it under models"


def _given(name: str, scopes: Sequence[Scope]) -> bool:
    return any(name in (scope or {}) for scope in scopes)


def _notes(config: MergeConfig) -> Iterator[str]:
    """Keys that are accepted and change nothing, as in mergekit."""
    for _, module in _modules_at(config):
        for one in module.slices or ():
            if one.residual_weight is not None:
                yield "residual_weight changes nothing, as in mergekit"
            if any(part.model.override_architecture for part in one.sources):
                yield "override_architecture changes nothing: tensors are matched by name"
