"""Entries of a scan to those to train: the best of each type, or of all, by a percentage or within a budget.

Best by SNR, or by a control's rule, so that what SNR is good for can be told at equal cost.
"""

from __future__ import annotations

import math
import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from trine.errors import BadInput, nearest
from trine.spectrum.scanned import Entry, Scanned

GRADIENT_BYTES, STATE_BYTES = 2, 12
BYTES_PER_PARAMETER = GRADIENT_BYTES + STATE_BYTES
"""What training adds to a bf16 weight: gradient in bf16; master weight and AdamW's two moments in fp32."""
Rule = Literal["default", "random", "top-layers", "lowest-snr", "gradient-norm"]
"""By SNR, highest first; or a control: by a seeded draw, from the last layer down, by SNR from the lowest up, by the
gradient's norm."""
_REPORTED = 8
_EMBEDDING = re.compile(r"(^|\.)(embed\w*|\w*embeddings?|wte|wpe)$")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output|score)$")


@dataclass(frozen=True)
class Options:
    """What to choose; one of `top` (per cent), `parameters` and `bytes` is given."""

    rule: Rule = "default"
    seed: int = 0
    """Of the rule random."""
    top: float | None = 25.0
    parameters: int | None = None
    bytes: int | None = None
    everywhere: bool = False
    """Rank all types together."""
    embeddings: bool = False
    head: bool = False
    from_layer: int | None = None
    experts: Literal["together", "separate"] = "together"
    ties: Literal["refuse", "order"] = "refuse"
    unscored: Literal["refuse", "freeze"] = "refuse"


@dataclass(frozen=True)
class Unit:
    """What is chosen or left as one: a matrix, or a layer's experts of one kind."""

    type: str
    score: float
    """SNR, or what the rule ranks by; the highest is best."""
    members: tuple[Entry, ...]

    @property
    def parameters(self) -> int:
        """Elements; 0 where the scan gives no shapes."""
        return sum(one.parameters or 0 for one in self.members)


@dataclass(frozen=True)
class Chosen:
    """The entries to train, in the order of the scan, and what to tell about the choice."""

    entries: tuple[Entry, ...]
    notes: tuple[str, ...]


def choose(
    scanned: Scanned,
    options: Options,
    like: Mapping[str, int] | None = None,
    gradients: Mapping[str, float] | None = None,
) -> Chosen:
    """The choice by `options`; with `like`, names of another choice, as many parameters as that trains, or less.

    `gradients` are the norms for the rule gradient-norm. Raises BadInput for scores that are not finite and for ties at
    the cut, naming them, unless told otherwise.
    """
    budget = _budget(scanned, options) if like is None else like_parameters(scanned, like)
    always = [one for one in scanned.entries if _always(one, options)]
    ranked = [one for one in scanned.entries if not _always(one, options) and _eligible(one, options)]
    if not ranked:
        raise BadInput(f"{scanned.path}: nothing to choose from; {len(scanned.entries)} matrices, none eligible")
    scored = options.rule in ("default", "lowest-snr")
    finite, notes = _finite(scanned, ranked, options) if scored else (ranked, list[str]())
    groups = _groups(_rescored(scanned, _units(finite, options), options, gradients))
    if options.everywhere or options.rule == "top-layers":
        groups = {"all types": sorted((unit for group in groups.values() for unit in group), key=_best_first)}
    if like is not None:
        assert budget is not None
        room = budget - sum(one.parameters or 0 for one in always)
        units = _nearest(groups, room, options.rule == "top-layers")
        return Chosen(_entries(scanned, always, units), tuple(notes))
    if budget is None:
        assert options.top is not None
        counts = {name: max(1, int(len(group) * options.top / 100)) for name, group in groups.items()}
    else:
        counts = _fill(groups, budget - sum(one.parameters or 0 for one in always))
    notes += _ties(scanned, groups, counts, options)
    units = [unit for name, group in groups.items() for unit in group[: counts[name]]]
    return Chosen(_entries(scanned, always, units), tuple(notes))


