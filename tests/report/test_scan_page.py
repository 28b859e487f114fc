"""The page of a scan: true to the scan, closed to the network, small for 15,000 matrices, drawn by Chromium."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Command
from tests.report.test_report import PAYLOADS, parsed
from trine.errors import BadInput
from trine.report.scan import scan_content, write_scan
from trine.spectrum.choose import Options, choose
from trine.spectrum.matrices import place
from trine.spectrum.measure import measure_matrix
from trine.spectrum.overview import overview
from trine.spectrum.scanned import read_scan


def made(path: Path, layers: int, experts: int, model: str = "m") -> Path:
    """A scan of random matrices with a signal each; one of them without an SNR."""
    results = []
    for seed in range(6):
        torch.manual_seed(seed)
        results.append(
            measure_matrix(torch.randn(60, 24) + torch.randn(60, 1 + seed) @ torch.randn(1 + seed, 24), "calibrated")
        )
    names = ["model.embed_tokens.weight"]
    for i in range(layers):
        names += [f"model.layers.{i}.self_attn.{one}_proj.weight" for one in "qkvo"]
        names += [
            f"model.layers.{i}.mlp.experts.{e}.{one}_proj.weight" for e in range(experts) for one in ("up", "down")
        ]
    modules: dict[str, Any] = {}
    for number, name in enumerate(names):
        numbers = results[number % 6].numbers
        snr = numbers["snr"] * (1 + number / len(names))
        modules[name] = {"type": place(name).type, "shape": [60, 24], **numbers, "snr": snr}
    modules[names[3]]["snr"] = None
    held = len(names) * 1440
    meta = {
        "model": model,
        "measure": "calibrated",
        "parameters": {"in_matrices": held, "seen": held, "elsewhere": 0},
        "not_matrices": [],
        "computed_by": {"gram": len(names)},
        "snr_relative_error": 3e-6,
        "largest": [results[number % 6].largest for number in range(len(names))],
        "problems": {names[3]: "too few"},
    }
    path.write_text(json.dumps({"meta": meta, "modules": modules}))
    return path


def unpacked(text: str) -> list[int]:
    found, value, shift = [], 0, 0
    for byte in base64.b64decode(text):
        value, shift = value + ((byte & 127) << shift), shift + 7
        if byte < 128:
            found.append(value)
            value = shift = 0
    return found


def test_the_page_holds_the_scan(tmp_path: Path) -> None:
    path = made(tmp_path / "scan.json", 3, 4)
    scan, content = json.loads(path.read_text()), scan_content(overview(path), "scan")
    columns = content["columns"]
    for number, (name, one) in enumerate(scan["modules"].items()):
        pattern = content["patterns"][columns["pattern"][number]]
        assert (
            pattern.replace("{l}", str(columns["layer"][number])).replace("{e}", str(columns["expert"][number])) == name
        )
        assert unpacked(columns["histogram"][number]) == one["histogram"]
        assert columns["snr"][number] == (None if one["snr"] is None else pytest.approx(one["snr"], rel=1e-4))
    assert content["problems"] == {3: "too few"}
    assert sorted(i for cell in content["cells"] for i in cell["members"]) == list(range(len(scan["modules"])))
    half = next(one for one in content["shares"] if one["top"] == 50)
    chosen = choose(read_scan(path), Options(top=50.0, ties="order", unscored="freeze")).entries
    taken = {i for cell in half["cells"] for i in content["cells"][cell]["members"]}
    assert [list(scan["modules"])[i] for i in sorted(taken)] == [one.name for one in chosen]
    parameters = sum(one.parameters or 0 for one in chosen)
    assert (half["gradient_bytes"], half["state_bytes"]) == (2 * parameters, 12 * parameters)


def test_counts_of_any_size_are_kept(tmp_path: Path) -> None:
    path = made(tmp_path / "scan.json", 1, 0)
    scan = json.loads(path.read_text())
    counts = [0, 127, 128, 16_383, 16_384, 5_000_000]
    scan["modules"]["model.embed_tokens.weight"]["histogram"] = counts
    path.write_text(json.dumps(scan))
    assert unpacked(scan_content(overview(path), "scan")["columns"]["histogram"][0]) == counts


@pytest.mark.parametrize("payload", PAYLOADS[:6])
def test_no_name_becomes_markup(tmp_path: Path, payload: str) -> None:
    path = made(tmp_path / "scan.json", 1, 0, model=payload)
    page = write_scan(overview(path), payload, tmp_path / "scan.html").read_text()
    (block,) = [text for _, attrs, text in parsed(page).raw if attrs.get("type") == "application/json"]
    assert "<" not in block
    assert json.loads(block)["model"] == payload
    policy = next(a["content"] for t, a in parsed(page).tags if a.get("http-equiv") == "Content-Security-Policy") or ""
    assert policy.startswith("default-src 'none'; script-src 'sha256-")


def test_fifteen_thousand_matrices_stay_under_three_megabytes(tmp_path: Path) -> None:
    path = made(tmp_path / "scan.json", 58, 128)
    began = time.process_time()
    out = write_scan(overview(path), "scan", tmp_path / "scan.html")
    assert time.process_time() - began < 5
    assert len(json.loads(path.read_text())["modules"]) > 15_000
    assert out.stat().st_size < 3_000_000


def test_the_verb_writes_it_and_refuses_other_files(tmp_path: Path, trine: Command) -> None:
    path = made(tmp_path / "scan.json", 2, 2)
    done = trine("report", path)
    assert (done.returncode, (tmp_path / "scan.html").is_file()) == (0, True), done.stderr
    (tmp_path / "other.json").write_text("[1]")
    done = trine("report", tmp_path / "other.json")
    assert (done.returncode, "not a scan" in done.stderr) == (2, True)
    (tmp_path / "published.json").write_text(
        json.dumps({"model.layers.0.mlp.up_proj": {"snr": 1.0, "type": "mlp.up_proj"}})
    )
    with pytest.raises(BadInput, match="neither shapes nor histograms"):
        overview(tmp_path / "published.json")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium here")
def test_chromium_draws_the_matrix_that_the_address_names(tmp_path: Path) -> None:
    out = write_scan(overview(made(tmp_path / "scan.json", 4, 8)), "scan", tmp_path / "scan.html")
    address = f"{out.as_uri()}#model.layers.2.mlp.experts.5.up_proj.weight"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run([*command, address], capture_output=True, text=True, timeout=120, check=False)
    assert "<h3>model.layers.2.mlp.experts.5.up_proj.weight</h3>" in done.stdout
    names = [tag for tag, _ in parsed(done.stdout).tags]
    assert names.count("svg") == 3
    # 4 layers of 6 types and the embedding; 64 bins; 8 experts
    assert names.count("rect") == 4 * 6 + 1 + 64 + 8
    assert done.stdout.count('class="law"') == 1
    assert done.stdout.count('class="edge"') == 1
    assert "Content Security Policy" not in done.stderr
