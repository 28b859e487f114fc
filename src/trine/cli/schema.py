"""trine schema: the config's JSON Schema, or its reference as Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from trine.cli.result import Shown
from trine.manifest import write_file
from trine.recipe import Config

AsMarkdown = Annotated[bool, Parameter(help="A reference to read instead of a schema for editors.")]


def schema(*, markdown: AsMarkdown = False, out: Annotated[Path | None, Parameter(help="A file.")] = None) -> Shown:
    """Print the JSON Schema of a config, for completion and checks in your editor.

    Example: trine schema --out trine.schema.json
    """
    from trine.config import reference
    from trine.config.schema import json_schema

    record = json_schema(Config)
    text = reference.markdown(Config) if markdown else json.dumps(record, indent=2) + "\n"
    if out is None:
        return Shown(record, text)
    write_file(out, text)
    return Shown({"out": str(out)}, f"schema   {out}")
