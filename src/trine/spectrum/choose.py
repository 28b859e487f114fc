"""Entries of a scan to those to train: the best of each type, or of all, by a percentage or within a budget."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trine.errors import BadInput
from trine.spectrum.scanned import Entry, Scanned

GRADIENT_BYTES, STATE_BYTES = 2, 12
BYTES_PER_PARAMETER = GRADIENT_BYTES + STATE_BYTES
"""What training adds to a bf16 weight: gradient in bf16; master weight and AdamW's two moments in fp32."""
_REPORTED = 8
_EMBEDDING = re.compile(r"(^|\.)(embed\w*|\w*embeddings?|wte|wpe)$")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output|score)$")


@dataclass(frozen=True)
class Options:
    """What to choose; one of `top` (per cent), `parameters` and `bytes` is given."""

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
    snr: float
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


def choose(scanned: Scanned, options: Options) -> Chosen:
    """Raises BadInput for SNRs that are not finite and for ties at the cut, naming them, unless told otherwise."""
    budget = _budget(scanned, options)
    always = [one for one in scanned.entries if _always(one, options)]
    ranked = [one for one in scanned.entries if not _always(one, options) and _eligible(one, options)]
    if not ranked:
        raise BadInput(f"{scanned.path}: nothing to choose from; {len(scanned.entries)} matrices, none eligible")
    finite, notes = _finite(scanned, ranked, options)
    groups = _groups(_units(finite, options))
    if options.everywhere:
        groups = {"all types": sorted((unit for group in groups.values() for unit in group), key=_best_first)}
    if budget is None:
        assert options.top is not None
        counts = {name: max(1, int(len(group) * options.top / 100)) for name, group in groups.items()}
    else:
        counts = _fill(groups, budget - sum(one.parameters or 0 for one in always))
    notes += _ties(scanned, groups, counts, options)
    taken = {one.name for name, group in groups.items() for unit in group[: counts[name]] for one in unit.members}
    taken |= {one.name for one in always}
    return Chosen(tuple(one for one in scanned.entries if one.name in taken), tuple(notes))


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


def _best_first(unit: Unit) -> float:
    return -unit.snr


def _groups(units: Sequence[Unit]) -> dict[str, list[Unit]]:
    """By type, best first; equals in the order of the scan."""
    groups: dict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        groups[unit.type].append(unit)
    return {name: sorted(group, key=_best_first) for name, group in groups.items()}


def _fill(groups: dict[str, list[Unit]], budget: int) -> dict[str, int]:
    """How many of each group fit: first one of each, then the groups evenly, up to the first that does not fit."""
    order = sorted(
        (
            (place > 0, (place + 1) / len(group), name, unit)
            for name, group in groups.items()
            for place, unit in enumerate(group)
        ),
        key=lambda one: one[:2],
    )
    counts = dict.fromkeys(groups, 0)
    least = sum(group[0].parameters for group in groups.values())
    if least > budget:
        raise BadInput(
            f"a budget of {max(budget, 0):,} parameters beside what is always trained; one matrix of each type needs "
            f"{least:,} ({least * BYTES_PER_PARAMETER:,} bytes)"
        )
    for _, _, name, unit in order:
        if unit.parameters > budget:
            break
        budget -= unit.parameters
        counts[name] += 1
    return counts


def _ties(scanned: Scanned, groups: dict[str, list[Unit]], counts: dict[str, int], options: Options) -> list[str]:
    """Equal SNRs on both sides of a cut."""
    lines = []
    for name, group in groups.items():
        count = counts[name]
        if 0 < count < len(group) and group[count - 1].snr == group[count].snr:
            equal = sum(unit.snr == group[count].snr for unit in group)
            lines.append(f"{name}: {equal} of {len(group)} have SNR {group[count].snr:g}, {count} are to be chosen")
    if lines and options.ties == "refuse":
        raise BadInput(
            f"{scanned.path}: ties at the cut; another --top may avoid them, --ties order takes the order of the scan\n"
            + "\n".join(lines)
        )
    return [f"tie broken by the order of the scan, {line}" for line in lines]
