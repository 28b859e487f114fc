"""trine generate: text from a model folder."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from trine.cli.result import Shown


def generate(
    model: Annotated[Path, Parameter(help="A model folder, or the run folder that holds one.")],
    /,
    *,
    prompt: Annotated[str | None, Parameter(help="The text to go on from. Default: standard input.")] = None,
    max_new_tokens: Annotated[int, Parameter(validator=Number(gte=1))] = 200,
    temperature: Annotated[float, Parameter(help="0 takes the likeliest token.", validator=Number(gte=0))] = 0.8,
    top_k: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    top_p: Annotated[float, Parameter(validator=Number(gt=0, lte=1))] = 0.95,
    seed: int = 0,
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32",
    device: str = "cpu",
) -> Shown:
    """Complete a text. The same options give the same text.

    Example: trine generate runs/quickstart --prompt "The module provides" --max-new-tokens 80
    """
    from trine.completion import TextModel

    folder = model / "model" if (model / "model" / "config.json").is_file() else model
    text = sys.stdin.read() if prompt is None else prompt
    started = time.monotonic()
    pieces = []
    opened = TextModel(folder, dtype, device)
    for piece in opened.complete(text, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed):
        pieces.append(piece)
        if sys.stderr.isatty():
            sys.stderr.write(piece)
            sys.stderr.flush()
    if sys.stderr.isatty():
        sys.stderr.write(f"\n({time.monotonic() - started:.1f} s)\n")
    completion = "".join(pieces)
    return Shown({"prompt": text, "completion": completion}, "" if _same_terminal() else text + completion)


def _same_terminal() -> bool:
    """Whether what was streamed to stderr is already before the reader's eyes."""
    return sys.stderr.isatty() and sys.stdout.isatty()