def _entries(scanned: Scanned, always: Sequence[Entry], units: Sequence[Unit]) -> tuple[Entry, ...]:
    """What is chosen, in the order of the scan."""
    taken = {one.name for unit in units for one in unit.members} | {one.name for one in always}
    return tuple(one for one in scanned.entries if one.name in taken)


def like_parameters(scanned: Scanned, like: Mapping[str, int]) -> int:
    """Parameters of the scanned matrices that another choice names. Raises BadInput for a name the scan has not."""
    held = {one.name: one.parameters for one in scanned.entries}
    for name in like:
        if name not in held:
            raise BadInput(f"{scanned.path}: the scan has no '{name}', which --like names{nearest(name, held)}")
    if any(held[name] is None for name in like):
        raise BadInput(f"{scanned.path}: a published scan gives no shapes, so --like cannot be kept; use --top")
    return sum(held[name] or 0 for name in like)


def _budget(scanned: Scanned, options: Options) -> int | None:
    """Parameters that may be trained, or None for a percentage."""
    if options.embeddings and options.from_layer is not None:
        raise BadInput("--from-layer stops backpropagation early, --embeddings in needs all of it; keep one")
    if options.top is not None:
        if not 0 < options.top <= 100:
            raise BadInput(f"--top {options.top:g}: expected a percentage, more than 0 and at most 100")
        return None
    if any(one.parameters is None for one in scanned.entries):
        raise BadInput(f"{scanned.path}: a published scan gives no shapes, so a budget cannot be kept; use --top")
    if options.parameters is not None:
        return options.parameters
    assert options.bytes is not None
    return options.bytes // BYTES_PER_PARAMETER


def _always(entry: Entry, options: Options) -> bool:
    return entry.layer is None and bool(
        (options.embeddings and _EMBEDDING.search(entry.type)) or (options.head and _HEAD.search(entry.type))
    )


def _eligible(entry: Entry, options: Options) -> bool:
    if entry.layer is None:
        outside = _EMBEDDING.search(entry.type) or _HEAD.search(entry.type)
        return not outside and options.from_layer is None
    return options.from_layer is None or entry.layer >= options.from_layer


def _finite(scanned: Scanned, entries: Sequence[Entry], options: Options) -> tuple[list[Entry], list[str]]:
    """Entries that can be ranked."""
    wrong = [one for one in entries if not math.isfinite(one.snr)]
    lines = [f"{one.name}: {one.why or f'SNR {one.snr}'}" for one in wrong[:_REPORTED]]
    if len(wrong) > _REPORTED:
        lines.append(f"and {len(wrong) - _REPORTED:,} more")
    if not wrong:
        return list(entries), []
    if options.unscored == "freeze":
        return [one for one in entries if math.isfinite(one.snr)], [f"left frozen, {line}" for line in lines]
    fix = "--rule published chooses as the published procedure did" if scanned.published else "scan again"
    raise BadInput(
        f"{scanned.path}: {len(wrong):,} of {len(entries):,} matrices have no finite SNR and cannot be ranked; "
        f"{fix}, or leave them frozen by --unscored freeze\n" + "\n".join(lines)
    )


def _units(entries: Sequence[Entry], options: Options) -> list[Unit]:
    """Experts together: one unit per layer and kind, its SNR the mean."""
    gathered: dict[tuple[str, int | str | None], list[Entry]] = defaultdict(list)
    for one in entries:
        together = one.expert is not None and options.experts == "together"
        kind = one.type.replace(f"experts.{one.expert}.", "experts.")
        gathered[(kind, one.layer) if together else (kind, one.name)].append(one)
    return [
        Unit(kind, math.fsum(one.snr for one in members) / len(members), tuple(members))
        for (kind, _), members in gathered.items()
    ]


