"""What a method sees of the tensors it merges: blocks of numbers in turn, so that memory is that of a block.

A method is a function `prepare(inputs) -> kernel`. It may go through `inputs.blocks()` as often as it likes for
statistics; the kernel then maps one block to the merged block. The result does not depend on how blocks are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from trine.merge.dtypes import Array, rounded

BLOCK_ELEMENTS = 1 << 16
"""Four bf16 arrays of this length and the merged one in fp32 leave half of a 2 MiB L2 cache to others."""


class Readable(Protocol):
    """A tensor that can be read in pieces."""

    def read(self, start: int, stop: int) -> Array:
        """Elements [start, stop) of the flat tensor in the type of the arithmetic; the caller may write to them."""
        ...


@runtime_checkable
class Held(Protocol):
    """A tensor that also gives its numbers as they are stored."""

    def held(self, start: int, stop: int) -> Array:
        """Elements [start, stop): bf16 as its bits (uint16), anything else as `read` gives it."""
        ...


class Feed(NamedTuple):
    """A tensor in a file, whose numbers kernels read themselves."""

    handle: int
    place: int
    """Of element 0, in bytes."""
    bf16: bool
    """Else fp32."""
    finite: bool
    """Whether NaN and infinity are refused."""
    buffer: Array
    """Memory for a block."""


@runtime_checkable
class Fed(Protocol):
    """A tensor that may be a feed."""

    def feed(self, count: int) -> Feed | None:
        """The feed for blocks of up to `count` elements; None where numbers must be changed on reading."""
        ...


@dataclass
class Target:
    """Where an output tensor goes."""

    handle: int
    place: int
    """Of element 0, in bytes."""
    stored: str
    crc: int = 0
    """CRC-32 of the bytes written so far."""


@dataclass(frozen=True)
class Block:
    """The same elements of every input, flat. The kernel may overwrite them; they live until the next block."""

    start: int
    base: Array | None
    models: list[Array]

    @property
    def size(self) -> int:
        """Elements per array."""
        return len(self.models[0]) if self.models else len(self.base) if self.base is not None else 0


@dataclass(frozen=True)
class Direct:
    """A kernel that reads the stored numbers itself."""

    run: Callable[[int, int], Array]
    """The merged elements [start, stop); they live until the next call."""
    pour: Callable[[int, int, Target], None] | None = None
    """Write the merged elements [start, stop) to a target of bf16 or fp32."""


Kernel = Callable[[Block], Array] | Direct


@dataclass(frozen=True)
class Inputs:
    """The inputs of one output tensor and the parameters that hold for it."""

    shape: tuple[int, ...]
    models: Sequence[Readable]
    """Beside the base."""
    base: Readable | None = None
    each: Sequence[dict[str, Any]] = ()
    """Parameters per model, such as weight."""
    shared: dict[str, Any] = field(default_factory=dict)
    stored: str | None = None
    """Type that every intermediate result is rounded to (`numerics: mergekit`); None: one rounding at the end."""
    seed: int = 0
    name: str = ""
    labels: Sequence[str] = ()
    """A name per model, which random masks are keyed by."""
    work: Any = np.float32
    """Type of the arithmetic."""
    by_row: bool = False
    """Whether a block must hold whole rows, however long."""

    @property
    def size(self) -> int:
        """Elements of the tensor."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def columns(self) -> int:
        """Elements of a row: of the last dimension."""
        return self.shape[-1] if self.shape else 1

    @property
    def mergekit(self) -> bool:
        """Whether mergekit's order of rounding, and its formulas, are wanted."""
        return self.stored is not None

    def q(self, values: Array) -> Array:
        """`values` as mergekit would hold them; unchanged in accurate arithmetic."""
        return values if self.stored is None else rounded(values, self.stored)

    def qs(self, value: float) -> Any:
        """A single number, in the type of the arithmetic, as `q` does."""
        return self.q(np.full(1, value, self.work))[0]

    def weights(self, name: str = "weight") -> list[float]:
        """A parameter of every model."""
        return [one[name] for one in self.each]

    def block(self, start: int, stop: int) -> Block:
        """Elements [start, stop) of every input."""
        base = None if self.base is None else self.base.read(start, stop)
        return Block(start, base, [one.read(start, stop) for one in self.models])

    def blocks(self) -> Iterator[Block]:
        """The whole tensor, in order."""
        for start, stop in self.spans():
            yield self.block(start, stop)

    @property
    def step(self) -> int:
        """Elements of a block: of whole rows, unless a row is longer than a block and need not be whole."""
        columns = max(1, self.columns)
        if columns <= BLOCK_ELEMENTS or self.by_row:
            return max(1, BLOCK_ELEMENTS // columns) * columns
        return BLOCK_ELEMENTS

    def spans(self, blocks: int = 1) -> Iterator[tuple[int, int]]:
        """Bounds of the blocks, or of runs of so many `blocks`."""
        step = self.step * blocks
        yield from ((start, min(start + step, self.size)) for start in range(0, self.size, step))

    def deltas(self, block: Block) -> list[Array]:
        """Each model less the base."""
        assert block.base is not None
        return [self.q(np.subtract(one, block.base, out=one)) for one in block.models]


def base_only(block: Block) -> Array:
    """The kernel of a method on differences when there is nothing beside the base."""
    assert block.base is not None
    return block.base


@dataclass(frozen=True)
class InMemory:
    """A tensor that is an array already."""

    values: Array

    def read(self, start: int, stop: int) -> Array:
        """See Readable."""
        return self.values.reshape(-1)[start:stop].copy()


def apply(kernel: Kernel, inputs: Inputs, start: int, stop: int) -> Array:
    """The merged elements [start, stop)."""
    return kernel.run(start, stop) if isinstance(kernel, Direct) else kernel(inputs.block(start, stop))


def merged(prepare: Callable[[Inputs], Kernel], inputs: Inputs) -> Array:
    """The merged tensor as an array of the type of the arithmetic."""
    out = np.empty(inputs.size, inputs.work)
    kernel = prepare(inputs)
    for start, stop in inputs.spans():
        out[start:stop] = apply(kernel, inputs, start, stop)
    return out.reshape(inputs.shape)
