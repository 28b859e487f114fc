"""trine edgar: filings of the SEC, from quarterly indexes to items of text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from trine.cli.live import watching
from trine.cli.result import Shown
from trine.errors import BadInput, TrineError

if TYPE_CHECKING:
    from trine.data.edgar.site import Policy
    from trine.progress import Progress

_SHOWN = 10

Agent = Annotated[
    str | None,
    Parameter(help="Who asks, as the SEC demands: a name and an address, such as 'Example Ltd data@example.com'."),
]
Base = Annotated[str, Parameter(help="The host to ask; redirects stay on it.")]
Rate = Annotated[float, Parameter(help="Requests a second, at most 10, over all processes of this user.")]


def index(
    *sources: Annotated[str, Parameter(help="Quarters (2023Q4, 2020Q1-2023Q4) or index files (.idx, also .gz).")],
    out: Annotated[Path, Parameter(help="The Parquet file to make; it must not exist yet.")],
    form: Annotated[list[str] | None, Parameter(help="Only this form, exactly; repeatable.")] = None,
    cik: Annotated[list[str] | None, Parameter(help="Only this company; repeatable.")] = None,
    sic: Annotated[list[str] | None, Parameter(help="Only this industry; repeatable; needs --submissions.")] = None,
    since: Annotated[str | None, Parameter(name="--from", help="Filed on this date or later.")] = None,
    until: Annotated[str | None, Parameter(name="--to", help="Filed on this date or earlier.")] = None,
    submissions: Annotated[
        Path | None, Parameter(help="A folder of submissions JSON, which name the industry (SIC); indexes do not.")
    ] = None,
    user_agent: Agent = None,
    base_url: Base = "https://www.sec.gov",
    rate: Rate = 10.0,
    cache: Annotated[Path | None, Parameter(help="Where fetched quarters are kept.")] = None,
) -> Shown:
    """Quarterly indexes to a table of filings: cik, company, form, filed, accession, path, sic.

    Quarters are fetched, once each except the current one; index files on disk need no network.

    Example: trine edgar index 2023Q4 --form 10-K --out k.parquet --user-agent "Example Ltd data@example.com"

    Example: trine edgar index master.idx form.gz --cik 320193 --from 2023-01-01 --out apple.parquet
    """
    from trine.data.edgar.index import build_index, quarters, read_sics, wanted

    if not sources:
        raise BadInput("trine edgar index: name quarters, such as 2023Q4, or index files")
    want = wanted(form or (), cik or (), since, until, sic or ())
    if out.exists():
        raise BadInput(f"{out}: already exists; name another --out, or remove it first")
    if want.sics and submissions is None:
        raise BadInput("--sic needs --submissions DIR: an index names no industry, submissions JSON does")
    files: list[Path | tuple[int, int]] = []
    for word in sources:
        if (found := quarters(word)) is not None:
            files += found
        elif Path(word).is_file():
            files.append(Path(word))
        else:
            raise BadInput(f"{word}: no such file, and no quarter such as 2023Q4")
    sics = None if submissions is None else read_sics(submissions)
    with watching() as watch:
        if asked := [one for one in files if isinstance(one, tuple)]:
            got = _fetch_quarters(asked, _policy(user_agent, base_url, rate), cache, watch.progress)
            files = [got[one] if isinstance(one, tuple) else one for one in files]
        made = build_index([one for one in files if isinstance(one, Path)], out, want, sics, watch.progress)
    lines = [f"index    {out}: {made['kept']:,} of {made['filings']:,} filings in {made['files']} index files"]
    if "without_sic" in made:
        lines.append(f"sic      unknown for {made['without_sic']:,} filings: no JSON of their companies")
    if made["unread"]:
        lines.append(f"unread   {len(made['unread']):,} lines; the first, {made['unread'][0]}")
    return Shown(made | {"out": str(out)}, "\n".join(lines))


def _fetch_quarters(
    asked: list[tuple[int, int]], policy: Policy, cache: Path | None, progress: Progress
) -> dict[tuple[int, int], Path]:
    """The index file of each quarter; master.gz, or master.idx where the host has no other."""
    from datetime import date

    from trine.data.edgar.fetch import cache_folder, fetch

    today = date.today()
    current = (today.year, (today.month + 2) // 3)
    folder = cache or cache_folder() / "indexes"
    left, got = asked, dict[tuple[int, int], Path]()
    for name in ("master.gz", "master.idx"):
        paths = {one: f"Archives/edgar/full-index/{one[0]}/QTR{one[1]}/{name}" for one in left}
        anew = frozenset(path for one, path in paths.items() if one >= current)
        record = fetch(paths.values(), folder, policy, progress, anew)
        got |= {one: record["files"][path] for one, path in paths.items() if path in record["files"]}
        left = [one for one in left if one not in got]
        if not left:
            return got
    raise TrineError("\n".join(f"{paths[one]}: {record['failed'][paths[one]]}" for one in left))


def fetch(
    *sources: Annotated[str, Parameter(help="Tables of `trine edgar index`, or paths such as edgar/data/1/2.txt.")],
    out: Annotated[Path, Parameter(help="The folder to fill; one that was begun goes on.")],
    user_agent: Agent = None,
    base_url: Base = "https://www.sec.gov",
    rate: Rate = 10.0,
) -> Shown:
    """Download filings into a folder: each file once, whole, under its SHA-256; `fetched.jsonl` says which is which.

    The same command again asks only for what is missing. Several processes may fill one folder.

    Example: trine edgar fetch k.parquet --out filings --user-agent "Example Ltd data@example.com"
    """
    from trine.data.edgar.fetch import fetch as run
    from trine.data.edgar.index import read_paths

    if not sources:
        raise BadInput("trine edgar fetch: name tables of `trine edgar index`, or paths such as edgar/data/1/2.txt")
    policy = _policy(user_agent, base_url, rate)
    paths = [path for word in sources for path in (read_paths(Path(word)) if word.endswith(".parquet") else [word])]
    paths = [f"Archives/{path}" if path.startswith("edgar/") else path for path in paths]
    with watching() as watch:
        record = run(paths, out, policy, watch.progress)
    failed = record["failed"]
    text = f"fetch    {out}: {record['fetched']:,} files fetched, {record['bytes']:,} bytes, {record['requests']:,} "
    text += f"requests; {record['present']:,} were there"
    if failed:
        lines = [f"{path}: {why}" for path, why in list(failed.items())[:_SHOWN]]
        if len(failed) > _SHOWN:
            lines.append(f"... and {len(failed) - _SHOWN:,} more")
        raise TrineError("\n".join([text, f"{len(failed):,} of {len(paths):,} files failed:", *lines]))
    return Shown(record | {"out": str(out), "files": len(record["files"])}, text)


def parse(
    *sources: Annotated[Path, Parameter(help="Filings, or folders of them: .txt, .nc, .htm, .html, also with .gz.")],
    out: Annotated[Path, Parameter(help="The Parquet file of items to make; documents.parquet appears beside it.")],
    workers: Annotated[int, Parameter(help="Processes.")] = 1,
    explain: Annotated[bool, Parameter(help="Also list what was taken out as furniture, in removed.parquet.")] = False,
) -> Shown:
    """Filings to their items: text and tables of each, with a confidence and where it stands in the file.

    A filing that cannot be read is set aside, with its reason in documents.parquet, and never stops the run.

    Example: trine edgar parse filings --out items.parquet --workers 2
    """
    if not sources:
        raise BadInput("trine edgar parse: name filings, or folders of them")
    from trine.data.edgar.parse import parse_filings

    with watching() as watch:
        record = parse_filings(sources, out, workers, explain, watch.progress)
    speed = record["bytes"] / 1e6 / max(record["seconds"], 1e-9)
    lines = [
        f"parse    {out}: {record['items']:,} items of {record['parsed']:,} filings, {speed:.1f} MB/s",
        f"listed   {out.with_name('documents.parquet')}: {record['inputs']:,} inputs, "
        f"{record['quarantined']:,} set aside",
    ]
    if record["not_filings"]:
        lines.append(f"left     {record['not_filings']:,} files whose names do not end as filings do")
    if explain:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(record["removed"].items())) or "nothing"
        lines.append(f"removed  {out.with_name('removed.parquet')}: {kinds}")
    return Shown(record | {"out": str(out)}, "\n".join(lines))


def _policy(user_agent: str | None, base_url: str, rate: float) -> Policy:
    from trine.data.edgar.site import Policy

    return Policy(user_agent=user_agent or "", base_url=base_url, per_second=rate)
