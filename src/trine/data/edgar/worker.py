"""One process that reads one filing after the other for its parent, within bounds on time and memory.

The kernel ends the process when a document takes more than its CPU time; that stops C code and Python alike, and a
busy machine fails nothing. The parent then starts another process.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from trine.data.edgar.cover import read_cover
from trine.data.edgar.document import Item, parse_document
from trine.data.edgar.header import Header
from trine.data.edgar.structured import xml_lines
from trine.data.edgar.submission import Part, Submission, read_unpacked
from trine.data.edgar.unpack import MOST_BYTES, unzipped
from trine.errors import BadInput

SECONDS_PER_MB = 2.0
_FREE_MEMORY, _MEMORY_PER_BYTE = 1 << 30, 80
_PAGE_BYTES = resource.getpagesize()


@dataclass
class Outcome:
    """What became of one input."""

    source_path: str
    status: str
    """`parsed` or `quarantined`."""
    reason: str
    seconds: float
    """CPU time."""
    bytes: int = 0
    """Of the uncompressed input."""
    items: list[dict[str, Any]] = field(default_factory=list)
    removed: list[dict[str, Any]] = field(default_factory=list)


def serve(handle: int, explain: bool) -> None:
    """Answer each path that comes through the connection `handle` with its Outcome, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    connection = Connection(handle)
    connection.send("ready")
    while True:
        try:
            path = connection.recv()
        except EOFError:
            return
        outcome = read_document(Path(path), explain)
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send(outcome)


def cpu_limit(size: int) -> float:
    """Seconds that an input of `size` bytes may take."""
    return SECONDS_PER_MB * max(1.0, size / 1e6)


def read_document(path: Path, explain: bool) -> Outcome:
    """Read and parse one file. Whatever is wrong with it becomes the outcome's reason."""
    began = time.process_time()
    outcome = Outcome(str(path), "quarantined", "", 0.0)
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise BadInput(f"{path}: {size:,} bytes, more than the {MOST_BYTES:,} that a filing may have")
        signal.setitimer(signal.ITIMER_PROF, cpu_limit(size))
        data = unzipped(path.read_bytes(), str(path))
        outcome.bytes = len(data)
        signal.setitimer(signal.ITIMER_PROF, cpu_limit(len(data)))
        with _memory_bound(len(data)):
            _fill(outcome, read_unpacked(data, str(path)), explain)
    except BadInput as error:
        outcome.reason = str(error).removeprefix(f"{path}: ")
    except OSError as error:
        outcome.reason = f"cannot be read ({error.strerror})"
    except MemoryError:
        outcome.reason = "needs more memory than a filing of its size may"
    except Exception as error:
        outcome.reason = f"{type(error).__name__}: {error}"
    if outcome.status == "quarantined":
        outcome.items, outcome.removed = [], []
    outcome.seconds = time.process_time() - began
    return outcome


def _fill(outcome: Outcome, filing: Submission, explain: bool) -> None:
    """Put the items of a filing's main document into `outcome`."""
    main = filing.main()
    if main is None:
        kinds = ", ".join(f"{part.type or 'no type'} ({part.kind})" for part in filing.parts[:5]) or "no document"
        raise BadInput(f"has no readable document of its form {filing.header.form or '(none named)'}: {kinds}")
    header = _header(filing, main)
    items, removed, warnings = _parsed(main, header.form)
    if not any(item.text.strip() for item in items):
        raise BadInput("; ".join(["its main document holds no text", *warnings]))
    company = header.company
    others = [one.cik for one in header.companies if one.cik and one.cik != company.cik]
    notes = list(filing.warnings)
    if others:
        notes.append(f"also of CIK {', '.join(dict.fromkeys(others))}")
    outcome.items = [
        {
            "accession": header.accession,
            "cik": company.cik,
            "company": company.name,
            "form": header.form,
            "period": header.period,
            "filed": header.filed,
            "source_path": outcome.source_path,
            "part": item.part,
            "item": item.item,
            "title": item.title,
            "text": item.text,
            "tables": "\n\n".join(item.tables),
            "confidence": item.confidence,
            "warnings": "; ".join([*item.warnings, *notes]),
            "sha256": filing.sha256,
            "byte_start": main.byte_start + item.byte_start,
            "byte_end": main.byte_start + item.byte_end,
        }
        for item in items
    ]
    if explain:
        outcome.removed = [
            {
                "source_path": outcome.source_path,
                "kind": one.kind,
                "text": one.text,
                "byte_start": main.byte_start + one.byte_start,
            }
            for one in removed
        ]
    outcome.status, outcome.reason = "parsed", "; ".join([*notes, *warnings])


def _parsed(main: Part, form: str) -> tuple[list[Item], list[Any], list[str]]:
    """Items, what was removed, and warnings of the main document."""
    if main.kind == "xml":
        lines, why = xml_lines(main.data)
        note = "data in XML, given as lines of name and value"
        item = Item("", "", form, "\n".join(lines), [], 0.5 if why else 1.0, [note], 0, len(main.data))
        return [item], [], [why] if why else []
    parsed = parse_document(main.data, form)
    return parsed.items, parsed.removed, parsed.warnings


def _header(filing: Submission, main: Part) -> Header:
    """The filing's header; where there is none, what the document says of itself, its TYPE being its form."""
    header = filing.header
    if header.accession or filing.container == "dissemination":
        return header
    cover = read_cover(main.data, filing.source)
    return Header(cover.accession, header.form or cover.form, cover.period, cover.filed, cover.companies)


@contextlib.contextmanager
def _memory_bound(size: int) -> Any:
    """At most 1 GiB and 80 bytes per byte of input more than the process has now, where the system can say that."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError):
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    bound = pages * _PAGE_BYTES + _FREE_MEMORY + _MEMORY_PER_BYTE * size
    hard = before[1]
    resource.setrlimit(resource.RLIMIT_AS, (bound if hard == resource.RLIM_INFINITY else min(bound, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
