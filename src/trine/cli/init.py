"""trine init: a randomly initialised model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from trine.cli.live import watching
from trine.cli.result import Shown
from trine.cli.words import ConfigFile, Options, load
from trine.recipe import with_vocabulary


def init(
    config: ConfigFile,
    out: Annotated[Path, Parameter(help="The folder to make; it must not exist yet.")],
    /,
    *options: Options,
    seed: Annotated[int, Parameter(help="Every weight is drawn from this and its name.")] = 0,
    dtype: Annotated[Literal["float32", "bfloat16"], Parameter(help="Type of the weights.")] = "float32",
) -> Shown:
    """Write the config's model with random weights as a Hugging Face folder, streamed: memory holds one shard.

    Example: trine init recipes/quickstart.yaml random-model --model.vocab_size 4096
    """
    from trine.chain import section
    from trine.errors import BadInput
    from trine.model.hf import init_folder

    loaded = load(config, options)
    section(loaded, "model")
    model = with_vocabulary(loaded.config)
    if model is None or model.vocab_size is None:
        raise BadInput(f"{config}: model.vocab_size is not known; add --model.vocab_size N")
    with watching() as watch:
        init_folder(model, out, seed, dtype, watch.progress)
    return Shown({"out": str(out), "seed": seed, "dtype": dtype}, f"model    {out}")
