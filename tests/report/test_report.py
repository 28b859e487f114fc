"""The report: closed to scripts and the network whatever a run holds, small, and true to the metrics."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from trine.errors import BadInput
from trine.report.load import load_run
from trine.report.page import write_report
from trine.report.planned import planned
from trine.report.plots import curve, heatmap, smooth, thin
from trine.stability import spikes

PAYLOADS = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!--<script>",
    "]]><svg onload=alert(1)>",
    "{{ 7*7 }}{% raw %}",
    "</main></body></html><h1>gone",
    "\u2028\u2029 \\u003cscript>",
    '" onmouseover="alert(1)',
    "javascript:alert(1)",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<base href='https://example.org/'>",
    "<meta http-equiv=refresh content='0;url=https://example.org'>",
    "\ud800 half a pair",
]


def records(steps: int, layers: int = 4, spike: int | None = None) -> list[dict[str, Any]]:
    made = []
    for step in range(1, steps + 1):
        loss = 2 + 6 * math.exp(-step / 300) + 0.02 * math.sin(step * 12.9)
        made.append(
            {
                "step": step,
                "tokens": step * 1000,
                "loss": 30.0 if step == spike else loss,
                "lr": 0.01,
                "lr_adamw": 0.003,
                "grad_norm": 1 + math.sin(step) ** 2,
                "tokens_per_second": 4000.0 + step % 7,
                "seconds": 0.25,
                "mfu": 0.5,
                "time": {"data": 0.01, "forward": 0.08, "backward": 0.15, "optimizer": 0.01},
                "memory_bytes": 2**30 + step,
                "batch_het": 0.1 + step % 3 / 100,
                "spikes": int(spike is not None and step >= spike),
                "grad_norm_kurtosis": None if step < 16 else 3.0,
                "epoch": step / steps,
                "max_vio": 1 / step,
                "router": {
                    "layer": list(range(1, layers + 1)),
                    "max_vio": [1 / step + i for i in range(layers)],
                    "entropy": [2.0 - i / 100 for i in range(layers)],
                    "dead": [int(step == 3 and i == 1) for i in range(layers)],
                    "bias_spread": [step / 1e4] * layers,
                },
            }
            | ({"bits_per_byte": {"heldout": 3 - step / steps}} if step % max(1, steps // 10) == 0 else {})
        )
    return made


def make_run(folder: Path, made: list[dict[str, Any]], text: str = "plain") -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in made))
    (folder / "config.yaml").write_text(f"# {text}\ntrain:\n  steps: 5\n".encode(errors="replace").decode())
    (folder / "samples.json").write_text(json.dumps({"samples": [{"prompt": text, "completion": text}]}))
    source = {"name": text, "set": "train", "path": text, "licence": text, "files": 1, "documents": 2}
    (folder / "ledger.json").write_text(
        json.dumps(
            {
                "sources": [source | {"bytes": 3, "tokens": 4, "sha256": text, "dropped": {text: 1}}],
                "sets": {text: {"documents": 1, "bytes": 2, "tokens": 3}},
                "skipped_files": [{"path": text, "reason": text}],
                "cleaning": {"decontaminate": {text: {"texts": 7}, "common": 4321}},
                "quarantine": {"records": 9876, "first": [{"source": text, "path": text, "reason": text}]},
            }
        )
    )
    parity = {"passed": True, "max_relative_logit_difference": 1e-7, "transformers": text}
    (folder / "parity.json").write_text(json.dumps(parity))
    return folder


class Tags(HTMLParser):
    """Every tag with its attributes, and the text of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[str, dict[str, str | None], str]] = []
        self.open = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.open = False

    def handle_data(self, data: str) -> None:
        if self.open:
            self.raw.append((*self.tags[-1], data))


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    return tags


EXPECTED = [
    "html",
    "head",
    "meta",
    "meta",
    "meta",
    "meta",
    "title",
    "style",
    "body",
    "main",
    "noscript",
    "script",
    "script",
]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_in_a_run_becomes_markup(tmp_path: Path, payload: str) -> None:
    name = re.sub(r"[/\x00\ud800]", "_", payload)[:60]
    page = write_report(make_run(tmp_path / name, records(5), payload)).read_text()
    tags = parsed(page)
    assert [tag for tag, _ in tags.tags] == EXPECTED
    assert not any(key.startswith("on") or key in ("src", "href") for _, attrs in tags.tags for key in attrs)
    (block,) = [text for tag, attrs, text in tags.raw if attrs.get("type") == "application/json"]
    assert "<" not in block
    shown = json.loads(block)
    assert shown["samples"][0]["prompt"] == payload.encode(errors="replace").decode()


