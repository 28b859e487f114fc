"""trine check: is a config right?"""

from __future__ import annotations

from trine.cli.result import Shown
from trine.cli.words import ConfigFile, Options, load
from trine.config.inputs import path_exists
from trine.errors import BadInput


def check(config: ConfigFile, /, *options: Options) -> Shown:
    """Say everything that is wrong with a config, each with file, line and what is allowed; write nothing.

    Example: trine check recipes/quickstart.yaml --train.steps 500
    """
    from trine.steps import has_steps, load_steps

    if has_steps(config):
        from trine.cli.main import verbs

        steps = load_steps(config, options, verbs())
        names = [one.name for one in steps.config.steps]
        text = f"{config}: good (steps {', '.join(names)})"
        return Shown({"config": str(config), "hash": steps.hash, "steps": names}, text)
    loaded = load(config, options)
    corpus = loaded.config.corpus
    missing = [one for one in (corpus.sources if corpus else ()) if not path_exists(one.path)]
    if missing:
        lines = [f"{config}: source '{one.name}': no such file or folder: {one.path}" for one in missing]
        raise BadInput("\n".join(lines))
    present = [name for name, value in loaded.resolved.items() if value is not None]
    text = f"{config}: good ({', '.join(present)})"
    return Shown({"config": str(config), "hash": loaded.hash, "sections": present}, text)
