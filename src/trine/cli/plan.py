"""trine plan: what a run will need."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from trine.cli.live import clock, watching
from trine.cli.result import Shown
from trine.cli.words import ConfigFile, Options, RunOut, load, run_folder
from trine.errors import CheckFailed


def plan(
    config: ConfigFile,
    /,
    *options: Options,
    out: RunOut = None,
    keep: Annotated[bool, Parameter(help="Keep the plan in the run folder, for its report.")] = False,
    quick: Annotated[bool, Parameter(help="Count only; run no steps, so tell no time and no peak of memory.")] = False,
) -> Shown:
    """Tell what training will need: parameters, memory by kind, FLOPs, disk and time; no corpus is needed.

    Time and the peak of memory come from a few real steps of the model with few layers on random tokens, in at most
    20 seconds. Exit code 3, with what to change, for a run that cannot fit. Nothing is written without --keep.

    Example: trine plan recipes/books.yaml --train.batch_sequences 32
    """
    from trine.chain import claimed, plan_of, section, write_json

    loaded = load(config, options)
    section(loaded, "train")
    folder = run_folder(loaded, out)
    with watching() as watch:
        record = plan_of(loaded.config, folder, probe=not quick, progress=watch.progress)
    text = _text(record)
    if not all(record["fits"].values()):
        raise CheckFailed(f"{text}\n{_refusal(record)}", record)
    if keep:
        with claimed(loaded, folder):
            write_json(folder / "plan.json", record)
    return Shown(record, text)


def _text(plan: dict[str, Any]) -> str:
    model, work, memory, disk, time = (plan[name] for name in ("model", "work", "memory", "disk", "time"))
    part = f", {model['trained']:,} trained" if model["trained"] != model["parameters"] else ""
    lines = [
        f"model      {model['parameters']:,} parameters, {model['active']:,} active for a token{part}",
        f"work       {work['steps']:,} steps, {work['tokens']:,} tokens, mostly {work['tokens_per_step']:,} a step; "
        f"{work['flops_per_token'] / 1e6:,.1f} MFLOPs a token, {work['flops']:.2e} in all",
        f"memory     {'at least ' if memory['peak'] is None else ''}{_size(memory['needed'])} of "
        f"{_size(memory['available'])} free",
    ]
    names = {"loss_chunk": "loss chunk", "other": "other, what the allocator keeps included"}
    if memory["mapped"]:
        names["weights"] = f"weights, of them {_size(memory['mapped'])} in the pages of their file"
    for kind in ("weights", "gradients", "optimizer", "activations", "loss_chunk", "other"):
        if memory[kind] is not None:
            lines.append(f"           {_size(memory[kind]):>10}  {names.get(kind, kind)}")
    lines += [
        f"disk       {_size(disk['needed'])} of {_size(disk['available'])} free",
        f"           {_size(disk['checkpoints']):>10}  checkpoints of {_size(disk['checkpoint'])}",
        f"           {_size(disk['export']):>10}  exported model",
    ]
    if disk["tokens"] is not None:
        lines.append(f"           {_size(disk['tokens']):>10}  packed tokens")
    if time is not None:
        parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in time["parts"].items())
        lines += [
            f"time       {clock(time['steps_seconds'])} for all steps, {time['step_seconds']:.2f} s each ({parts})",
            f"           probed in {time['probe']['seconds']:.0f} s with {time['probe']['layers']} of "
            f"{model['layers']} layers",
        ]
    lines += [f"note       {plan['note']}"] if plan["note"] else []
    return "\n".join(lines)


def _refusal(plan: dict[str, Any]) -> str:
    lines = []
    for what in (name for name, fits in plan["fits"].items() if not fits):
        needed, free = (_size(plan[what][key]) for key in ("needed", "available"))
        lines.append(f"cannot fit: {what}: needs {needed}, {free} free")
    changes = [f"  --{one['key']} {str(one['value']).lower()}  ({_size(one['needed'])})" for one in plan["advice"]]
    if changes:
        return "\n".join([*lines, "one of these would do:", *changes])
    return "\n".join([*lines, "no single change would do; take a smaller model or a larger machine"])


def _size(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1024
    return f"{count:,.2f} TiB"
