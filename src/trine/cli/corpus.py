"""trine corpus: one stage."""

from __future__ import annotations

from typing import Any

from trine.cli.live import watching
from trine.cli.result import Shown
from trine.cli.words import ConfigFile, Options, Out, load, run_folder


def corpus(config: ConfigFile, /, *options: Options, out: Out = None) -> Shown:
    """Read the sources, clean them, drop duplicates, and write a corpus folder: Parquet and a ledger.

    Default --out: runs/NAME/corpus.

    Example: trine corpus recipes/quickstart.yaml --corpus my-texts --out corpora/mine
    """
    from trine.chain import make_corpus, section

    loaded = load(config, options)
    section(loaded, "corpus")
    target = out or run_folder(loaded, None) / "corpus"
    with watching() as watch:
        made = make_corpus(loaded.config, target, watch.progress)
    lines = [line for one in made["sources"] for line in _source(one)]
    if "rejected" in made:
        first = made["rejected"]["first"][0]
        lines.append(f"{made['rejected']['records']:,} records refused: {target / 'rejected.jsonl'}")
        lines.append(f"  the first, {first['path']}: {first['reason']}")
    text = "\n".join([*lines, f"corpus   {target}"])
    return Shown(made | {"out": str(target)}, text)


def _source(entry: dict[str, Any]) -> list[str]:
    """What became of a source's documents, in a line, and the reasons below it."""
    lines = [f"{entry['name']}: {entry['documents']:,} documents, {entry['bytes']:,} bytes"]
    lines += [f"  {count:,} dropped: {reason}" for reason, count in sorted(entry["dropped"].items())]
    if entry.get("quarantined"):
        lines.append(f"  {entry['quarantined']:,} to quarantine")
    return lines
