"""trine merge with a config of several documents: one merge after the other, finished ones left as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from trine.cli.result import Shown
from trine.errors import BadInput

if TYPE_CHECKING:
    from trine.merge.documents import Document

Merge = Callable[[Path, Path], Shown]
"""Merge by a config (first path) into a new folder (second path)."""


def merge_documents(
    config: Path, out: Path, parts: Path | None, settings: dict[str, Any], dry: bool, merge: Merge
) -> Shown:
    """Merge every document that is not finished; all are checked first. `settings`: what a finished one must have."""
    from trine.merge.documents import read_documents

    documents = read_documents(config, out, parts)
    with TemporaryDirectory() as scratch:
        recipe = Path(scratch) / "merge.yaml"
        for one in documents:
            recipe.write_text(one.text, encoding="utf-8")
            with _named(recipe, config):
                _check(recipe, {*one.needs})
        made = [_one(one, documents, settings, dry, recipe, config, merge) for one in documents]
    return Shown({"out": str(out), "documents": [one.record for one in made]}, "\n".join(one.text for one in made))


def _one(
    one: Document,
    documents: Sequence[Document],
    settings: dict[str, Any],
    dry: bool,
    recipe: Path,
    config: Path,
    merge: Merge,
) -> Shown:
    """The merge of one document; `recipe`: a file for it as a config of its own."""
    from trine.merge.documents import complete, recipe_text

    label, head = one.name or "the last merge", {"name": one.name, "out": str(one.out)}
    if complete(one, settings, [other.out for other in documents]):
        return Shown({**head, "state": "kept"}, f"kept     {one.out}: {label} is finished")
    missing = [other.name for other in documents if other.name in one.needs and not other.out.is_dir()]
    if dry and missing:
        return Shown(
            {**head, "state": "waits", "for": missing}, f"later    {one.out}: needs {', '.join(map(str, missing))}"
        )
    recipe.write_text(recipe_text(one), encoding="utf-8")
    with _named(recipe, config):
        shown = merge(recipe, one.out)
    return Shown({**head, "state": "planned" if dry else "merged", **shown.record}, shown.text)


def _check(recipe: Path, names: set[str]) -> None:
    """The document's keys and values, and the models that no other document makes."""
    from trine.merge.models import open_models
    from trine.merge.reading import load_recipe

    open_models([one for one in load_recipe(recipe).models if one.model.path not in names])


@contextmanager
def _named(recipe: Path, config: Path) -> Iterator[None]:
    """Errors that name the file of one document name the whole config."""
    try:
        yield
    except BadInput as error:
        raise BadInput(str(error).replace(str(recipe), str(config))) from None
