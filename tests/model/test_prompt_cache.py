"""A prompt kept in a file continues as if it had been read, and only where it fits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.model.shapes import random_tokens, small_config, small_model
from tests.model.test_decode import prompts_of, texts
from trine.errors import BadInput
from trine.model.decode import GREEDY, AfmoeContext, generate, keep_prompt


@pytest.mark.parametrize(("length", "window"), [(25, 8), (5, 8), (8, 8), (25, 64)])
def test_a_kept_prompt_gives_the_same_tokens_without_being_read(
    length: int, window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model(small_config(sliding_window=window), bias=0.2).eval()
    shared = random_tokens(1, length)[0].tolist()
    prompts = [shared + tail for tail in prompts_of(1, 6, 30, seed=5)]
    expected = texts(model, prompts, 12, GREEDY)
    keep_prompt(tmp_path / "kept", model, prompts)
    before = (tmp_path / "kept").read_bytes()
    kept = keep_prompt(tmp_path / "kept", model, prompts)
    assert (tmp_path / "kept").read_bytes() == before
    read: list[int] = []
    original = AfmoeContext.read

    def counting(self: AfmoeContext, rows: list[list[int]]) -> torch.Tensor:
        read.append(max(map(len, rows)))
        return original(self, rows)

    monkeypatch.setattr(AfmoeContext, "read", counting)
    assert texts(model, prompts, 12, GREEDY, kept=kept) == expected
    assert read[0] == 30
    assert texts(model, prompts[1:2], 12, GREEDY, kept=kept) == expected[1:2]


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = small_model(bias=0.2).eval()
    path = tmp_path / "kept"
    kept = keep_prompt(path, model, [[1, 2, 3, 4]])
    for prompt, said in (([1, 2, 9, 4], "begins with 2"), ([1, 2, 3], "begins with 3"), ([1], "begins with 1")):
        with pytest.raises(BadInput, match=said):
            next(generate(model, [prompt], 1, kept=kept))
    with pytest.raises(BadInput, match="another model or --dtype"):
        keep_prompt(path, small_model(seed=4), [[1, 2, 3, 4]])
    with pytest.raises(BadInput, match="another model or --dtype"):
        keep_prompt(path, small_model(bias=0.2).to(torch.bfloat16), [[1, 2, 3, 4]])
    with pytest.raises(BadInput, match="nothing to keep"):
        keep_prompt(tmp_path / "new", model, [[1, 2], [3, 4]])
    assert not (tmp_path / "new").exists()
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(BadInput, match="not a safetensors file"):
        keep_prompt(path, model, [[1, 2, 3, 4]])
