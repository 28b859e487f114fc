"""trine run: every stage of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trine.cli.live import clock, watching
from trine.cli.result import Shown
from trine.cli.words import ConfigFile, DryRun, Options, RunOut, load, run_folder


def run(config: ConfigFile, /, *options: Options, out: RunOut = None, dry_run: DryRun = False) -> Shown:
    """Run every stage of a recipe into one run folder: text to trained, exported and measured model.

    A recipe of `steps:` runs verbs one after the other instead. The same command again goes on where it stopped. A
    recipe's inputs are options: see its `inputs:`.

    Example: trine run recipes/quickstart.yaml --corpus my-texts --train.steps 500
    """
    from trine.steps import has_steps

    if has_steps(config):
        return _steps(config, options, out, dry_run)
    from trine.chain import run_chain

    loaded = load(config, options)
    folder = run_folder(loaded, out)
    if dry_run:
        from trine.cli.dry_run import dry_run_of

        return dry_run_of(loaded, folder, whole=True)
    with watching() as watch:
        made = run_chain(loaded, folder, watch)
    return Shown(made, _summary(made))


def _steps(config: Path, options: tuple[str, ...], out: Path | None, dry_run: bool) -> Shown:
    """A recipe of steps."""
    from trine.cli.main import verbs
    from trine.steps import load_steps, plan_of, run_steps

    loaded = load_steps(config, options, verbs())
    folder = out or Path("runs") / loaded.name
    if dry_run:
        listed = plan_of(loaded, folder)
        lines = [f"  {'done' if one['done'] else 'to do':6} {one['name']}: {one['command']}" for one in listed]
        text = "\n".join([f"into {folder}, nothing written by this command:", *lines])
        return Shown({"out": str(folder), "steps": listed}, text)
    with watching() as watch:
        made = run_steps(loaded, folder, watch)
    lines = [f"{name:12} {_clock(one)}" for name, one in made["steps"].items()]
    return Shown(made, "\n".join([f"made     {folder}", *lines]))


def _clock(record: dict[str, Any]) -> str:
    return f"{clock(record['seconds'])}{'  said no' if record['exit_code'] else ''}"


def _summary(made: dict[str, object]) -> str:
    lines = []
    train, parity = made.get("train"), made.get("parity")
    if isinstance(train, dict):
        answers = train.get("answers_only", ())
        scores = (train["bits_per_byte"] or {}).items()
        bits = ", ".join(f"{name} {value:.3f}{' of answers' if name in answers else ''}" for name, value in scores)
        lines.append(f"trained  {train['step']:,} steps, {train['tokens']:,} tokens, loss {train['loss']:.3f}")
        lines += [f"measured bits per byte: {bits}"] if bits else []
    if isinstance(parity, dict):
        figure = f"{parity['max_relative_logit_difference']:.1e}"
        lines.append(f"proved   transformers {parity['transformers']} computes the same logits (relative {figure})")
    for name in ("model", "report"):
        if name in made:
            lines.append(f"{name:8} {Path(str(made[name]))}")
    return "\n".join(lines or [f"made     {made['out']}"])
