"""The stream of sequences that a run trains on, from its timeline and its documents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from trine.data.loader import Stream
from trine.data.pack import TokenStream
from trine.data.planned import PlannedStream, Stage
from trine.data.shards import TokenSet
from trine.errors import BadInput, nearest
from trine.train.config import Mix
from trine.train.timeline import Timeline


def check_mix(timeline: Timeline, documents: TokenSet, tokens: Path) -> None:
    """Raise BadInput for a source that is not there, or that the run would read more often than it may."""
    if all(mix is None for mix, _ in timeline.mixed_tokens()):
        return
    names, held = documents.source_names, documents.source_tokens.tolist()
    wanted, limits = dict.fromkeys(names, 0.0), dict[str, float]()
    for mix, count in timeline.mixed_tokens():
        for name, share in _shares(mix, documents).items():
            if name not in wanted or not held[names.index(name)]:
                known = ", ".join(one for one, size in zip(names, held, strict=True) if size)
                raise BadInput(
                    f"mix names the source '{name}', of which {tokens} holds no training token "
                    f"(it holds {known or 'no named source: pack the corpus again'}){nearest(name, names)}"
                )
            wanted[name] += share * count
        for one in mix or ():
            if one.max_epochs is not None:
                limits[one.source] = min(one.max_epochs, limits.get(one.source, one.max_epochs))
    for name, most in limits.items():
        size = held[names.index(name)]
        if wanted[name] > most * size:
            raise BadInput(
                f"mix reads the source '{name}' {wanted[name] / size:.2f} times ({wanted[name]:,.0f} of its {size:,} "
                f"tokens), more than max_epochs {most:g}; lower its share to {most * size / wanted[name]:.3f} of what "
                "it is, shorten the run, or raise max_epochs"
            )


def _shares(mix: Mix | None, documents: TokenSet) -> dict[str, float]:
    if mix is not None:
        return {one.source: one.share for one in mix}
    sizes = zip(documents.source_names, documents.source_tokens.tolist(), strict=True)
    return {name: size / documents.tokens for name, size in sizes if size}


def training_stream(timeline: Timeline, documents: TokenSet, state: dict[str, Any] | None = None) -> Stream:
    """The stream of a run from its beginning; `state` is what a checkpoint says of its buffers."""
    train, stages = timeline.train, list[Stage]()
    for span in timeline.spans:
        at = span.train
        found = None if at.mix is None else _shares(at.mix, documents)
        shares = None if found is None else tuple(found.get(name, 0.0) for name in documents.source_names)
        stage = Stage(span.first_sequence, at.sequence_length, at.packing, at.document_mask, at.rsdb_documents, shares)
        if not stages or replace(stage, first_sequence=stages[-1].first_sequence) != stages[-1]:
            stages.append(stage)
    if len(stages) == 1 and train.packing == "carry_over" and train.mix is None:
        return TokenStream(documents, train.sequence_length, train.seed, masked=train.document_mask)
    return PlannedStream(documents, stages, train.seed, state)
