"""From words to tasks: our own by name, a folder or file of text by its path, all others lm-evaluation-harness's.

Everything that a task needs is found before any work; all that is missing is named at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from trine.errors import BadInput, nearest
from trine.evaluate.finqa import ProgramTask
from trine.evaluate.items import Task
from trine.evaluate.multiple import ChoiceTask
from trine.evaluate.needle import NeedleTask, read_hay
from trine.evaluate.suites import SUITES, Spec, expand
from trine.evaluate.tatqa import TatQa
from trine.evaluate.text import TextTask

if TYPE_CHECKING:
    from trine.evaluate.harness import Harness

_ENDINGS = ("", ".parquet", ".jsonl", ".jsonl.gz", ".txt", ".txt.gz")


@dataclass(frozen=True)
class Where:
    """Where tasks look."""

    data: Path | None = None
    """The folder that holds the data of tasks by their names."""
    limit: int | None = None
    """Items of each task, at most."""
    include: tuple[Path, ...] = ()
    """Folders of lm-evaluation-harness's task YAML."""
    network: bool = False
    """Whether the harness may fetch data."""
    unsafe_code: bool = False
    """Whether its tasks may run code that a model writes."""


class Options:
    """A spec's options, each of which must be read."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self._left = spec, dict(spec.options)
        self._known: list[str] = []

    def text(self, key: str) -> str | None:
        self._known.append(key)
        return self._left.pop(key, None)

    def number(self, key: str, default: int | None = None, least: int = 1) -> int | None:
        """A whole number. Raises BadInput."""
        value = self.text(key)
        if value is None:
            return default
        if not value.isdigit() or int(value) < least:
            raise BadInput(f"task '{self.spec.text}': {key} is {value}; expected a whole number of at least {least}")
        return int(value)

    def end(self) -> None:
        """Raise BadInput for an option that nothing read."""
        for key in self._left:
            known = ", ".join(self._known)
            raise BadInput(f"task '{self.spec.text}': no option '{key}' (it takes {known}){nearest(key, self._known)}")


def make_tasks(words: Sequence[str], where: Where) -> list[Task]:
    """The tasks of suites, names and paths. Raises BadInput that names everything missing."""
    tasks: list[Task] = []
    wrong: list[str] = []
    for spec in expand(tuple(words)):
        try:
            tasks.append(_make(spec, where))
        except BadInput as error:
            wrong.append(str(error))
    if wrong:
        raise BadInput("\n".join(wrong))
    return tasks


def _make(spec: Spec, where: Where) -> Task:
    options = Options(spec)
    given = options.number("limit")
    limit = min((one for one in (given, where.limit) if one is not None), default=None)
    if spec.name in OWN:
        task = OWN[spec.name](options, where, limit)
    else:
        path = find_path(spec.name, where.data)
        task = _harness(options, where, limit) if path is None else _text(options, path, limit)
    options.end()
    return task


def find_path(name: str, data: Path | None) -> Path | None:
    """An existing file or folder, below the current folder or that of the data, with or without its ending."""
    for root in [Path(), *([data] if data else [])]:
        for ending in _ENDINGS:
            if (path := root / f"{name}{ending}").exists():
                return path
    return None


def find_file(spec: Spec, given: str | None, where: Where, patterns: Sequence[str]) -> Path:
    """The one file of a task's data: as given, or the first pattern that finds one below the data's folder."""
    if given is not None:
        path = find_path(given, where.data)
        if path is None or not path.is_file():
            raise BadInput(f"task '{spec.text}': {given}: no such file")
        return path
    if where.data is None:
        raise BadInput(f"task '{spec.text}': its data is looked for in --data DIR, which is not given")
    for pattern in patterns:
        found = sorted(where.data.rglob(pattern))
        if len(found) > 1:
            names = ", ".join(str(one) for one in found[:4])
            raise BadInput(f"task '{spec.text}': {len(found)} files could be its data: {names}; choose by file=PATH")
        if found:
            return found[0]
    raise BadInput(f"task '{spec.text}': its data is not on disk: no {' or '.join(patterns)} below {where.data}")


def _unknown(spec: Spec, where: Where) -> str:
    looked = f"here or in {where.data}" if where.data else "here, and no --data DIR is given to look in"
    return (
        f"task '{spec.name}': no suite, task, file or folder of that name {looked}{nearest(spec.name, [*OWN, *SUITES])}"
    )


def _harness(options: Options, where: Where, limit: int | None) -> Task:
    try:
        from trine.evaluate.harness import HarnessTask
    except ModuleNotFoundError as error:
        unknown = _unknown(options.spec, where)
        raise BadInput(
            f"{unknown}; lm-evaluation-harness's are not here: pip install 'trine[eval]' ({error})"
        ) from None
    harness = _opened(where.include, where.network)
    if not harness.knows(options.spec.name):
        raise BadInput(_unknown(options.spec, where))
    shots, metric = options.number("shots", least=0), options.text("metric")
    return HarnessTask(
        options.spec.text,
        harness.load(options.spec.name, shots),
        metric=metric,
        wanted_filter=options.text("filter"),
        limit=limit,
        unsafe_code=where.unsafe_code,
    )


@cache
def _opened(include: tuple[Path, ...], network: bool) -> Harness:
    from trine.evaluate.harness import Harness

    return Harness(include, network)


def _text(options: Options, path: Path, limit: int | None) -> Task:
    field, kind, most = options.text("field"), options.text("class"), options.number("bytes")
    return TextTask(options.spec.text, path, field=field or "text", kind=kind, most_bytes=most, limit=limit)


def _choices(options: Options, where: Where, limit: int | None) -> Task:
    path = find_file(options.spec, options.text("file"), where, ("choices.jsonl",))
    return ChoiceTask(options.spec.text, path, limit)


def _likelihood(options: Options) -> bool:
    """Whether `metric=likelihood` is asked for."""
    wanted = options.text("metric") or "answers"
    if wanted not in ("answers", "likelihood"):
        raise BadInput(f"task '{options.spec.text}': metric is {wanted}; expected answers or likelihood")
    return wanted == "likelihood"


def _tat_qa(options: Options, where: Where, limit: int | None) -> Task:
    patterns = ("tatqa_dataset_dev.json", "tatqa*.json", "tat-qa*/*.json")
    path = find_file(options.spec, options.text("file"), where, patterns)
    return TatQa(options.spec.text, path, limit, _likelihood(options))


def _finqa(options: Options, where: Where, limit: int | None) -> Task:
    path = find_file(options.spec, options.text("file"), where, ("finqa/dev.json", "finqa/*.json", "finqa/*.csv"))
    return ProgramTask(options.spec.text, "finqa", path, limit, _likelihood(options))


def _convfinqa(options: Options, where: Where, limit: int | None) -> Task:
    patterns = ("convfinqa_dev.json", "convfinqa/dev.json", "convfinqa*/*.json")
    path = find_file(options.spec, options.text("file"), where, patterns)
    return ProgramTask(options.spec.text, "convfinqa", path, limit, _likelihood(options))


def _needle(options: Options, where: Where, limit: int | None) -> Task:
    length, items = options.number("length", 1024), options.number("items", 20)
    depths = options.text("depth") or "0 0.25 0.5 0.75 1"
    seed, hay = options.number("seed", 0, least=0), options.text("hay")
    try:
        places = tuple(float(one) for one in depths.split())
    except ValueError:
        places = (-1.0,)
    if not all(0 <= one <= 1 for one in places):
        raise BadInput(f"task '{options.spec.text}': depth is {depths}; expected numbers from 0 to 1, spaces between")
    text = read_hay(find_file(options.spec, hay, where, ())) if hay else None
    assert length is not None
    assert items is not None
    return NeedleTask(options.spec.text, length, places, min(items, limit or items), seed or 0, text)


Maker = Callable[[Options, Where, "int | None"], Task]
OWN: dict[str, Maker] = {
    "choices": _choices,
    "convfinqa": _convfinqa,
    "finqa": _finqa,
    "needle": _needle,
    "tat-qa": _tat_qa,
}
"""Tasks that are our own, by name."""
