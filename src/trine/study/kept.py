"""Finished runs as small files, so that a page of evidence lies beside every figure it rests on.

A kept run is known by what its config says other than the defaults (a field that a later version adds changes nothing)
and by its tokens, not by folders: it counts as finished in any checkout, and a page can be made of kept runs alone,
where there is neither data nor run folder. Where a run reads other files, words stand for their paths.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from trine.data.shards import TokenShards
from trine.manifest import MANIFEST, digest_of, write_file
from trine.recipe import Config
from trine.study.measures import bias_change
from trine.train.metrics import read_metrics

_DIGITS = 6
_COLUMNS = ("step", "tokens", "loss", "grad_norm", "batch_het", "max_vio")


class KeptRun:
    """A run as it is or will be kept: one JSON file with what was trained on what, its result, a column per measure."""

    def __init__(self, folder: Path, title: str, config: Config, words: Mapping[str, str]) -> None:
        """`words` stand for the paths that `train.init_from`, `train.only` and `train.tokens` name."""
        assert config.train is not None
        assert config.train.tokens is not None
        self._folder, self._title, self._tokens = folder, title, Path(config.train.tokens)
        read = {"init_from": config.train.init_from, "only": config.train.only}
        said = {name: words.get(path, path) for name, path in read.items() if path is not None}
        word = words.get(config.train.tokens)
        config = config.model_copy(update={"train": config.train.model_copy(update=said)})
        self._said = _with_tokens(config.model_dump(mode="json", exclude={"inputs"}), word)
        other = config.model_dump(mode="json", exclude={"inputs"}, exclude_defaults=True)
        self._identity = digest_of(_with_tokens(other, word))[:8]

    def find(self) -> dict[str, Any] | None:
        """What is kept of the run; None without. Where its tokens are absent, those of the kept run are taken to be
        meant, unless runs on several are kept."""
        paths = sorted(self._folder.glob(f"*-{self._identity}.json"))
        found = [one for path in paths if _agrees((one := _read(path))["config"], self._said)]
        tokens = _tokens_digest(self._tokens)
        if tokens is not None:
            return next((one for one in found if one["tokens_sha256"] == tokens), None)
        return found[0] if len(found) == 1 else None

    def keep(self, folder: Path, result: dict[str, Any]) -> None:
        """Write down the finished run of a run folder, its figures to six digits."""
        steps, tokens = read_metrics(folder / "metrics.jsonl"), _tokens_digest(self._tokens)
        document = {
            "config": self._said,
            "tokens_sha256": tokens,
            "vocab_size": None if tokens is None else TokenShards(self._tokens).vocab_size,
            "result": result,
            "bits_per_byte": {one["step"]: one["bits_per_byte"] for one in steps if one.get("bits_per_byte")},
            **{name: [_short(one.get(name)) for one in steps] for name in _COLUMNS},
            "bias_change": [_short(bias_change(one)) for one in steps],
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in document.items()]
        path = self._folder / f"{self._title}-{str(tokens)[:8]}-{self._identity}.json"
        write_file(path, "{\n" + ",\n".join(lines) + "\n}\n")


def records(kept: dict[str, Any]) -> list[dict[str, Any]]:
    """One record per step of a kept run, as metrics.jsonl has them, with what measures read."""
    made = []
    for row in zip(*(kept[name] for name in (*_COLUMNS, "bias_change")), strict=True):
        record = {name: value for name, value in zip(_COLUMNS, row, strict=False) if value is not None}
        if row[-1] is not None:
            record["router"] = {"bias_change": [row[-1]]}
        if bits := kept["bits_per_byte"].get(str(record["step"])):
            record["bits_per_byte"] = bits
        made.append(record)
    return made


@cache
def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def _with_tokens(values: dict[str, Any], word: str | None) -> dict[str, Any]:
    """`values` with the word for the tokens' folder, or with none."""
    train = {key: value for key, value in values["train"].items() if key != "tokens"}
    return values | {"train": train if word is None else train | {"tokens": word}}


def _agrees(kept: Any, now: Any) -> bool:
    """Whether every field that both have is equal: no default has changed since."""
    if isinstance(kept, dict) and isinstance(now, dict):
        return all(_agrees(kept[key], now[key]) for key in kept.keys() & now.keys())
    return kept == now


def _tokens_digest(folder: Path) -> str | None:
    """SHA-256 over the checksums of the token folder's tokens; None where the folder is not (yet) there."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    files, data = json.loads(path.read_text())["files"], (".bin", ".idx", ".msk", ".src")
    return digest_of({name: entry["sha256"] for name, entry in files.items() if name.endswith(data)})


def _short(value: float | None) -> float | None:
    if value is None or isinstance(value, int):
        return value
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