def _rescored(
    scanned: Scanned, units: Sequence[Unit], options: Options, gradients: Mapping[str, float] | None
) -> list[Unit]:
    """The units with what the rule ranks them by instead of their SNR."""
    match options.rule:
        case "default":
            return list(units)
        case "lowest-snr":
            return [replace(unit, score=-unit.score) for unit in units]
        case "top-layers":
            layers = ((unit.members[0].layer, unit) for unit in units)
            return [replace(unit, score=-1 if layer is None else layer) for layer, unit in layers]
        case "random":
            drawn = ((random.Random(f"{options.seed}/{unit.members[0].name}").random(), unit) for unit in units)
            return [replace(unit, score=score) for score, unit in drawn]
        case "gradient-norm":
            return [replace(unit, score=_gradient(scanned, unit, gradients or {})) for unit in units]


def _gradient(scanned: Scanned, unit: Unit, gradients: Mapping[str, float]) -> float:
    """The norm of a unit's gradient."""
    for one in unit.members:
        if one.name not in gradients:
            close = nearest(one.name, gradients)
            raise BadInput(f"{scanned.path}: --gradients gives no norm for '{one.name}'{close}; measure the same model")
    return math.hypot(*(gradients[one.name] for one in unit.members))


def _best_first(unit: Unit) -> float:
    return -unit.score


def _groups(units: Sequence[Unit]) -> dict[str, list[Unit]]:
    """By type, best first; equals in the order of the scan."""
    groups: dict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        groups[unit.type].append(unit)
    return {name: sorted(group, key=_best_first) for name, group in groups.items()}


def _fill(groups: dict[str, list[Unit]], budget: int) -> dict[str, int]:
    """How many of each group fit: first one of each, then the groups evenly, up to the first that does not fit."""
    counts = dict.fromkeys(groups, 0)
    least = sum(group[0].parameters for group in groups.values())
    if least > budget:
        raise BadInput(
            f"a budget of {max(budget, 0):,} parameters beside what is always trained; one matrix of each type needs "
            f"{least:,} ({least * BYTES_PER_PARAMETER:,} bytes)"
        )
    for name, unit in _evenly(groups):
        if unit.parameters > budget:
            break
        budget -= unit.parameters
        counts[name] += 1
    return counts


def _evenly(groups: dict[str, list[Unit]]) -> list[tuple[str, Unit]]:
    """All units with their group's name: first the best of each, then the groups evenly."""
    order = sorted(
        (
            (place > 0, (place + 1) / len(group), name, unit)
            for name, group in groups.items()
            for place, unit in enumerate(group)
        ),
        key=lambda one: one[:2],
    )
    return [(name, unit) for _, _, name, unit in order]


def _nearest(groups: dict[str, list[Unit]], budget: int, above: bool) -> list[Unit]:
    """Along the same order each unit that still fits: what is left holds none of those left out.

    `above`: no unit that scores less than the first that did not fit.
    """
    taken, least = list[Unit](), -math.inf
    for _, unit in _evenly(groups):
        if unit.parameters > budget:
            least = max(least, unit.score) if above else least
        elif unit.score >= least:
            budget -= unit.parameters
            taken.append(unit)
    if not taken:
        raise BadInput(f"--like leaves {max(budget, 0):,} parameters beside what is always trained: none fits")
    return taken


def _ties(scanned: Scanned, groups: dict[str, list[Unit]], counts: dict[str, int], options: Options) -> list[str]:
    """Equal scores on both sides of a cut."""
    lines = []
    for name, group in groups.items():
        count = counts[name]
        if 0 < count < len(group) and group[count - 1].score == group[count].score:
            equal = sum(unit.score == group[count].score for unit in group)
            what = f"{'SNR' if options.rule == 'default' else options.rule} {group[count].score:g}"
            lines.append(f"{name}: {equal} of {len(group)} have {what}, {count} are to be chosen")
    if lines and options.ties == "refuse" and options.rule != "top-layers":
        raise BadInput(
            f"{scanned.path}: ties at the cut; another --top may avoid them, --ties order takes the order of the scan\n"
            + "\n".join(lines)
        )
    return [f"tie broken by the order of the scan, {line}" for line in lines]
