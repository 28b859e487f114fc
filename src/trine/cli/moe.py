"""trine moe: a mixture of experts from dense models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from trine.cli.live import watching
from trine.cli.result import Shown
from trine.cli.words import DryRun, command_line


def moe(
    config: Annotated[Path, Parameter(help="A config, in mergekit-moe's YAML.")],
    out: Annotated[Path, Parameter(help="The model folder to make; it must not exist yet.")],
    /,
    *,
    seed: Annotated[int, Parameter(help="Of random gates and of noise.")] = 0,
    allow_same_experts: Annotated[bool, Parameter(help="Build a model whose experts are all one model.")] = False,
    shard_bytes: Annotated[int, Parameter(help="Largest file of the output.")] = 5_000_000_000,
    threads: Annotated[int, Parameter(help="Workers. 0: as many as cores.")] = 0,
    dry_run: DryRun = False,
) -> Shown:
    """Make each dense model's MLPs an expert of every layer; routers come from prompts, embeddings or chance.

    Streams as a merge does: killed, it goes on when the same command is given again; OUT appears when it is complete.

    Example: trine moe moe.yaml mixture --dry-run
    """
    from trine.merge.engine import Options
    from trine.surgery.moe import make_moe, plan_moe

    found = plan_moe(config, allow_same_experts)
    size = sum(job.bytes for job in found.jobs)
    parameters = sum(math.prod(job.shape) for job in found.jobs)
    record = {"out": str(out), "target": found.target.name, "experts": len(found.config.experts), "bytes": size}
    about = f"{found.target.name}, {record['experts']} experts in {found.layers} layers, gates {found.config.gate_mode}"
    if dry_run:
        line = f"  writes     {size / 1e9:.2f} GB, {parameters:,} parameters beside the routers"
        return Shown(record, f"into {out}, nothing written by this command:\n  target     {about}\n{line}")
    command = command_line()
    with watching() as watch:
        options = Options(seed=seed, shard_bytes=shard_bytes, threads=threads, command=command)
        made = make_moe(found, out, options, watch.progress)
    notes = [f"note     {one}" for one in made["meta"]["notes"]]
    return Shown({**record, **made}, "\n".join([f"model    {out}: {about}, {size / 1e9:.2f} GB", *notes]))
