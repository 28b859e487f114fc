"""Random masks that depend on (seed, tensor, model, element) alone: a hash of the element's number under a key.

Whatever the order of work, the sharding or the number of threads, an element has the same number. The hash is two
rounds of multiply-xorshift mixing (the constants of C. Wellons' `lowbias32`, bias 0.17), each under half of the key.
"""

from __future__ import annotations

import hashlib

import numpy as np

from trine.merge.arithmetic import draw
from trine.merge.dtypes import Array

_FIRST, _SECOND = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
_GOLDEN = 0x9E3779B97F4A7C15


def key_of(seed: int, tensor: str, model: str) -> int:
    """64 bits for one model's tensor."""
    text = f"{seed}\0{tensor}\0{model}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def random_bits(key: int, start: int, count: int) -> Array:
    """32 random bits (uint32) for each of the elements start, start + 1, ..."""
    out = np.empty(count, np.uint32)
    place = start
    while place < start + count:  # each 2^32 elements have a key of their own
        stop = min(start + count, (place >> 32) + 1 << 32)
        out[place - start : stop - start] = _mixed(place, stop - place, (key + (place >> 32) * _GOLDEN) % 2**64)
        place = stop
    return out


def normal(key: int, start: int, count: int) -> Array:
    """A standard normal number (fp64) for each of the elements start, start + 1, ... (Box and Muller 1958)."""
    radius = np.sqrt(-2 * np.log((random_bits(key, start, count) + 0.5) * 2.0**-32))
    return radius * np.cos(2 * np.pi * random_bits(key ^ _GOLDEN, start, count) * 2.0**-32)


def _mixed(place: int, count: int, key: int) -> Array:
    first, second = key & 0xFFFFFFFF, key >> 32
    place &= 0xFFFFFFFF
    drawn = draw(place, first, second, count)
    if drawn is not None:
        return drawn
    bits = np.arange(place, place + count, dtype=np.uint64).astype(np.uint32)
    for half in (first, second):
        bits ^= np.uint32(half)
        bits ^= bits >> 16
        bits *= _FIRST
        bits ^= bits >> 15
        bits *= _SECOND
        bits ^= bits >> 16
    return bits


def threshold(probability: float) -> int:
    """An element is kept when its bits lie below this: probability * 2^32."""
    return min(max(round(probability * 2**32), 0), 2**32)
