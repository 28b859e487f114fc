"""trine tokens: a model with another model's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from trine.cli.live import clock, watching
from trine.cli.result import Shown
from trine.cli.words import DryRun, command_line
from trine.surgery.config import TokenMethod


def transplant(
    model: Annotated[str, Parameter(help="The model: a folder, or a repository in the Hub's cache.")],
    donor: Annotated[str, Parameter(help="The model whose tokenizer it gets.")],
    out: Annotated[Path, Parameter(help="The model folder to make; it must not exist yet.")],
    /,
    *,
    method: Annotated[
        TokenMethod, Parameter(help="How rows of tokens that only DONOR has come from those that both have.")
    ] = "omp",
    k: Annotated[int, Parameter(name=["-k", "--k"], help="Shared tokens that make up each row.")] = 64,
    shard_bytes: Annotated[int, Parameter(help="Largest file of the output.")] = 5_000_000_000,
    threads: Annotated[int, Parameter(help="Workers. 0: as many as cores.")] = 0,
    dry_run: DryRun = False,
) -> Shown:
    """Give MODEL the tokenizer of DONOR: tokens that both have keep MODEL's rows, the others' are approximated.

    `omp` fits each row of DONOR's table by k shared ones (orthogonal matching pursuit), `common-interpolation` weights
    the k nearest, and both apply the same combination to MODEL's rows; `mean` and `zero` look at nothing. Killed, it
    goes on when the same command is given again; OUT appears when it is complete.

    Example: trine tokens transplant small large small-retokenized --method omp -k 64
    """
    from trine.merge.engine import Options
    from trine.surgery.transplant import plan_transplant, pursuit_seconds
    from trine.surgery.transplant import transplant as run

    found = plan_transplant(model, donor, method, k)
    record = {"out": str(out), **found.record}
    text = _about(record)
    if dry_run:
        seconds = pursuit_seconds(found)
        text = [f"into {out}, nothing written by this command:", *text]
        text += [f"time     about {clock(seconds)} on this machine, and that of copying"] if seconds else []
        return Shown({**record, "seconds": seconds}, "\n".join(text))
    command = command_line()
    with watching() as watch:
        made = run(found, out, Options(shard_bytes=shard_bytes, threads=threads, command=command), watch.progress)
    return Shown({**record, **made}, "\n".join([f"model    {out}: {found.model} with the tokenizer of {donor}", *text]))


def _about(record: dict[str, Any]) -> list[str]:
    how = f"{record['method']}, k {record['k']}" if record["k"] else record["method"]
    lines = [
        f"tokens   {record['tokens']:,}: {record['shared']:,} shared ({record['by_bytes']:,} of them written "
        f"differently), {record['approximated']:,} approximated ({how})"
    ]
    lines += [f"role     {role}: '{pair[0]}' has the row of '{pair[1]}'" for role, pair in record["roles"].items()]
    if record["mean"]:
        lines.append(
            f"note     {record['mean']:,} rows that DONOR has no embedding or no token for are the mean of all"
        )
    return lines
