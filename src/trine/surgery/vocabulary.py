"""Which token of one tokenizer is which of another: by role, by text, by the bytes that the text stands for.

A byte-level vocabulary writes ` é` as `ĠÃ©`, one of SentencePiece as `▁é`, with `<0xC3>` for a lone byte; as bytes they
are the same. Files are read by transformers, which knows every layout of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from trine.errors import BadInput

ROLES = ("eos", "bos", "pad", "unk", "sep", "cls", "mask")
"""Where one token has several roles, the first counts: a model that never says eos does not end."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by text, and the ids of those that have a role."""

    folder: Path
    tokens: dict[str, int]
    roles: dict[str, int]
    written: Literal["byte-level", "pieces", "plain"]
    """How tokens that were not added later are written."""
    added: frozenset[str] = frozenset()
    """Tokens that stand for their own text."""

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self.tokens.values()) + 1

    @cached_property
    def by_id(self) -> dict[int, str]:
        """Texts by id."""
        return {number: text for text, number in self.tokens.items()}

    @cached_property
    def by_bytes(self) -> dict[bytes, int]:
        """Ids by what a token stands for; a whole character rather than a lone byte where both are the same."""
        found: dict[bytes, int] = {}
        lone: dict[bytes, int] = {}
        for text, number in self.tokens.items():
            single = self.written == "pieces" and text not in self.added and _BYTE.fullmatch(text)
            (lone if single else found).setdefault(self.spelled(text), number)
        return lone | found

    def spelled(self, text: str) -> bytes:
        """The bytes of the text that a token stands for."""
        if text in self.added or self.written == "plain":
            return text.encode()
        if self.written == "pieces":
            if single := _BYTE.fullmatch(text):
                return bytes([int(single[1], 16)])
            return text.replace("▁", " ").encode()
        if any(one not in _CHARACTERS for one in text):
            return text.encode()
        return bytes(_CHARACTERS[one] for one in text)


def _characters() -> dict[str, int]:
    """Byte-level BPE's character for each byte: itself where it prints, else one from U+0100 on (GPT-2, 2019)."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_CHARACTERS = _characters()


def load_tokenizer(folder: Path, needed: str) -> Any:
    """A folder's tokenizer through transformers. Raises BadInput saying what it is `needed` for when there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its parts raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{folder}: has no tokenizer, which {needed} ({reason})") from None


def read_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary of a model folder. Raises BadInput when it has none."""
    tokenizer = load_tokenizer(folder, "a transplant needs of both models")
    tokens: dict[str, int] = tokenizer.get_vocab()
    if not tokens:
        raise BadInput(f"{folder}: its tokenizer has no token")
    roles = {role: getattr(tokenizer, f"{role}_token_id", None) for role in ROLES}
    added = frozenset(str(one) for one in tokenizer.added_tokens_decoder.values())
    known = {role: number for role, number in roles.items() if isinstance(number, int)}
    return Vocabulary(folder, tokens, known, _written(tokenizer, tokens), added)


def _written(tokenizer: Any, tokens: dict[str, int]) -> Literal["byte-level", "pieces", "plain"]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and any("ByteLevel" in repr(one) for one in (backend.pre_tokenizer, backend.decoder)):
        return "byte-level"
    return "pieces" if any("▁" in text for text in tokens) else "plain"


@dataclass
class Matching:
    """For every id of the donor's vocabulary, the model's token that it is."""

    sources: dict[int, int] = field(default_factory=dict)
    """Model's id by donor's id; the donor's other tokens are not there."""
    roles: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Texts (donor's, model's) of tokens that were matched by role and are written differently, by role."""
    respelled: int = 0
    """Matched by their bytes alone."""


def match(model: Vocabulary, donor: Vocabulary) -> Matching:
    """Match the donor's tokens: a role first, then the text where both are written alike, then its bytes."""
    found = Matching()
    for role in (role for role in ROLES if role in donor.roles and role in model.roles):
        here, there = donor.roles[role], model.roles[role]
        if found.sources.setdefault(here, there) == there and donor.by_id[here] != model.by_id[there]:
            found.roles[role] = (donor.by_id[here], model.by_id[there])
    by_role = set(found.sources)
    for text, number in donor.tokens.items():
        if number in by_role:
            continue
        if text in model.tokens and (donor.written == model.written or text in donor.added):
            found.sources[number] = model.tokens[text]
        elif (same := model.by_bytes.get(donor.spelled(text))) is not None:
            found.sources[number] = same
            found.respelled += 1
    return found
