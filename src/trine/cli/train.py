"""trine train: the training stage."""

from __future__ import annotations

from trine.cli.live import watching
from trine.cli.result import Shown
from trine.cli.words import ConfigFile, DryRun, Options, RunOut, load, run_folder


def train(config: ConfigFile, /, *options: Options, out: RunOut = None, dry_run: DryRun = False) -> Shown:
    """Pretrain on packed tokens, then export the model and write the report.

    Tokens come from train.tokens, or from tokens/ in the run folder. The same command again resumes, bit for bit.

    Example: trine train recipes/quickstart.yaml --train.tokens runs/quickstart/tokens --out runs/again
    """
    from trine.chain import train_run

    loaded = load(config, options)
    folder = run_folder(loaded, out)
    if dry_run:
        from trine.cli.dry_run import dry_run_of

        return dry_run_of(loaded, folder, whole=False)
    with watching() as watch:
        made = train_run(loaded, folder, watch)
    done = made["train"]
    text = f"trained  {done['step']:,} steps, {done['tokens']:,} tokens, loss {done['loss']:.3f}\n"
    return Shown(made, f"{text}model    {made['model']}\nreport   {made['report']}")
