"""Near-duplicates on many machines: datatrove's executors make and compare signatures, task by task.

Two stages run under an executor (processes of this machine, a Slurm cluster or Ray), each task in files of its own in a
folder that all machines see: signatures (each task reads every n-th file of the sources) and buckets (signatures
that agree in a band). What agrees is then put together here, and of texts that agree, directly or by way of others, the
first in reading order is kept, held-out sets being first.

Unlike on one machine, agreement in one band is enough and is not checked by an estimate: with 14 buckets of 8 hashes,
at the default threshold, texts 0.8 alike are found with P = 0.92, and texts 0.7 alike taken for near-duplicates with
P = 0.56. Texts are compared as they were read, before other steps change them.

Memory here: about 20 bytes per document and 100 per one that agrees with another.
"""

from __future__ import annotations

import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document as Text
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets, MinhashDedupSignature
from datatrove.utils.logging import logger
from datatrove.utils.word_tokenizers import WordTokenizer

from trine.data.config import CorpusConfig, ExecutorConfig, SourceConfig
from trine.data.document import Document, cut
from trine.data.heldout import set_of
from trine.data.near import SHINGLE
from trine.data.readings import Files, records_of
from trine.data.sources import BadFile
from trine.data.words import ngrams, words_of
from trine.errors import BadInput, TrineError

_HASHES = 112
_FOUND = 0.9
"""Two texts exactly as alike as the threshold agree in a band with at least this probability."""
_POLL_SECONDS = 5.0
_Place = tuple[int, int]
"""(task, number of the document in it)."""


def buckets_for(threshold: float) -> tuple[int, int]:
    """(buckets, hashes in each): as many hashes as leave texts at `threshold` found with probability `_FOUND`."""
    for rows in range(_HASHES, 1, -1):
        if 1 - (1 - threshold**rows) ** (_HASHES // rows) >= _FOUND:
            return _HASHES // rows, rows
    return _HASHES, 1


def find_duplicates(config: CorpusConfig, sources: list[SourceConfig], files: Files, folder: Path) -> set[bytes]:
    """`Document.key` of each document that nearly repeats an earlier one; `sources` are in the order of reading, and
    everything lies in `folder` meanwhile."""
    assert config.near_duplicates is not None
    assert config.near_duplicates.executor is not None
    executor = config.near_duplicates.executor
    pairs = [(source, path) for source in sources for path in files[source.name]]
    tasks = min(executor.tasks, len(pairs))
    buckets, rows = buckets_for(config.near_duplicates.threshold)
    minhash = MinhashConfig(n_grams=SHINGLE, num_buckets=buckets, hashes_per_bucket=rows)
    logger.remove()
    signatures = [_Reader(config, pairs, folder / "documents"), _Signatures(str(folder / "signatures"), minhash)]
    _run(executor, signatures, tasks, folder / "logs-signatures")
    found = [MinhashDedupBuckets(str(folder / "signatures"), str(folder / "found"), config=minhash)]
    _run(executor, found, buckets, folder / "logs-buckets")
    return _later(folder, tasks)


class _Reader(PipelineStep):
    """Reads a task's files, and writes down of each document its key and its place in the order of reading."""

    name, type = "trine corpus", "reader"

    def __init__(self, config: CorpusConfig, pairs: list[tuple[SourceConfig, Path | None]], folder: Path) -> None:
        super().__init__()
        self.config, self.pairs, self.folder = config, pairs, folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Text]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{rank:05}").open("wb") as file:
            for number in range(rank, len(self.pairs), world_size):
                source, path = self.pairs[number]
                for document in _documents(self.config, source, path):
                    later = set_of(self.config, source, document) == "train"
                    file.write(struct.pack("<BI", later, number) + document.key(source.name))
                    yield Text(document.text, document.path)


class _Signatures(MinhashDedupSignature):
    """Signatures of the words that one machine compares too."""

    def __init__(self, folder: str, config: MinhashConfig) -> None:
        super().__init__(folder, config, language=_NoWords())  # pyright: ignore[reportArgumentType]

    def get_shingles(self, text: str) -> np.ndarray:
        """Hashes of the shingles of `text` [shingles, 1]."""
        hashes = words_of(text).hashes
        return ngrams(hashes, max(1, min(SHINGLE, len(hashes)))).reshape(-1, 1)


class _NoWords(WordTokenizer):
    """Stands where datatrove would load a tokenizer of its own; nothing asks it."""

    def word_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        raise NotImplementedError


def _documents(config: CorpusConfig, source: SourceConfig, path: Path | None) -> Iterator[Document]:
    """The documents of a file as far as it can be read; the reading that builds the corpus says what is wrong."""
    try:
        for record in records_of(source, path):
            if isinstance(record, Document):
                yield from (record,) if record.messages is not None else cut(record, config.max_document_bytes)
    except BadFile:
        return


def _run(config: ExecutorConfig, pipeline: list[Any], tasks: int, logs: Path) -> None:
    """Run a stage and wait for its last task. Raises TrineError for a task that did not end well."""
    executor = _executor(config, pipeline, tasks, logs)
    executor.run()
    while left := executor.get_incomplete_ranks(skip_completed=True):
        if config.kind != "slurm" or not _in_queue(str(getattr(executor, "job_id", ""))):
            raise TrineError(f"{logs}: {len(left)} of {tasks} tasks did not end well; their logs are there")
        time.sleep(_POLL_SECONDS)


def _executor(config: ExecutorConfig, pipeline: list[Any], tasks: int, logs: Path) -> PipelineExecutor:
    options: dict[str, Any] = {"pipeline": pipeline, "tasks": tasks, "logging_dir": str(logs), **config.options}
    try:
        match config.kind:
            case "local":
                from datatrove.executor.local import LocalPipelineExecutor

                return LocalPipelineExecutor(**options)
            case "slurm":
                from datatrove.executor.slurm import SlurmPipelineExecutor

                return SlurmPipelineExecutor(**{"slurm_logs_folder": str(logs / "slurm"), **options})
            case "ray":
                from datatrove.executor.ray import RayPipelineExecutor

                return RayPipelineExecutor(**options)
    except (TypeError, ImportError) as error:
        raise BadInput(f"near_duplicates.executor: datatrove's {config.kind} executor says: {error}") from None


def _in_queue(job: str) -> bool:
    done = subprocess.run(["squeue", "--noheader", "--jobs", job], capture_output=True, text=True, check=False)
    return done.returncode == 0 and bool(done.stdout.strip())


def _later(folder: Path, tasks: int) -> set[bytes]:
    """Keys of the documents of which an earlier one is kept."""
    record = np.dtype([("later", "u1"), ("file", "<u4"), ("key", "V16")])
    read = [np.fromfile(folder / "documents" / f"{task:05}", record) for task in range(tasks)]
    pairs = [np.fromfile(path, "<u4").reshape(-1, 4) for path in sorted((folder / "found").glob("*.dups"))]
    first: dict[_Place, _Place] = {}

    def order(place: _Place) -> tuple[int, int, int]:
        row = read[place[0]][place[1]]
        return int(row["later"]), int(row["file"]), place[1]

    def root(place: _Place) -> _Place:
        while (above := first.setdefault(place, place)) != place:
            first[place] = first[above]
            place = first[place]
        return place

    for a, b, c, d in (row for some in pairs for row in some.tolist()):
        one, other = sorted((root((a, b)), root((c, d))), key=order)
        first[other] = one
    return {bytes(read[task][number]["key"]) for task, number in first if root((task, number)) != (task, number)}
