"""trine data show: a batch as the model sees it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.text import Text

from trine.cli.result import Shown
from trine.cli.words import Options, load, run_folder

_TRAINED = "bold black on green"
COLOURS = ("blue", "dark_orange", "green", "magenta", "cyan", "yellow")


def show(
    target: Annotated[Path, Parameter(help="A run folder, or a config file (YAML).")],
    /,
    *options: Options,
    step: Annotated[int | None, Parameter(help="Optimizer step. Default: the run's next, else the first.")] = None,
    rows: Annotated[int, Parameter(help="Sequences of the batch to show.", validator=Number(gte=1))] = 4,
    tokens: Annotated[int, Parameter(help="Most tokens of a sequence to show.", validator=Number(gte=1))] = 1024,
    out: Annotated[Path | None, Parameter(help="Write an HTML page here as well.")] = None,
) -> Shown:
    """Show a batch as the model sees it: documents and where they are cut, sources, masks, what is trained.

    Tokens come from train.tokens, or from tokens/ in the run folder.

    Example: trine data show runs/quickstart --step 100 --out batch.html
    """
    from trine.batch_view import view_batch
    from trine.chain import section

    is_run = target.is_dir()
    loaded = load(target / "config.yaml" if is_run else target, options)
    train, folder = section(loaded, "train"), target if is_run else run_folder(loaded, None)
    packed = Path(train.tokens).expanduser() if train.tokens else folder / "tokens"
    view = view_batch(loaded.config, packed, folder if folder.is_dir() else None, step, rows, tokens)
    text = _text(view)
    if out is not None:
        from trine.report.batch import write_batch

        text += f"page     {write_batch(view, out)}\n"
    return Shown(view | ({"out": str(out)} if out else {}), text)


def _text(view: dict[str, Any]) -> str:
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    file = io.StringIO()
    width = None if colour else 100
    console = Console(file=file, force_terminal=colour, no_color=not colour, highlight=False, width=width)
    names = {one["place"]: one["name"] for one in view["sources"]}
    mask = "attention stays inside a document" if view["document_mask"] else "attention crosses documents"
    console.print(
        f"step {view['step']:,}, phase {view['phase']}: {view['batch_sequences']:,} sequences of "
        f"{view['sequence_length']:,} tokens, {view['packing']}; {mask}",
        soft_wrap=True,
    )
    total = sum(one["tokens"] for one in view["sources"]) or 1
    for one in view["sources"]:
        share = f"{one['tokens'] / total:.1%} of these rows, {one['share']:.1%} of the mix"
        console.print(Text(f"  {one['name']}: {share}", style=_style(one["place"])), soft_wrap=True)
    if view["answers_only"]:
        key = Text("  ").append("⟦trained⟧", style=_TRAINED).append("  only read", style="dim")
        console.print(key, soft_wrap=True)
    else:
        console.print("  ⊘ after a token: what follows it is no target", style="dim")
    for row in view["rows"]:
        console.print(f"\nsequence {row['sequence']:,}: {row['predicted']:,} targets", style="bold")
        for piece in row["pieces"]:
            console.print(_piece(piece, names[piece["source"]]), soft_wrap=False)
        if row["padding"]:
            console.print(f"── {row['padding']:,} tokens of padding", style="dim")
    return file.getvalue()


def _style(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _piece(piece: dict[str, Any], name: str) -> Text:
    begin, end = piece["begin"], piece["begin"] + piece["take"]
    head = f"── {name}, document {piece['document']:,}, tokens {begin:,} to {end:,} of {piece['length']:,}\n"
    text = Text(head, style=f"bold {_style(piece['source'])}")
    if not piece["tokens"]:
        return text.append("not shown", style="dim not bold")
    for part, style in _answers(piece) if "trained" in piece else _targets(piece):
        text.append(part, style=style)
    left = piece["take"] - len(piece["tokens"])
    return text.append(f" … {left:,} more" if left else "", style="dim not bold")


def _targets(piece: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Text and style; a mark behind each token whose next is no target."""
    ignored = set(piece["ignored"])
    for i, token in enumerate(piece["tokens"]):
        yield _printable(token), "not bold default" if i not in ignored else "not bold reverse"
        if i in ignored:
            yield "⊘", "red"


def _answers(piece: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Text and style of a conversation: what is trained in brackets."""
    trained, inside = set(piece["trained"]), False
    for i, token in enumerate(piece["tokens"]):
        if (i in trained) is not inside:
            yield "⟧" if inside else "⟦", _TRAINED
        inside = i in trained
        yield _printable(token), _TRAINED if inside else "dim not bold default"
    if inside:
        yield "⟧", _TRAINED


def _printable(token: str) -> str:
    """Control characters of a text move no cursor and ring no bell."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in token)
