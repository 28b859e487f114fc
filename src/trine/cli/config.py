"""trine config show: a config as trine reads it."""

from __future__ import annotations

from typing import Any

from trine.cli.result import Shown
from trine.cli.words import ConfigFile, Options, load
from trine.config.load import to_yaml
from trine.recipe import Config, with_vocabulary


def show(config: ConfigFile, /, *options: Options) -> Shown:
    """Print the config with every default written out, and the model's parameter counts, total and active.

    Example: trine config show recipes/books.yaml --model.num_experts 64
    """
    loaded = load(config, options)
    counts = parameters(loaded.config)
    record = {"config": loaded.resolved, "hash": loaded.hash, "parameters": counts}
    text = to_yaml(loaded.resolved)
    if counts is not None:
        text += (
            f"# parameters: {counts['total']:,} in all, {counts['active']:,} active for a token "
            f"({counts['active_blocks']:,} of them in the blocks)\n"
        )
    return Shown(record, text)


def parameters(config: Config) -> dict[str, Any] | None:
    """Counts of the config's model; None where it has none or its vocabulary is not known yet."""
    model = with_vocabulary(config)
    if model is None or model.vocab_size is None:
        return None
    from dataclasses import asdict

    from trine.model.flops import count_parameters

    return asdict(count_parameters(model))
