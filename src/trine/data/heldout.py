"""Which set a document belongs to: its source's, or one that it is held out for by a rule or by its text's hash."""

from __future__ import annotations

import hashlib

from trine.data.config import CorpusConfig, HeldoutRule, SourceConfig
from trine.data.document import Document


def set_of(config: CorpusConfig, source: SourceConfig, document: Document) -> str:
    """The set's name. Rules hold for training sources alone; the first that fits decides, `heldout_fraction` last."""
    if source.set != "train":
        return source.set
    for rule in config.heldout:
        if _fits(rule, document.fields.get(rule.by)):
            return rule.set
    fraction = config.heldout_fraction
    return "heldout" if fraction and _below(document.digest(), fraction) else "train"


def held_out_first(config: CorpusConfig) -> bool:
    """Whether the training sources must be read twice, for what is held out of them to come before the rest."""
    return bool(config.heldout) or bool(
        config.heldout_fraction and (config.near_duplicates is not None or config.boilerplate is not None)
    )


def _fits(rule: HeldoutRule, value: str | None) -> bool:
    if not value:
        return False
    if rule.after is not None:
        return value > rule.after
    assert rule.fraction is not None
    return _below(hashlib.sha256(value.encode()).digest(), rule.fraction)


def _below(digest: bytes, fraction: float) -> bool:
    """Whether a digest's last eight bytes, as a number in [0, 1), lie below `fraction`."""
    return int.from_bytes(digest[-8:], "big") < fraction * 2**64
