"""Multiple choice against its definition, and questions that are what the set says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.chats import pack_chats
from tests.model.shapes import small_config, small_model
from tests.tokens import write_tokens
from trine.data.shards import TokenShards
from trine.errors import BadInput
from trine.evaluate.choices import Question, choice_accuracy, passages, questions


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    return TokenShards(pack_chats(tmp_path_factory.mktemp("chats"), count=120))


def test_questions_are_held_out_conversations_with_other_answers(shards: TokenShards) -> None:
    held = shards.sets["heldout"]
    asked = questions(held, 200, 1000, seed=0)
    assert len(asked) == len(held.lengths) > 8
    whole = [held.read(i, 0, int(n)).astype(np.int64) for i, n in enumerate(held.lengths)]
    for one, document in zip(asked, whole, strict=True):
        assert len(one.answers) == 4
        assert len({answer.tobytes() for answer in one.answers}) == 4
        right = np.concatenate([one.prompt, one.answers[0]])
        assert (document[: len(right)] == right).all()
        for wrong in one.answers[1:]:
            assert any(wrong.tobytes() in other.tobytes() for other in whole)
    again, other = questions(held, 200, 5, seed=0), questions(held, 200, 5, seed=1)
    assert len(again) == 5
    assert [a.tobytes() for a in again[0].answers] == [a.tobytes() for a in asked[0].answers]
    assert any(
        [a.tobytes() for a in x.answers] != [a.tobytes() for a in y.answers] for x, y in zip(again, other, strict=True)
    )


def test_accuracy_equals_the_definition(shards: TokenShards) -> None:
    model = small_model(small_config(vocab_size=shards.vocab_size)).eval()
    asked = questions(shards.sets["heldout"], 200, 12, seed=0)
    result = choice_accuracy(model, asked, shards.token_bytes, chunk=7, rows=5)
    won = 0
    for one in asked:
        scores = []
        for answer in one.answers:
            text = torch.from_numpy(np.concatenate([one.prompt, answer]))
            log_p = model(text[None, :-1]).log_softmax(-1)[0, len(one.prompt) - 1 :]
            likely = log_p.gather(1, torch.from_numpy(answer)[:, None]).sum()
            scores.append(float(likely.detach()) / int(shards.token_bytes[torch.from_numpy(answer)].sum()))
        won += scores[0] == max(scores)
    assert result.accuracy == pytest.approx(won / 12)
    assert (result.chance, result.questions) == (0.25, 12)
    assert 0 <= result.standard_error <= 0.15


def test_ties_count_in_part_and_a_known_answer_wins(shards: TokenShards) -> None:
    model = small_model(small_config(vocab_size=shards.vocab_size)).eval()
    prompt, same = np.array([1, 2, 3]), np.array([5, 6])
    tied = choice_accuracy(model, [Question(prompt, (same, same, same, same))], shards.token_bytes, chunk=8)
    assert tied.accuracy == 0.25
    likely = int(model(torch.tensor([[1, 2, 3]]))[0, -1].argmax())
    others = [np.array([i]) for i in range(7, 40) if i != likely][:3]
    weights = torch.ones(shards.vocab_size, dtype=torch.int64)
    assert choice_accuracy(model, [Question(prompt, (np.array([likely]), *others))], weights, chunk=8).accuracy == 1


def test_what_holds_no_answers_is_refused(tmp_path: Path, shards: TokenShards) -> None:
    plain = TokenShards(write_tokens(tmp_path / "tokens")).sets["heldout"]
    with pytest.raises(BadInput, match="has no answers"):
        questions(plain, 64, 10, seed=0)
    with pytest.raises(BadInput, match="expected at least 500 to choose from"):
        questions(shards.sets["heldout"], 200, 10, seed=0, wrong=499)
    with pytest.raises(BadInput, match="no questions"):
        choice_accuracy(small_model(), [], shards.token_bytes, chunk=8)


def test_passages_follow_their_prompts_and_wrong_ones_come_from_elsewhere_in_the_text(tmp_path: Path) -> None:
    held = TokenShards(write_tokens(tmp_path / "tokens")).sets["train"]
    texts = [held.read(i, 0, int(n)).astype(np.int64).tobytes() for i, n in enumerate(held.lengths)]
    asked = passages(held, 64, 1000, seed=0)
    assert len(asked) > 20
    for one in asked:
        assert (len(one.prompt), [len(answer) for answer in one.answers]) == (16, [8] * 4)
        assert len({answer.tobytes() for answer in one.answers}) == 4
        right = one.prompt.tobytes() + one.answers[0].tobytes()
        text = next(text for text in texts if right in text)
        before, after = text.split(right, 1)
        assert all(answer.tobytes() in before or answer.tobytes() in after for answer in one.answers[1:])
    few, other = passages(held, 64, 5, seed=0), passages(held, 64, 5, seed=1)
    assert len(few) == 5
    assert all(any(one.prompt.tobytes() == two.prompt.tobytes() for two in asked) for one in few)
    assert [one.prompt.tobytes() for one in few] != [one.prompt.tobytes() for one in other]
    with pytest.raises(BadInput, match="no held-out text is long enough for 4 passages of 64"):
        passages(held, 512, 5, seed=0)
