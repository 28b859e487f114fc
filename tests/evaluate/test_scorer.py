"""Likelihoods against plain log-softmax over the whole text, for AFMoE and a Llama; generation against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.evaluate.folders import TEXT, write_afmoe, write_llama
from trine.errors import BadInput
from trine.evaluate.asking import Prompt
from trine.evaluate.reading import Row, score_rows
from trine.evaluate.scorer import ModelScorer, windows_of


@pytest.fixture(scope="module", params=["afmoe", "llama"])
def scorer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelScorer:
    folder = tmp_path_factory.mktemp("models") / request.param
    return ModelScorer({"afmoe": write_afmoe, "llama": write_llama}[request.param](folder), batch_tokens=256)


def direct(scorer: ModelScorer, row: Row) -> tuple[np.ndarray, bool]:
    """From the definition: one row at a time, whole logits, fp64."""
    with torch.no_grad():
        logp = scorer.model(torch.tensor([row.tokens[:-1]])).double().log_softmax(-1)[0, -row.scored :]
    targets = torch.tensor(row.tokens[-row.scored :])
    return logp.gather(1, targets[:, None]).squeeze(1).numpy(), bool((logp.argmax(-1) == targets).all())


@pytest.mark.parametrize("shared", [0, 5, 40])
def test_rows_score_as_by_definition_in_any_batch(scorer: ModelScorer, shared: int) -> None:
    rng = np.random.default_rng(shared)
    start = rng.integers(2, 290, shared).tolist()
    rows = []
    for length in rng.integers(3, 50, 20):
        tokens = [*start, *rng.integers(2, 290, int(length)).tolist()]
        rows.append(Row(tokens, int(rng.integers(1, length))))
    rows += [Row([*rows[0].tokens[:-1], 7], 1), Row([*rows[3].tokens[:-1], 9], rows[3].scored), rows[5]]
    likeliest = int(scorer.model(torch.tensor([rows[2].tokens])).argmax(-1)[0, -1])
    rows.append(Row([*rows[2].tokens, likeliest], 1))
    seen: list[int] = []
    found = score_rows(scorer.model, rows, 256, lambda done, total, what: seen.append(done))
    for one, row in zip(found, rows, strict=True):
        logp, greedy = direct(scorer, row)
        assert np.abs(one.logp - logp).max() < 2e-5
        assert one.greedy == greedy
    assert found[-1].greedy
    assert seen[-1] == len(rows)


def test_a_pair_is_cut_where_the_context_ends(scorer: ModelScorer) -> None:
    begins = scorer.encode("")  # what the tokenizer puts before every text
    row = scorer.pair("the model ", "reads a café")
    assert row.tokens == scorer.encode("the model reads a café")
    assert scorer.tokenizer.decode(row.tokens[-row.scored :]) == " reads a café"
    empty = scorer.pair("", "reads")
    assert empty.tokens == [scorer.prefix, *scorer.encode("reads", special=False)]
    assert len(begins) in (0, 1)
    with pytest.raises(BadInput, match="has no likelihood"):
        scorer.pair("", "")
    (found,) = scorer.likelihoods([("the model ", "reads a café")])
    assert found.loglik == pytest.approx(direct(scorer, row)[0].sum(), abs=1e-4)


def test_too_long_contexts_lose_their_beginning_and_too_long_answers_are_refused(scorer: ModelScorer) -> None:
    row = scorer.pair(TEXT * 3, " 12")
    assert len(row.tokens) > scorer.longest + 1
    (found,) = scorer.score([row])
    assert found.total == pytest.approx(direct(scorer, Row(row.tokens[-97:], row.scored))[0].sum(), abs=1e-4)
    with pytest.raises(BadInput, match="are asked for at once, the model reads 96"):
        scorer.likelihoods([("a", TEXT * 3)])


def test_rolling_predicts_each_token_once_in_full_windows(scorer: ModelScorer) -> None:
    texts = [TEXT * 2, "the model", "日本"]
    for text, one in zip(texts, scorer.rolling(texts), strict=True):
        tokens = scorer.encode(text, special=False)
        expected = [direct(scorer, Row([scorer.prefix, *tokens[:96]], len(tokens[:96])))[0]]
        for first in range(96, len(tokens), 96):
            end = min(first + 96, len(tokens))
            expected.append(direct(scorer, Row(tokens[max(0, end - 97) : end], end - first))[0])
        assert np.abs(one.logp - np.concatenate(expected)).max() < 2e-5
        assert one.ends[-1] == len(text)
    assert [w.scored for w in windows_of(range(10), 0, 4)] == [4, 4, 2]
    assert [w.tokens for w in windows_of(range(10), 99, 4)] == [[99, 0, 1, 2, 3], [3, 4, 5, 6, 7], [5, 6, 7, 8, 9]]


def test_greedy_texts_are_those_of_transformers(scorer: ModelScorer) -> None:
    import transformers

    peer: Any = transformers.AutoModelForCausalLM.from_pretrained(scorer.folder, dtype=torch.float32)
    prompts = ["the model reads", "naïve 日本", "12"]
    texts = scorer.complete([Prompt(one, 12) for one in prompts])
    for prompt, text in zip(prompts, texts, strict=True):
        ids = torch.tensor([scorer.encode(prompt)])
        made = peer.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=1)[0, ids.shape[1] :]
        assert text == scorer.tokenizer.decode(made.tolist())
    cut = texts[0][4]
    (stopped,) = scorer.complete([Prompt(prompts[0], 12, (cut,))])
    assert stopped == texts[0].split(cut)[0]
    with pytest.raises(BadInput, match="leave no room"):
        scorer.complete([Prompt("a", 96)])


def test_lengths_beyond_the_model_and_tokenizers_without_ends_are_refused(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "m")
    with pytest.raises(BadInput, match=r"--max-length 97: expected 2 to 96"):
        ModelScorer(folder, longest=97)
    config = folder / "tokenizer_config.json"
    text = (folder / "tokenizer.json").read_text()
    config.write_text("{}")
    (folder / "tokenizer.json").write_text(
        text.replace("<|begin_of_text|>", "<|a|>").replace("<|end_of_text|>", "<|b|>")
    )
    with pytest.raises(BadInput, match="no token that begins or ends a text"):
        ModelScorer(folder)
