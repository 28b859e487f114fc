"""trine report: the page of a run, of a merge, or of a scan."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from trine.cli.result import Shown
from trine.errors import BadInput
from trine.manifest import MANIFEST, read_manifest


def report(
    run: Annotated[Path, Parameter(help="A run folder, finished or not, a model that `trine merge` made, or a scan.")],
    /,
    *,
    out: Annotated[
        Path | None,
        Parameter(help="The file to write. Default: report.html in the run folder; MODEL.html, SCAN.html beside it."),
    ] = None,
) -> Shown:
    """Write one self-contained HTML file: losses, throughput, router health, bits per byte, samples, config.

    For a merged model: sizes of the differences, cosines between them, conflicts of sign, what was trimmed. Its
    inputs are read again, so this runs where the merge ran. For a scan of `trine spectrum`: SNR by layer and type, the
    spectrum of each matrix, what training a share would cost.

    Example: trine report runs/quickstart --out report.html
    """
    if run.is_file():
        path = out or run.with_suffix(".html")
        _scanned(run, path)
        return Shown({"out": str(path)}, f"report   {path}")
    meta = read_manifest(run)["meta"] if (run / MANIFEST).is_file() else {}
    verb = meta.get("verb", "merge" if "method" in meta else None)
    if verb not in (None, "merge"):
        raise BadInput(
            f"{run}: was made by `trine {verb}`, of which there is no page: pages show runs, merges and scans. "
            f"{run / 'README.md'} says what it was made from"
        )
    if verb:
        path = out or run.with_name(f"{run.name}.html")
        _merged(run, meta, path)
    else:
        from trine.report.page import write_report

        path = write_report(run, out)
    return Shown({"out": str(path)}, f"report   {path}")


def _scanned(scan: Path, page: Path) -> None:
    from trine.report.scan import write_scan
    from trine.spectrum.overview import overview

    if page.resolve() == scan.resolve():
        raise BadInput(f"{page}: is the scan itself; name another --out")
    write_scan(overview(scan), scan.stem, page)


def _merged(model: Path, meta: dict[str, Any], page: Path) -> None:
    """Plan the merge again from the recipe in its manifest and measure it."""
    from trine.cli.live import watching
    from trine.cli.merge import planned, write_report
    from trine.merge.align import align_experts
    from trine.merge.engine import Options

    if meta.get("stacked"):
        raise BadInput(f"{model}: its experts were merged stacked; a report takes experts by themselves")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "recipe.yaml"
        config.write_text(meta["config"])
        try:
            plan = planned(config)
        except BadInput as error:
            raise BadInput(f"{model}: its merge cannot be planned again here: {error}") from None
    with watching() as watch:
        if meta["aligned"]:
            plan = align_experts(plan, watch.progress)
        write_report(plan, model, Options(meta["numerics"] == "mergekit", meta["seed"], True), page, watch.progress)
