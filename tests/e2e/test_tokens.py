"""`trine tokens transplant` through the installed command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.conftest import Command
from tests.e2e.cards import made_again
from tests.e2e.test_merge import load
from tests.surgery.test_transplant import two
from trine.manifest import sha256_file, verify


def test_a_model_speaks_through_another_tokenizer(trine: Command, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    two(tmp_path, "bfloat16")
    words = ("tokens", "transplant", "model", "donor", "out", "-k", "6")
    done = trine(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "386: 365 shared (0 of them written differently), 21 approximated (omp, k 6)" in done.stdout
    assert "role     bos: '<|begin|>' has the row of '<s>'" in done.stdout
    assert "omp" in done.stderr
    record = verify(tmp_path / "out", "model")
    assert record["meta"]["command"] == "trine tokens transplant model donor out -k 6"
    donor = tmp_path / "donor" / "model.safetensors"
    assert record["meta"]["inputs"]["donor/model.safetensors"] == sha256_file(donor)
    assert set(record["meta"]["inputs"]) == {"donor/model.safetensors", "model/model.safetensors"}
    model: Any = load(tmp_path / "out")
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(tmp_path / "donor").get_vocab()
    ids = tokenizer("the router keeps experts", return_tensors="pt")["input_ids"]
    tokens = model.generate(ids, min_new_tokens=4, max_new_tokens=4, do_sample=False)
    assert int(tokens.max()) < len(tokenizer)
    assert torch.isfinite(model(ids).logits).all()
    made_again(tmp_path / "out", tmp_path)
    page = trine("report", "out", cwd=tmp_path)
    assert (page.returncode, "`trine tokens transplant`, of which there is no page" in page.stderr) == (2, True)
    refused = trine(*words, "--method", "ompp", cwd=tmp_path)
    assert refused.returncode == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["donor", "model", "other", "out", "out before", "texts"]
