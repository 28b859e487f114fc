"""The words of the command line that several verbs share."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from trine.config.load import Loaded
    from trine.recipe import Config

Options = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]
"""`--a.b value` words that change the config, and the recipe's inputs."""
ConfigFile = Annotated[Path, Parameter(help="A config file (YAML).")]
Out = Annotated[Path | None, Parameter(help="Where the result goes; it must not exist yet.")]
RunOut = Annotated[
    Path | None, Parameter(help="The run folder. Default: runs/NAME, NAME being the config's file name.")
]
DryRun = Annotated[bool, Parameter(help="Print what would be done, and write nothing.")]


def load(config: Path, options: Sequence[str]) -> Loaded[Config]:
    """The config with the command line's options on top. Raises BadInput."""
    from trine.config.load import load_config
    from trine.recipe import VERB_OPTIONS, Config

    return load_config(Config, config, options, verb_options=VERB_OPTIONS)


def command_line() -> str:
    """The command as a shell reads it, for a model's card."""
    return shlex.join(["trine", *(word for word in sys.argv[1:] if word != "--json")])


def run_folder(loaded: Loaded[Config], out: Path | None) -> Path:
    """The run folder: as given, or runs/NAME."""
    return out or Path("runs") / loaded.name
