"""Files that say which matrices of a model are to be trained, and how large their gradients are."""

from __future__ import annotations

from pathlib import Path

from trine.errors import BadInput

GRADIENTS_FORMAT = "trine-gradients-1"
"""`meta.format` of a file of gradient norms."""


def read_selection(path: Path) -> dict[str, int]:
    """Names to train and the line of each: trine's selection file (the list under `train:`), or one name per line.

    Raises BadInput for another file, and for one without names.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error}); expected a file of `trine spectrum select`") from None
    numbered = [(i, line.strip()) for i, line in enumerate(lines, 1)]
    if any(line.startswith("unfrozen_parameters:") for _, line in numbered):
        raise BadInput(f"{path}: is axolotl's format, which holds patterns; write it with --format trine or plain")
    begins = [i for i, line in numbered if line == "train:"]
    named = [(i, line) for i, line in numbered if line and not line.startswith("#") and i > (begins or [0])[0]]
    found = dict[str, int]()
    for number, line in named:
        name = line.removeprefix("- ").strip("\"'")
        if " " in name or ":" in name:
            raise BadInput(f"{path}:{number}: '{line[:80]}' is no parameter's name; expected one name per line")
        found.setdefault(name, number)
    if not found:
        raise BadInput(f"{path}: names nothing to train")
    return found
