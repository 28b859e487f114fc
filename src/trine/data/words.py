"""Text as hashes of its words, and of words in a row: what near-duplicates and leaks are found by.

A word is a run of letters, digits and characters beyond ASCII that are no punctuation, in lower case. Its hash is a
polynomial modulo 2^64 of random values of its bytes, mixed; the same on every machine. Two different n-grams have the
same hash with a chance of about 2^-64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
_PIECE_BYTES = 1 << 17
"""Bytes hashed at a time, so that memory stays flat and the arrays in between in the cache."""
_PRIME = np.uint64(0x9E3779B97F4A7C15)
_BYTES = np.random.Generator(np.random.PCG64(13)).integers(1, 2**64 - 1, 256, dtype=np.uint64)
_LOWER = np.array([b + 32 if 65 <= b <= 90 else b for b in range(256)], np.uint8)
_IN_WORD = np.array([chr(b).isalnum() if b < 128 else True for b in range(256)])


@dataclass(frozen=True)
class Words:
    """The words of a text in order: hashes [n], and where each begins and ends in the text's UTF-8 [n]."""

    hashes: Hashes
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]


def words_of(text: str) -> Words:
    """The words of `text`."""
    data = text.encode()
    if not text.isascii():
        lower = text.lower().encode()
        data = lower if len(lower) == len(data) else data
    found, begin = list[Words](), 0
    while begin < len(data):
        end = begin + _PIECE_BYTES
        if end < len(data):
            end = max(data.rfind(b" ", begin, end), data.rfind(b"\n", begin, end)) + 1
            end = end or _next_space(data, begin + _PIECE_BYTES)
        found.append(_piece(data[begin:end], begin))
        begin = end
    if not found:
        return Words(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64))
    columns = ([getattr(one, name) for one in found] for name in ("hashes", "begins", "ends"))
    return Words(*map(np.concatenate, columns))


def ngrams(hashes: Hashes, n: int) -> Hashes:
    """Hashes of each `n` words in a row [words - n + 1]; none where there are fewer."""
    count = len(hashes) - n + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    total = hashes[:count].copy()
    for i in range(1, n):
        total += hashes[i : i + count] * np.uint64(pow(int(_PRIME), i, 1 << 64))
    return mixed(total)


def mixed(values: Hashes) -> Hashes:
    """Every bit of the result depends on every bit of the value (the finaliser of SplitMix64; Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _next_space(data: bytes, begin: int) -> int:
    found = [place for place in (data.find(b" ", begin), data.find(b"\n", begin)) if place >= 0]
    return min(found) + 1 if found else len(data)


def _piece(data: bytes, offset: int) -> Words:
    lower = _LOWER[np.frombuffer(data, np.uint8)]
    within = _IN_WORD[lower]
    if not data.isascii():
        within &= ~_punctuation(lower)
    framed = np.zeros(len(within) + 2, bool)
    framed[1:-1] = within
    edges = np.flatnonzero(framed[1:] != framed[:-1])
    begins, ends = edges[0::2], edges[1::2]
    if not len(begins):
        return Words(np.zeros(0, np.uint64), begins, ends)
    lengths = ends - begins
    firsts = np.cumsum(lengths) - lengths
    powers = np.multiply.accumulate(np.full(int(lengths.max()), _PRIME, np.uint64))
    places = np.arange(int(lengths.sum())) - np.repeat(firsts, lengths)
    hashes = np.add.reduceat(_BYTES[lower[within]] * powers[places], firsts)
    return Words(mixed(hashes), begins + offset, ends + offset)


def _punctuation(data: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which bytes belong to punctuation or spaces beyond ASCII: U+0080 to 00BF, U+2000 to 207F, U+3000 to 303F."""
    found = np.zeros(len(data) + 2, bool)
    high = np.flatnonzero(data >= 0xC2)
    following = np.append(data, 0)[high + 1]
    pairs = high[data[high] == 0xC2]
    general = high[(data[high] == 0xE2) & ((following == 0x80) | (following == 0x81))]
    cjk = high[(data[high] == 0xE3) & (following == 0x80)]
    threes = np.concatenate([general, cjk])
    for place, size in ((pairs, 2), (threes, 3)):
        for i in range(size):
            found[place + i] = True
    return found[: len(data)]
