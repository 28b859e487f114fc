"""trine spectrum: which matrices of a model stand out of the noise, and which of them to train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from trine.cli.live import watching
from trine.cli.result import Shown
from trine.cli.words import ConfigFile, load, run_folder
from trine.cli.words import Options as Words
from trine.errors import BadInput

_SHOWN = 5


def scan(
    model: Annotated[str, Parameter(help="A model folder, or a repository in the Hub's cache.")],
    /,
    *,
    out: Annotated[Path, Parameter(help="The JSON file to make.")],
    measure: Annotated[
        Literal["calibrated", "published"],
        Parameter(help="Noise fitted by Marchenko-Pastur, or the published procedure, for comparison."),
    ] = "calibrated",
    workers: Annotated[int, Parameter(help="Threads that each scan a matrix.")] = 1,
    device: Annotated[str, Parameter(help="auto (CUDA where there is one), cpu, cuda or cuda:N.")] = "auto",
) -> Shown:
    """Measure the signal-to-noise ratio of every matrix, streamed from the files; no model is built.

    A scan that was stopped goes on when the same command is given again; a finished matrix is not scanned twice. Under
    `torchrun` each rank scans its share, and the first writes the file.

    Example: trine spectrum scan runs/quickstart/export --out scan.json
    """
    from trine.spectrum.scan import Where
    from trine.spectrum.scan import scan as run

    with watching() as watch:
        record = run(model, out, measure, watch.progress, Where(workers, device))
    if record is None:
        return Shown({"out": None}, "scan     this rank's share is done; the first rank writes the file")
    meta = {name: value for name, value in record["meta"].items() if name != "largest"}
    return Shown({"out": str(out), **meta}, _scan_text(out, meta))


def _scan_text(out: Path, meta: dict[str, Any]) -> str:
    seen, held = meta["parameters"]["seen"], meta["parameters"]["in_matrices"]
    problems = list(meta["problems"].items())
    lines = [
        f"scan     {out}: {meta['matrices']:,} matrices, {meta['measure']}",
        f"seen     {seen:,} of {held:,} parameters in matrices ({seen / held:.0%}); "
        f"{meta['parameters']['elsewhere']:,} in {len(meta['not_matrices']):,} norms and other tensors",
        f"accuracy SNR within {meta['snr_relative_error']:.1e} of an fp64 SVD's, relative",
        *(f"unscored {name}: {why}" for name, why in problems[:_SHOWN]),
    ]
    if len(problems) > _SHOWN:
        lines.append(f"unscored {len(problems) - _SHOWN:,} more, under meta.problems")
    return "\n".join(lines)


def select(
    scan: Annotated[Path, Parameter(help="A scan: trine's JSON, or a published one.")],
    /,
    *,
    out: Annotated[Path, Parameter(help="The file to make; it must not exist yet.")],
    top: Annotated[float | None, Parameter(help="Per cent of each type's matrices. Default: 25.")] = None,
    budget_parameters: Annotated[int | None, Parameter(help="Instead: at most so many parameters.")] = None,
    budget_bytes: Annotated[
        int | None, Parameter(help="Instead: at most so many bytes of gradients and AdamW state, 14 per parameter.")
    ] = None,
    everywhere: Annotated[bool, Parameter(name="--global", help="Rank all types together.")] = False,
    embeddings: Annotated[Literal["in", "out"], Parameter(help="Whether embeddings are trained.")] = "out",
    head: Annotated[Literal["in", "out"], Parameter(help="Whether the output layer is trained.")] = "out",
    from_layer: Annotated[
        int | None, Parameter(help="Nothing below this layer, so that backpropagation stops there.")
    ] = None,
    experts: Annotated[
        Literal["together", "separate"], Parameter(help="A layer's experts of one kind are chosen as one, or singly.")
    ] = "together",
    ties: Annotated[Literal["refuse", "order"], Parameter(help="At equal SNR around the cut.")] = "refuse",
    unscored: Annotated[Literal["refuse", "freeze"], Parameter(help="Matrices without a finite SNR.")] = "refuse",
    rule: Annotated[
        Literal["default", "published", "random", "top-layers", "lowest-snr", "gradient-norm"],
        Parameter(
            help="published: as the published procedure, with --top alone. Controls: a draw; the last layers; the "
            "lowest SNR; the largest gradient of --gradients."
        ),
    ] = "default",
    like: Annotated[
        Path | None, Parameter(help="Instead of --top: as many parameters as this selection trains, or just less.")
    ] = None,
    seed: Annotated[int, Parameter(help="Of --rule random.")] = 0,
    gradients: Annotated[
        Path | None, Parameter(help="For --rule gradient-norm: a file of trine spectrum gradients.")
    ] = None,
    format: Annotated[
        Literal["trine", "axolotl", "plain"], Parameter(help="Of the file: trine's, axolotl's, or a name per line.")
    ] = "trine",
) -> Shown:
    """Choose the matrices to train: the best of each type by SNR, at least one of each, or a control to compare with.

    Example: trine spectrum select scan.json --top 25 --out selection.yaml

    Example: trine spectrum select scan.json --rule random --seed 1 --like selection.yaml --out random-1.yaml
    """
    from trine.manifest import write_file
    from trine.spectrum.choose import Options, choose, like_parameters
    from trine.spectrum.gradients import read_gradients
    from trine.spectrum.scanned import read_scan
    from trine.spectrum.selection import choose_published, summary, text, whole_tensors
    from trine.weights.selected import read_selection

    budgets = (top, budget_parameters, budget_bytes, like)
    if sum(one is not None for one in budgets) > 1:
        raise BadInput("--top, --budget-parameters, --budget-bytes and --like exclude each other; keep one")
    if (rule == "gradient-norm") is not (gradients is not None):
        raise BadInput("--rule gradient-norm goes with --gradients FILE, made by `trine spectrum gradients`")
    if out.exists():
        raise BadInput(f"{out}: already exists; name another --out, or remove it first")
    share = 25.0 if all(one is None for one in budgets) else top
    options = Options(
        "default" if rule == "published" else rule,
        seed,
        share,
        budget_parameters,
        budget_bytes,
        everywhere,
        embeddings == "in",
        head == "in",
        from_layer,
        experts,
        ties,
        unscored,
    )
    scanned, wanted = read_scan(scan), None if like is None else read_selection(like)
    if rule == "published":
        if options != Options(top=share) or share is None:
            raise BadInput(
                "--rule published takes --top, --out and --format; the published procedure has no other option"
            )
        chosen = choose_published(scanned, share)
    else:
        chosen = choose(scanned, options, wanted, None if gradients is None else read_gradients(gradients))
    notes = list(chosen.notes)
    if format == "axolotl" and (more := whole_tensors(scanned, chosen)):
        notes.append(more)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, text(scanned, chosen, format, None if rule == "published" else options))
    record = summary(scanned, chosen)
    if wanted is not None:
        record["like"] = {"selection": str(like), "parameters": like_parameters(scanned, wanted)}
    return Shown({"out": str(out), **record, "notes": notes}, _select_text(out, record, notes))


def _select_text(out: Path, record: dict[str, Any], notes: list[str]) -> str:
    lines = [f"selection {out}: {record['matrices']:,} of {record['of_matrices']:,} matrices"]
    if record["parameters"] is not None:
        share = record["parameters"] / record["of_parameters"]
        lines[0] += f", {record['parameters']:,} parameters ({share:.1%})"
        lines.append(f"adds      {record['bytes_to_train'] / 1e9:.2f} GB of gradients and AdamW state to bf16 weights")
    if "like" in record:
        other = record["like"]["parameters"]
        share = record["parameters"] / other
        lines.append(f"like      {record['like']['selection']}: {other:,} parameters, of which these are {share:.2%}")
    if record["lowest_layer"] is not None:
        lines.append(f"lowest    layer {record['lowest_layer']}")
    return "\n".join([*lines, *(f"note      {note}" for note in notes)])


def gradients(
    config: ConfigFile,
    /,
    *options: Words,
    out: Annotated[Path, Parameter(help="The JSON file to make; it must not exist yet.")],
    batches: Annotated[int, Parameter(help="Micro-batches of the run to measure on.")] = 16,
) -> Shown:
    """Measure how large each matrix's gradient is on a run's first batches, for `select --rule gradient-norm`.

    The config's `train` names model and tokens. One gradient is held at a time.

    Example: trine spectrum gradients tune.yaml --batches 16 --out gradients.json
    """
    from trine.chain import section, write_json
    from trine.train.gradients import measure_gradients

    loaded = load(config, options)
    train = section(loaded, "train")
    if out.exists():
        raise BadInput(f"{out}: already exists; name another --out, or remove it first")
    tokens = Path(train.tokens).expanduser() if train.tokens else run_folder(loaded, None) / "tokens"
    with watching() as watch:
        record = measure_gradients(loaded.config.optim, train, tokens, batches, watch.progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, record)
    meta, count = record["meta"], len(record["modules"])
    said = f"gradients {out}: {count:,} matrices, {meta['batches']} batches, {meta['targets']:,} targets"
    return Shown({"out": str(out), **meta, "matrices": count}, said)
