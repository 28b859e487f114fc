"""A batch as the model sees it, as JSON values: rows, the pieces of documents in them, their tokens as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from trine.data.loader import Stream
from trine.data.pack import Segment
from trine.data.shards import TokenSet, TokenShards
from trine.data.tokenizer import open_tokenizer
from trine.errors import BadInput
from trine.manifest import read_manifest
from trine.recipe import Config
from trine.train.checkpoint import list_checkpoints, read_state
from trine.train.stream import check_mix, training_stream
from trine.train.timeline import Timeline


def view_batch(
    config: Config, tokens: Path, run: Path | None, step: int | None, rows: int, max_tokens: int
) -> dict[str, Any]:
    """The first `rows` sequences of optimizer step `step` (default: the next of `run`, else the first), each shown up
    to `max_tokens` tokens. Raises BadInput."""
    assert config.train is not None
    read_manifest(tokens, "tokens")
    shards, timeline = TokenShards(tokens), Timeline(config.train, config.optim.schedule)
    documents = shards.sets["train"]
    check_mix(timeline, documents, tokens)
    checkpoints = list_checkpoints(run) if run else []
    state = read_state(checkpoints[0]) if checkpoints else None
    if step is None:
        step = min((state.step if state else 0) + 1, config.train.steps)
    if not 1 <= step <= config.train.steps:
        raise BadInput(f"--step {step}: the run has steps 1 to {config.train.steps}")
    span, first = timeline.span(step), timeline.sequences(step - 1)
    near = state if state and state.sequence <= first else None
    stream = training_stream(timeline, documents, near.packing if near else None)
    tokenizer = open_tokenizer(tokens / "tokenizer").tokenizer
    shown = min(rows, span.train.batch_sequences)
    made = [_row(stream, first + i, documents, tokenizer, max_tokens) for i in range(shown)]
    return {
        "name": run.resolve().name if run else "batch",
        "step": step,
        "phase": span.phase,
        "batch_sequences": span.train.batch_sequences,
        "sequence_length": span.train.sequence_length,
        "packing": span.train.packing,
        "document_mask": span.train.document_mask,
        "answers_only": documents.trained is not None,
        "sources": _sources(documents, made, span.train.mix),
        "rows": made,
    }


def _sources(documents: TokenSet, rows: list[dict[str, Any]], mix: Any) -> list[dict[str, Any]]:
    """Each source, the tokens it gives to the rows, and its share of the mix."""
    names = documents.source_names or ("",)
    shares = {one.source: one.share for one in mix} if mix else None
    held = documents.source_tokens.tolist() or [documents.tokens]
    found = []
    for place, name in enumerate(names):
        shown = sum(piece["take"] for row in rows for piece in row["pieces"] if piece["source"] == place)
        share = held[place] / documents.tokens if shares is None else shares.get(name, 0.0)
        if held[place]:
            found.append({"place": place, "name": name or "all documents", "tokens": shown, "share": share})
    return found


def _row(stream: Stream, index: int, documents: TokenSet, tokenizer: Tokenizer, max_tokens: int) -> dict[str, Any]:
    tokens, targets, _ = stream.sequence(index)
    pieces, filled = [], 0
    for segment in stream.segments(index):
        end = min(filled + segment.take, max_tokens)
        words = [tokenizer.decode([token], skip_special_tokens=False) for token in tokens[filled:end].tolist()]
        ignored = [i for i, target in enumerate(targets[filled:end].tolist()) if target < 0]
        pieces.append(_piece(segment, documents) | {"tokens": words, "ignored": ignored} | _trained(segment, documents))
        filled += segment.take
    return {
        "sequence": index,
        "pieces": pieces,
        "padding": len(tokens) - filled,
        "predicted": int((targets >= 0).sum()),
    }


def _trained(segment: Segment, documents: TokenSet) -> dict[str, list[int]]:
    """Where not every token of the set is trained on, the places in the piece of those that are."""
    if documents.trained is None:
        return {}
    end = segment.begin + segment.take
    return {"trained": documents.read_trained(segment.document, segment.begin, end).nonzero()[0].tolist()}


def _piece(segment: Segment, documents: TokenSet) -> dict[str, Any]:
    return {
        "document": segment.document,
        "source": int(documents.sources[segment.document]),
        "begin": segment.begin,
        "take": segment.take,
        "length": int(documents.lengths[segment.document]),
    }
