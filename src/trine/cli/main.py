"""The `trine` command: verbs, exit codes, and one way to print results and errors.

A verb returns a `Shown`; what it prints while it works goes to stderr. Exit codes: 0 done, 1 failed at work, 2 bad
input and nothing written, 3 a check said no, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from cyclopts import App, CycloptsError, Parameter

from trine import __version__
from trine.cli.result import Shown
from trine.errors import BadInput, CheckFailed, TrineError

HELP = """From raw text to a sparse mixture-of-experts language model of your own, in Hugging Face format.

Start with: trine run recipes/quickstart.yaml
"""
EPILOGUE = """Every verb takes --json: one JSON object on stdout, all else on stderr. Any field of a config is an
option: --train.steps 200. Exit codes: 0 done, 1 failed at work, 2 bad input and nothing written, 3 a check said no."""
VERBS = {
    "run": "Every stage of a recipe: text to trained, exported and measured model.",
    "plan": "What training will need: memory, disk, time.",
    "check": "Say everything that is wrong with a config.",
    "corpus": "Sources to deduplicated documents and a ledger.",
    "tokenizer": "A corpus to a byte-level BPE.",
    "pack": "A corpus and a tokenizer to token shards.",
    "train": "Token shards to a trained model and its report.",
    "study": "Claims put to the test: arms, seeds, tables and plots of evidence.",
    "merge": "Models to one model, by a recipe in mergekit's YAML.",
    "moe": "Dense models to a mixture of experts.",
    "export": "A checkpoint to a Hugging Face folder.",
    "generate": "Complete a text.",
    "eval": "Measure a model by tasks and texts.",
    "compare": "Evaluations side by side, item by item.",
    "gate": "Pass or fail a model: what it forgot, what it learned.",
    "report": "A run folder, a merge or a scan to one HTML file.",
    "init": "A randomly initialised Hugging Face folder.",
    "schema": "The JSON Schema of a config, for editors.",
}
GROUPS = {
    "config": (2, "`config show`: a config as trine reads it, and its parameter counts.", {"show": "config"}),
    "data": (6, "`data show`: a batch as the model sees it.", {"show": "data"}),
    "lora": (9, "`lora extract`: an adapter out of the difference of two models.", {"extract": "lora"}),
    "tokens": (9, "`tokens transplant`: a model with another's tokenizer.", {"transplant": "tokens"}),
    "spectrum": (
        9,
        "`spectrum scan`, `select`, `gradients`, `study`: the matrices that stand out of the noise.",
        {"scan": "spectrum", "select": "spectrum", "gradients": "spectrum", "study": "spectrum_study"},
    ),
    "edgar": (
        3,
        "`edgar index`, `fetch`, `parse`: filings of the SEC, from indexes to items of text.",
        {"index": "edgar", "fetch": "edgar", "parse": "edgar"},
    ),
}
"""Verbs of two words: place among the others, summary, and the module of each."""

EXTRAS = {
    "train": {"torch", "numpy", "safetensors", "transformers"},
    "data": {"pyarrow", "tokenizers", "zstandard"},
    "eval": {"lm_eval", "datasets"},
    "edgar": {"httpx"},
    "merge": {"cma"},
    "report": {"jinja2"},
}
"""Which of pyproject's extras brings a package."""


def make_app(verb: str | None = None) -> App:
    """The command with its verbs, none of them imported; `verb` will show its own help, the others a line."""
    app = App(
        name="trine",
        help=HELP,
        help_epilogue=EPILOGUE,
        version=__version__,
        default_parameter=Parameter(negative=()),
        result_action="return_value",
    )
    for place, (name, summary) in enumerate(VERBS.items()):
        about = {} if name == verb else {"help": summary}
        app.command(f"trine.cli.{name}:{name}", name=name, sort_key=place, **about)
    for name, (place, summary, verbs) in GROUPS.items():
        group = App(name=name, help=summary, sort_key=place)
        for verb_of, where in verbs.items():
            group.command(f"trine.cli.{where}:{verb_of}", name=verb_of)
        app.command(group)
    return app


def verbs() -> list[str]:
    """The names of all verbs, without those of groups such as `spectrum scan`."""
    return [name for name in make_app() if not name.startswith("-")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in words
    words = [word for word in words if word != "--json"]
    try:
        shown = make_app(next(iter(words), None))(words, exit_on_error=False, print_error=False)
        if isinstance(shown, Shown):
            _print(json.dumps(shown.record, ensure_ascii=False) if as_json else shown.text)
        return 0
    except CycloptsError as error:
        return _fail(BadInput(f"{str(error).strip()}\nsee: trine --help"), as_json)
    except TrineError as error:
        return _fail(error, as_json)
    except KeyboardInterrupt:
        return _fail(TrineError("interrupted; run the same command again to go on"), as_json, 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        extra = next((name for name, packages in EXTRAS.items() if package in packages), "all")
        return _fail(TrineError(f"this verb needs the package {package}: pip install 'trine[{extra}]'"), as_json)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(TrineError(f"{where}{error.strerror or error}"), as_json)
    except Exception as error:
        if "TRINE_DEBUG" in os.environ:
            traceback.print_exc()
        hint = "this is a fault of trine; set TRINE_DEBUG=1 to see where"
        return _fail(TrineError(f"{type(error).__name__}: {error}\n{hint}"), as_json)


def _print(text: str) -> None:
    if text:
        sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
        sys.stdout.flush()


def _fail(error: TrineError, as_json: bool, code: int | None = None) -> int:
    code = error.exit_code if code is None else code
    for line in str(error).splitlines():
        print(f"trine: {line}", file=sys.stderr)
    if as_json:
        found = error.record if isinstance(error, CheckFailed) else {}
        record: dict[str, Any] = {"error": str(error), "exit_code": code} | found
        _print(json.dumps(record, ensure_ascii=False))
    return code
