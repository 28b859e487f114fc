"""A recipe of several verbs: each step is a command of trine, run once, in order, into one run folder.

Steps meet through folders. OUT/steps/NAME.json keeps what a finished step was asked and what it answered; a step that
is there is not run again, and the verbs themselves go on where they stopped, so the same command goes on.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field, model_validator

from trine.config.base import Frozen
from trine.config.inputs import InputConfig
from trine.config.load import Loaded, diff_config, load_config, read_resolved, to_yaml
from trine.config.yaml import read_yaml
from trine.errors import BadInput, CheckFailed, TrineError, nearest
from trine.manifest import digest_of, locked, write_file

_FOLDER, _CONFIG = "steps", "config.yaml"
_COMMAND = "import sys; from trine.cli.main import main; sys.exit(main())"
_OPTIONS = ("out", "json", "help", "version", "dry-run")


class Step(Frozen):
    """One command."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """What it is called in messages, and its record in OUT/steps."""
    run: str = Field(min_length=1)
    """A verb and its words, split as a shell splits them: `{out}` is the run folder, `{here}` the recipe's folder."""
    inside: bool = False
    """Runs in the run folder, so that relative paths, also those in files that it names, are the run's."""
    may_say_no: bool = False
    """A check's no (exit code 3) is an answer to keep, and the steps behind it run."""

    def words(self, out: Path, here: Path) -> list[str]:
        """The command's words."""
        if self.inside:
            out, here = out.resolve(), here.resolve()
        return [word.replace("{out}", str(out)).replace("{here}", str(here)) for word in shlex.split(self.run)]


class StepsConfig(Frozen):
    """A recipe whose stages are verbs."""

    inputs: tuple[InputConfig, ...] = ()
    """Named values that become options of `trine run`; `${NAME}` in a step stands for them."""
    steps: tuple[Step, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> StepsConfig:
        for name in (names := [one.name for one in self.steps]):
            if names.count(name) > 1:
                raise ValueError(f"two steps are named '{name}'")
        for one in self.inputs:
            if one.name in _OPTIONS:
                raise ValueError(f"an input may not be named '{one.name}': --{one.name} is an option of trine")
        for one in self.steps:
            try:
                shlex.split(one.run)
            except ValueError as error:
                raise ValueError(f"step {one.name}: {error} in: {one.run}") from None
        return self


class Watcher(Protocol):
    """Who is told of a step's beginning."""

    def on_event(self, text: str) -> None: ...


def has_steps(config: Path) -> bool:
    """Whether a recipe is one of steps. Raises BadInput when it cannot be read."""
    return "steps" in read_yaml(config).values


def load_steps(config: Path, options: Sequence[str], verbs: Sequence[str]) -> Loaded[StepsConfig]:
    """Load the recipe; `verbs` are those there are. Raises BadInput with a line per problem."""
    loaded = load_config(StepsConfig, config, options, verb_options=_OPTIONS)
    wrong = []
    for one in loaded.config.steps:
        verb = next(iter(shlex.split(one.run)), "")
        if verb not in verbs:
            wrong.append(
                f"{config}: step {one.name}: no verb '{verb}'{nearest(verb, verbs)} (verbs: {', '.join(verbs)})"
            )
    if wrong:
        raise BadInput("\n".join(wrong))
    return loaded


def run_steps(loaded: Loaded[StepsConfig], out: Path, watch: Watcher) -> dict[str, Any]:
    """Run what is not done yet into `out`; what each step answered.

    Raises BadInput when `out` holds something else or another process is at it; TrineError when a step fails,
    CheckFailed when a check says no that may not.
    """
    with _claimed(loaded, out):
        found: dict[str, Any] = {"out": str(out), "steps": {}}
        for number, step in enumerate(loaded.config.steps, 1):
            words = step.words(out, _here(loaded))
            record = kept(out, step.name, words)
            if record is None:
                watch.on_event(
                    f"step {number} of {len(loaded.config.steps)}, {step.name}: {shlex.join(['trine', *words])}"
                )
                record = _run(step, words, out)
                write_file(_path(out, step.name), json.dumps(record, indent=1, ensure_ascii=False) + "\n")
            found["steps"][step.name] = record
    return found


def kept(out: Path, name: str, words: Sequence[str]) -> dict[str, Any] | None:
    """The record of a finished step that was asked the same; None where there is none."""
    try:
        record = json.loads(_path(out, name).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise BadInput(f"{_path(out, name)}: not JSON ({error}); remove it to run the step again") from None
    return record if record.get("words") == list(words) else None


def plan_of(loaded: Loaded[StepsConfig], out: Path) -> list[dict[str, Any]]:
    """Each step's command, and whether it is done."""
    listed = []
    for step in loaded.config.steps:
        words = step.words(out, _here(loaded))
        done = kept(out, step.name, words) is not None
        listed.append({"name": step.name, "command": shlex.join(["trine", *words]), "done": done})
    return listed


def _run(step: Step, words: list[str], out: Path) -> dict[str, Any]:
    """Run a step as a command; its answer. What it says goes to stderr."""
    began = time.monotonic()
    command = [sys.executable, "-c", _COMMAND, *words, "--json"]
    folder = out if step.inside else None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        text, _ = process.communicate()
    code, shown = process.returncode, shlex.join(["trine", *words])
    if code and not (code == CheckFailed.exit_code and step.may_say_no):
        kind = CheckFailed if code == CheckFailed.exit_code else TrineError
        raise kind(f"step {step.name}: exit code {code} of: {shown}\nwhat is done is kept; the same command goes on")
    answer = next((one for one in reversed(text.splitlines()) if one.strip()), "{}")
    seconds = round(time.monotonic() - began, 1)
    return {"words": words, "exit_code": code, "seconds": seconds, "answer": json.loads(answer)}


def _here(loaded: Loaded[StepsConfig]) -> Path:
    assert loaded.path is not None
    return loaded.path.parent


def _path(out: Path, name: str) -> Path:
    return out / _FOLDER / f"{name}.json"


@contextmanager
def _claimed(loaded: Loaded[StepsConfig], out: Path) -> Iterator[None]:
    """Hold `out` as this recipe's run folder."""
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out}: is a file; expected a folder to make or to go on with")
    former = out / _CONFIG
    if former.is_file() and digest_of(values := read_resolved(former)) != loaded.hash:
        lines = "\n".join(f"  {line}" for line in diff_config(values, loaded.resolved))
        raise BadInput(f"{out}: holds a run of another recipe; name another --out, or go back to its recipe:\n{lines}")
    if out.is_dir() and not former.is_file() and any(out.iterdir()):
        raise BadInput(f"{out}: exists and is no run folder; name another --out")
    (out / _FOLDER).mkdir(parents=True, exist_ok=True)
    write_file(former, to_yaml(loaded.resolved))
    with locked(out, "running this recipe"):
        yield