def test_policy_allows_the_pages_own_script_and_style_and_nothing_else(tmp_path: Path) -> None:
    tags = parsed(write_report(make_run(tmp_path / "run", records(5))).read_text())
    policy = next(a["content"] for t, a in tags.tags if a.get("http-equiv") == "Content-Security-Policy") or ""
    parts = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert parts["default-src"] == "'none'"
    assert set(parts) == {"default-src", "script-src", "style-src", "base-uri", "form-action"}
    for directive, name in (("script-src", "script"), ("style-src", "style")):
        (text,) = [data for tag, attrs, data in tags.raw if tag == name and "type" not in attrs]
        assert parts[directive] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_ten_thousand_steps_of_sixty_layers_stay_under_three_megabytes(tmp_path: Path) -> None:
    path = write_report(make_run(tmp_path / "run", records(10_000, layers=60, spike=7777)))
    assert path.stat().st_size < 3_000_000
    shown = json.loads(next(text for _, attrs, text in parsed(path.read_text()).raw if attrs.get("type")))
    loss = shown["charts"][0]["series"][0]
    assert len(loss["x"]) <= 2000
    assert loss["y"][loss["x"].index(7777)] == 30.0
    assert shown["charts"][0]["marks"] == [7777]
    assert (loss["x"][0], loss["x"][-1]) == (1, 10_000)


def test_thinning_keeps_order_ends_and_extremes() -> None:
    points = [(i, math.sin(i) + (50 if i == 4321 else -50 if i == 1234 else 0)) for i in range(9000)]
    kept = thin(points)
    assert len(kept) <= 2000
    assert kept == sorted(set(kept))
    assert {points[0], points[-1], points[4321], points[1234]} <= set(kept)
    assert thin(points[:2000]) == points[:2000]


def test_spikes_are_found_and_noise_is_not() -> None:
    loss = curve(records(1000, spike=600), "loss")
    assert spikes(loss) == [600]
    assert spikes(curve(records(1000), "loss")) == []


def test_smoothing_keeps_a_constant_and_follows_a_step() -> None:
    assert all(value == pytest.approx(3.0) for _, value in smooth([(i, 3.0) for i in range(100)]))
    after = smooth([(i, float(i >= 500)) for i in range(1000)])
    assert after[499][1] == 0
    assert after[-1][1] > 0.99


def test_heatmap_keeps_the_worst_of_each_stretch() -> None:
    found = heatmap(records(1000))
    assert found is not None
    assert (len(found["layers"]), len(found["steps"])) == (4, 160)
    assert found["rows"]["max_vio"][0][0] == 1.0
    assert found["rows"]["dead"][1][0] == 1
    assert sum(map(sum, found["rows"]["dead"])) == 1
    assert heatmap([{"step": 1, "loss": 2.0}]) is None


def test_an_unfinished_or_sparse_run_still_gets_a_page(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": null}\n{"step": 2, "lo')
    assert "application/json" in write_report(run, tmp_path / "deep" / "out.html").read_text()
    (run / "metrics.jsonl").write_text("")
    write_report(run)


def test_other_folders_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no metrics\.jsonl"):
        write_report(tmp_path)
    run = make_run(tmp_path / "run", records(3))
    (run / "samples.json").write_text("{")
    with pytest.raises(BadInput, match=r"samples\.json: not JSON"):
        write_report(run)
    (run / "samples.json").unlink()
    (run / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(BadInput, match=r"metrics\.jsonl:2"):
        write_report(run)


def test_what_was_planned_stands_beside_what_was_measured(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", records(20))
    assert planned(load_run(run)) == []
    (run / "model").mkdir()
    (run / "model" / "model.safetensors").write_bytes(bytes(2**20))
    plan: dict[str, Any] = {
        "memory": {"needed": 2**30 + 2**20, "mapped": 2**20, "peak": 2**29},
        "time": {"step_seconds": 0.5, "parts": {"forward": 0.1}},
        "disk": {"checkpoint": 3 * 2**20, "export": 2**20},
        "work": {"tokens": 40_000},
    }
    (run / "plan.json").write_text(json.dumps(plan))
    rows = {what: rest for what, *rest in planned(load_run(run))}
    assert rows["memory"] == ["1.00 GiB", "1.00 GiB", "-0.0%"]
    assert rows["step time, median"] == ["0.5 s", "0.25 s", "+100.0%"]
    assert rows["of it forward"][1] == "0.08 s"
    assert rows["exported model on disk"] == ["1.0 MiB", "1.0 MiB", "+0.0%"]
    assert rows["tokens"] == ["40,000", "20,000", "+100.0%"]
    assert "checkpoint on disk" not in rows
    plan["memory"]["peak"] = plan["time"] = None
    (run / "plan.json").write_text(json.dumps(plan))
    rows = {what: rest for what, *rest in planned(load_run(run))}
    assert rows["memory, at least"] == ["1.00 GiB", "1.00 GiB", "–"]
    assert "Plan and run" in write_report(run).read_text()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium here")
def test_chromium_draws_it_and_runs_no_payload(tmp_path: Path) -> None:
    text = " ".join(PAYLOADS[:-1])
    path = write_report(make_run(tmp_path / "run", records(300), text))
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    dom = parsed(done.stdout)
    names = [tag for tag, _ in dom.tags]
    assert names.count("svg") == 11
    assert names.count("polyline") == 16
    assert "canvas" in names
    assert "img" not in names
    assert names.count("script") == 2
    assert "9,876 in quarantine" in done.stdout
    assert "decontaminate common</td>" in done.stdout
    assert "4,321</td>" in done.stdout
    assert "Content Security Policy" not in done.stderr
