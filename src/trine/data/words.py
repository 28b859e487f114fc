"""Text as hashes of its words, and of words in a row: what near-duplicates and leaks are found by.

A word is a run of letters, digits and characters beyond ASCII that are no punctuation, in lower case (of at most 128
KiB). Its hash is a
polynomial modulo 2^64 of random values of its bytes, mixed; the same on every machine. Two different n-grams have the
same hash with a chance of about 2^-64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
_PIECE_BYTES = 1 << 17
"""Bytes hashed at a time, so that memory stays flat and the arrays in between in the cache."""
_PRIME = np.uint64(0x9E3779B97F4A7C15)
_IN_WORD = np.array([chr(b).isalnum() if b < 128 else True for b in range(256)])
_VALUES = np.random.Generator(np.random.PCG64(13)).integers(1, 2**64 - 1, 256, dtype=np.uint64)
_VALUES[ord("A") : ord("Z") + 1] = _VALUES[ord("a") : ord("z") + 1]
_VALUES[~_IN_WORD] = 0


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
            end = max(data.rfind(b" ", begin, end), data.rfind(b"\n", begin, end)) + 1 or _character(data, end)
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
    total, done, block, size = np.zeros(count, np.uint64), 0, hashes, 1
    while done < n:  # blocks of 1, 2, 4, ... words, of which those make up n that its binary digits name
        if n & size:
            total += block[done : done + count] * _power(done)
            done += size
        if done < n:
            block = block[:-size] + block[size:] * _power(size)
            size *= 2
    return mixed(total)


def _power(exponent: int) -> np.uint64:
    return np.uint64(pow(int(_PRIME), exponent, 1 << 64))


def mixed(values: Hashes) -> Hashes:
    """Every bit of the result depends on every bit of the value (the finaliser of SplitMix64; Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _character(data: bytes, place: int) -> int:
    """The beginning of the character that `place` is in."""
    while data[place] & 0xC0 == 0x80:
        place -= 1
    return place


def _piece(data: bytes, offset: int) -> Words:
    """The words of a text that begins at byte `offset`. A word's hash is the sum of its bytes' values times powers of
    their places in the text, divided by the power of its first place."""
    codes = np.frombuffer(data, np.uint8)
    within, terms = _IN_WORD[codes], _VALUES[codes]
    powers, inverses = _powers(1 << (len(data) - 1).bit_length())
    terms *= powers[: len(data)]
    if not data.isascii():
        outside = _punctuation(codes)
        within[outside] = False
        terms[outside] = 0
    framed = np.zeros(len(data) + 2, bool)
    framed[1:-1] = within
    edges = np.flatnonzero(framed[1:] != framed[:-1])
    begins, ends = edges[0::2], edges[1::2]
    if not len(begins):
        return Words(np.zeros(0, np.uint64), begins, ends)
    hashes = np.add.reduceat(terms, begins) * inverses[begins]
    return Words(mixed(hashes), begins + offset, ends + offset)


@cache
def _powers(count: int) -> tuple[Hashes, Hashes]:
    """The first `count` powers of the hash's factor modulo 2^64, and their inverses."""
    factors = (int(_PRIME), pow(int(_PRIME), -1, 1 << 64))
    first, second = (np.multiply.accumulate(np.full(count, factor, np.uint64)) for factor in factors)
    return first, second


def _punctuation(codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Places of bytes of punctuation or spaces beyond ASCII: U+0080 to 00BF, U+2000 to 207F, U+3000 to 303F."""
    high = np.flatnonzero(codes >= 0xC2)
    first, second = codes[high], codes[np.minimum(high + 1, len(codes) - 1)]
    pairs = high[first == 0xC2]
    threes = high[((first == 0xE2) & (second <= 0x81)) | ((first == 0xE3) & (second == 0x80))]
    return np.concatenate([pairs, pairs + 1, threes, threes + 1, threes + 2])
