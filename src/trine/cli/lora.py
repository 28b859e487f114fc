"""trine lora: adapters out of the difference of two models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from trine.cli.live import watching
from trine.cli.result import Shown
from trine.cli.words import command_line


def extract(
    tuned: Annotated[str, Parameter(help="The model after training: a folder, or a repository in the Hub's cache.")],
    base: Annotated[str, Parameter(help="The model it was trained from.")],
    out: Annotated[Path, Parameter(help="The adapter's folder to make; it must not exist yet.")],
    /,
    *,
    rank: Annotated[int, Parameter(help="Rank of every matrix of the adapter.")] = 32,
) -> Shown:
    """Extract a LoRA adapter in peft's format: the best approximation of rank R of each linear layer's difference.

    Example: trine lora extract tuned base adapter --rank 32
    """
    from trine.surgery.lora import extract_lora

    with watching() as watch:
        found = extract_lora(tuned, base, out, rank, command_line(), watch.progress)
    lines = [
        f"adapter  {out}: {found['modules']} modules at rank {rank}",
        f"misses   {found['relative_error']:.2%} of the norm of the differences; most, {found['worst']['error']:.2%}, "
        f"in {found['worst']['module']}",
    ]
    if rest := found["left_out"]:
        lines.append(f"note     {len(rest)} tensors differ and are not in the adapter, such as {rest[0]}")
    return Shown({"out": str(out), **found}, "\n".join(lines))
