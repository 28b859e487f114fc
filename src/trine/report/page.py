"""The report: one HTML file that asks the network for nothing and runs no script but its own.

The content policy is `default-src 'none'` with the SHA-256 of the page's one script and one style sheet. What the
run says (texts, names, config) travels in a JSON block in which no `<` occurs and is inserted by `textContent`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment

from trine.manifest import write_file
from trine.report.load import RunFiles, load_run
from trine.report.planned import planned
from trine.report.plots import curve, heatmap, series, smooth, typical
from trine.stability import WINDOW, spikes


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the report of `run` to `out` (default: RUN/report.html), whole or not at all; returns its path."""
    target, page = out or run / "report.html", render(load_run(run))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_file(target, page)
    return target


def render(files: RunFiles) -> str:
    """The page as text."""
    return render_page(files.name, ("page.css",), ("charts.js", "page.js"), content(files))


def render_page(name: str, styles: tuple[str, ...], scripts: tuple[str, ...], data: Any) -> str:
    """A page titled `name` whose scripts draw `data`, a JSON value, into `#page`."""
    style, script = "".join(map(_asset, styles)), "".join(map(_asset, ("dom.js", *scripts)))
    environment = Environment(autoescape=True)
    return environment.from_string(_asset("page.html")).render(
        title=f"{name} · trine",
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=_json_block(data),
    )


def _asset(name: str) -> str:
    return (resources.files("trine.report") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json_block(value: Any) -> str:
    """JSON without a character that HTML or JavaScript could take for markup."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode(errors="replace").decode()


def content(files: RunFiles) -> dict[str, Any]:
    """What the page shows, as JSON."""
    return {
        "name": files.name,
        "tiles": _tiles(files),
        "plan": planned(files),
        "charts": [chart for chart in _charts(files.metrics) if chart["series"]],
        "router": heatmap(files.metrics),
        "ledger": files.ledger,
        "samples": files.samples,
        "parity": files.parity,
        "config": files.config,
    }


def _tiles(files: RunFiles) -> list[dict[str, str]]:
    if not files.metrics:
        return [_tile("steps", "0", "nothing was logged yet")]
    last, scored = files.metrics[-1], [one for one in files.metrics if one.get("bits_per_byte")]
    loss = curve(files.metrics, "loss")
    speed = typical(curve(files.metrics, "tokens_per_second"))
    seconds = sum(value for _, value in curve(files.metrics, "seconds"))
    found = spikes(loss)
    tiles = [
        _tile(
            "steps",
            f"{last['step']:,}",
            f"{last.get('tokens', 0):,} tokens, {last.get('epoch') or 0:.2f} epochs",
        ),
        _tile("loss", _figure(last.get("loss")), f"from {_figure(loss[0][1] if loss else None)}, nats per token"),
    ]
    for name, value in (scored[-1]["bits_per_byte"] if scored else {}).items():
        first = scored[0]["bits_per_byte"].get(name)
        what = ", of answers alone" if name in scored[-1].get("answers_only", ()) else ""
        tiles.append(_tile(f"bits per byte, {name}", _figure(value), f"from {_figure(first)}{what}"))
    note = "none" if not found else "at step " + ", ".join(f"{step:,}" for step in found[:5])
    tiles += [
        _tile("loss spikes", str(len(found)), f"{note}; six robust deviations above the median of {WINDOW} steps"),
        _tile("speed", f"{speed or 0:,.0f}", f"tokens per second, median; {seconds / 60:,.1f} minutes of steps"),
    ]
    used, memory = typical(curve(files.metrics, "mfu")), curve(files.metrics, "memory_bytes")
    if used is not None:
        tiles.append(_tile("MFU", f"{used:.1%}", "median; model FLOPs over the matrix-product peak measured at start"))
    if memory:
        most = max(value for _, value in memory)
        tiles.append(_tile("memory", f"{most / 2**30:.2f} GiB", "the most seen at the end of a part of a step"))
    if files.parity:
        figure = f"{files.parity.get('max_relative_logit_difference', 0):.1e}"
        verdict = "equal" if files.parity.get("passed") else "different"
        tiles.append(_tile("logits in transformers", verdict, f"largest relative difference {figure}"))
    return tiles


def _tile(label: str, value: str, note: str) -> dict[str, str]:
    return {"label": label, "value": value, "note": note}


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _charts(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    loss = curve(metrics, "loss")
    sets = dict.fromkeys(name for one in metrics for name in one.get("bits_per_byte", {}))
    scored = [one["bits_per_byte"] | {"step": one["step"]} for one in metrics if one.get("bits_per_byte")]
    return [
        {
            "title": "Training loss",
            "unit": "nats per token",
            "series": _present([("each step", loss), ("smoothed", smooth(loss))]),
            "marks": spikes(loss),
        },
        {
            "title": "Bits per byte",
            "unit": "lower is better, whatever the tokenizer",
            "series": _present([(name, curve(scored, name)) for name in sets]),
            "dots": True,
        },
        {
            "title": "Learning rate",
            "unit": "",
            "series": _present(
                [("matrices", curve(metrics, "lr")), ("embedding, head, norms", curve(metrics, "lr_adamw"))]
            ),
            "zero": True,
        },
        {
            "title": "Gradient norm",
            "unit": "before clipping",
            "series": _present([("norm", curve(metrics, "grad_norm"))]),
        },
        {
            "title": "Throughput",
            "unit": "tokens per second",
            "series": _present([("each step", curve(metrics, "tokens_per_second"))]),
            "zero": True,
        },
        *_cost_charts(metrics),
        {
            "title": "Spread of micro-batches",
            "unit": "BatchHet: largest less mean loss, nats per token",
            "series": _present([("BatchHet", curve(metrics, "batch_het"))]),
            "zero": True,
        },
        {
            "title": "Kurtosis of gradient norms",
            "unit": f"over the last {WINDOW} steps; 3 is normal noise",
            "series": _present([("kurtosis", curve(metrics, "grad_norm_kurtosis"))]),
            "zero": True,
        },
        {
            "title": "Load imbalance",
            "unit": "MaxVio, mean over layers; 0 is perfect balance",
            "series": _present([("MaxVio", curve(metrics, "max_vio"))]),
            "zero": True,
        },
    ]


def _cost_charts(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    timed = [one["time"] | {"step": one["step"]} for one in metrics if one.get("time")]
    parts = dict.fromkeys(name for one in timed for name in one if name != "step")
    used = [(step, 100 * value) for step, value in curve(metrics, "mfu")]
    memory = [(step, value / 2**30) for step, value in curve(metrics, "memory_bytes")]
    return [
        {
            "title": "Step time",
            "unit": "seconds by part",
            "series": _present([(name, curve(timed, name)) for name in parts]),
            "zero": True,
        },
        {
            "title": "MFU",
            "unit": "percent of the matrix-product peak",
            "series": _present([("each step", used)]),
            "zero": True,
        },
        {"title": "Memory", "unit": "GiB", "series": _present([("most in the step", memory)]), "zero": True},
    ]


def _present(named: list[tuple[str, Any]]) -> list[dict[str, Any]]:
    return [series(name, points) for name, points in named if points]
