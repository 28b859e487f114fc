"""trine pack: one stage."""

from __future__ import annotations

from trine.cli.live import watching
from trine.cli.result import Shown
from trine.cli.words import ConfigFile, Options, Out, load, run_folder


def pack(config: ConfigFile, /, *options: Options, out: Out = None) -> Shown:
    """Encode a corpus with a tokenizer into memory-mapped token shards.

    Default --out: runs/NAME/tokens.

    Example: trine pack recipes/quickstart.yaml --pack.corpus corpora/mine --pack.tokenizer tokenizers/mine
    """
    from trine.chain import make_tokens, section

    loaded = load(config, options)
    section(loaded, "pack")
    target = out or run_folder(loaded, None) / "tokens"
    with watching() as watch:
        made = make_tokens(loaded.config, target.parent, target, watch.progress)
    lines = [f"{name}: {one['tokens']:,} tokens{_trained(one)}" for name, one in made["sets"].items()]
    if "rejected" in made:
        first = made["rejected"]["first"][0]
        lines.append(f"{made['rejected']['records']:,} conversations refused: {target / 'rejected.jsonl'}")
        lines.append(f"  the first, {first['path']}: {first['reason']}")
    text = "\n".join([*lines, f"tokens   {target}"])
    return Shown(made | {"out": str(target)}, text)


def _trained(counts: dict[str, int]) -> str:
    return f", {counts['trained']:,} of them trained" if "trained" in counts else ""
