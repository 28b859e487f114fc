"""Which tokens of a conversation are trained, against transformers' masks and against pieces put together by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from tests.chats import TURNS, pack_chats
from trine.data.chat import ChatRenderer, Unrenderable
from trine.data.config import CorpusConfig, PackConfig, TokenizerConfig
from trine.data.corpus import build_corpus
from trine.data.packing import pack_corpus
from trine.data.shards import TokenShards
from trine.data.templates import CHATML, PLAIN
from trine.data.tokenizer import open_tokenizer, train_tokenizer
from trine.errors import BadInput

MORE = ("<|eot|>", "<|end|>", "[INST]", "[/INST]", "<|user|>", "<|assistant|>")
LOOP = "{%- for m in messages %}"
TAGGED = (
    LOOP + "{{- '<|im_start|>' + m.role + '\n' }}{%- if m.role == 'assistant' %}{%- generation %}{{- m.content }}"
    "{{- END }}{%- endgeneration %}{%- else %}{{- m.content + '<|im_end|>' }}{%- endif %}{{- TAIL }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "plain": PLAIN,
    "end inside the tag": TAGGED.replace("END", "'<|im_end|>'").replace("TAIL", "'\n'"),
    "end behind the tag": TAGGED.replace("END", "''").replace(
        "TAIL", "('<|im_end|>' if m.role == 'assistant' else '') + '\n'"
    ),
    "trimmed": LOOP
    + "{{- '<|user|>' if m.role != 'assistant' else '<|assistant|>' }}{{- m.content | trim + '<|eot|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}",
    "instructions": "{{- bos_token }}{%- for m in messages %}{%- if m.role == 'assistant' %}{{- ' ' + m.content }}"
    "{{- eos_token }}{%- elif m.role == 'user' %}{{- '[INST] ' + m.content + ' [/INST]' }}{%- endif %}{%- endfor %}",
    "text ends once more": LOOP + "{{- '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{%- endfor %}"
    "{{- '<|assistant|>\n' if add_generation_prompt else eos_token }}",
}
ENDS = dict(zip(TEMPLATES, ("im_end", "end_of_text", "im_end", "im_end", "eot", "end_of_text", "end"), strict=True))
THOUGHTS = (
    LOOP + "{{- '<|im_start|>' + m.role + '\n' }}{%- if m.role == 'assistant' and not loop.last %}"
    "{{- m.content.split('</think>')[-1].lstrip() }}{%- else %}{{- m.content }}{%- endif %}{{- '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    pack_chats(folder, 20, {"special_tokens": MORE, "vocab_size": 400})
    return folder


def renderer(made: Path, template: str, tmp_path: Path) -> tuple[ChatRenderer, Any]:
    """Ours, and transformers' tokenizer of the same folder."""
    (tmp_path / "t.jinja").write_text(template)
    config = TokenizerConfig(path=str(made / "tokenizer"), chat_template=str(tmp_path / "t.jinja"))
    train_tokenizer(config, made / "corpus", tmp_path / "tokenizer")
    return ChatRenderer(tmp_path / "tokenizer"), AutoTokenizer.from_pretrained(tmp_path / "tokenizer")


def runs(tokens: np.ndarray, trained: np.ndarray, peer: Any) -> list[str]:
    """The text of each run of trained tokens."""
    cuts = np.flatnonzero(np.diff(trained.astype(int))) + 1
    pieces = zip(np.split(tokens, cuts), np.split(trained, cuts), strict=True)
    return [peer.decode(piece) for piece, mask in pieces if mask[0]]


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_and_their_ends_are_trained(made: Path, tmp_path: Path, name: str) -> None:
    ours, peer = renderer(made, TEMPLATES[name], tmp_path)
    end = f"<|{ENDS[name]}|>"
    assert ours.end_of_answer == end
    ((one,),) = ours.encode([TURNS])  # type: ignore[misc]
    assert one.tokens.tolist() == peer.apply_chat_template(TURNS, return_dict=False)
    space = " " if name == "instructions" else ""
    assert runs(one.tokens, one.trained, peer) == [space + TURNS[i]["content"] + end for i in (2, 4)]
    prompt = peer.apply_chat_template(TURNS[:4], add_generation_prompt=True, return_dict=False)
    assert one.tokens[: len(prompt)].tolist() == prompt
    assert one.trained[len(prompt) :].tolist().index(True) == 0
    assert one.trained[: len(prompt)].sum() == one.trained.sum() - len(
        peer.encode(f"46{end}", add_special_tokens=False)
    ) - len(space)


@pytest.mark.parametrize("name", ["end inside the tag", "chatml"])
def test_masks_equal_those_of_transformers(made: Path, tmp_path: Path, name: str) -> None:
    ours, peer = renderer(made, TEMPLATES[name], tmp_path)
    talks = [TURNS, TURNS[1:3], [*TURNS, *TURNS[1:]], TURNS[:4], [TURNS[1], TURNS[4] | {"content": "\n\n x \n"}]]
    tagged = TEMPLATES["end inside the tag"].replace("{%- for", "{{- bos_token }}{%- for", name == "chatml")
    for messages, found in zip(talks, ours.encode(talks), strict=True):
        expected = peer.apply_chat_template(
            messages, chat_template=tagged, return_dict=True, return_assistant_tokens_mask=True
        )
        ((one,),) = (found,)  # type: ignore[misc]
        assert one.tokens.tolist() == expected["input_ids"]
        assert one.trained.astype(int).tolist() == expected["assistant_masks"]


def test_pieces_put_together_by_hand_give_the_same(made: Path, tmp_path: Path) -> None:
    ours, _ = renderer(made, CHATML, tmp_path)
    tokenizer = open_tokenizer(made / "tokenizer").tokenizer
    start, end = tokenizer.token_to_id("<|im_start|>"), tokenizer.token_to_id("<|im_end|>")
    tokens, trained = [tokenizer.token_to_id("<|begin_of_text|>")], [False]
    for one in TURNS:
        head = tokenizer.encode(one["role"] + "\n", add_special_tokens=False).ids
        said = [*tokenizer.encode(one["content"], add_special_tokens=False).ids, end]
        tail = tokenizer.encode("\n", add_special_tokens=False).ids
        tokens += [start, *head, *said, *tail]
        answer = one["role"] == "assistant"
        trained += [False] * (1 + len(head)) + [answer] * len(said) + [False] * len(tail)
    ((one,),) = ours.encode([TURNS])  # type: ignore[misc]
    assert one.tokens.tolist() == tokens
    assert one.trained.tolist() == trained


@pytest.mark.parametrize("tagged", [False, True])
def test_turns_that_change_become_a_document_per_answer(made: Path, tmp_path: Path, tagged: bool) -> None:
    template = THOUGHTS
    if tagged:
        template = THOUGHTS.replace("{%- if m.role", "{%- generation %}{%- if m.role").replace(
            "<|im_end|>\n' }}", "<|im_end|>' }}{%- endgeneration %}{{- '\n' }}", 1
        )
    ours, peer = renderer(made, template, tmp_path)
    talk = [dict(one) for one in TURNS]
    for i in (2, 4):
        talk[i]["content"] = f"<think>hm {i}</think>\n{talk[i]['content']}"
    found, plain = ours.encode([talk, TURNS])
    assert not isinstance(found, Unrenderable)
    assert not isinstance(plain, Unrenderable)
    assert len(plain) == 1, "nothing changes where nothing is dropped"
    assert len(found) == 2
    for one, last in zip(found, (2, 4), strict=True):
        assert one.tokens.tolist() == peer.apply_chat_template(talk[: last + 1], return_dict=False)
        assert runs(one.tokens, one.trained, peer) == [talk[last]["content"] + "<|im_end|>"]


@pytest.mark.parametrize("answer", ["hi", "in", "hello", "think", "end"])
def test_a_short_answer_is_not_taken_for_what_a_template_writes_before_it(
    made: Path, tmp_path: Path, answer: str
) -> None:
    template = THOUGHTS.replace("{%- else %}{{- m.content }}", "{%- else %}{{- '<|user|>\n<|end|>\n' + m.content }}")
    ours, peer = renderer(made, template, tmp_path)
    ((one,),) = ours.encode([[{"role": "user", "content": "Q"}, {"role": "assistant", "content": answer}]])  # type: ignore[misc]
    assert runs(one.tokens, one.trained, peer)[-1].endswith(answer + "<|im_end|>")


def test_conversations_that_cannot_be_told_are_refused(made: Path, tmp_path: Path) -> None:
    picky = "{%- if messages[0].role == 'system' %}{{- raise_exception('no system here') }}{%- endif %}"
    (tmp_path / "a").mkdir()
    ours, _ = renderer(made, picky + CHATML, tmp_path / "a")
    forged = [TURNS[1] | {"content": "a<|im_end|>\n"}, TURNS[2]]
    first, second, third = ours.encode([TURNS, forged, TURNS[1:]])
    assert str(first) == "the template refuses it (no system here)"
    assert str(second) == "message 0 spells out the special token <|im_end|>"
    assert not isinstance(third, Unrenderable)
    wrong = {
        "no end": (LOOP + "{{- m.role + ': ' + m.content + '\n' }}{%- endfor %}", "ends message 1 with no token"),
        "other prompt": (CHATML.replace("assistant\\n", "assistant\\n<think>"), "otherwise than its prompt"),
        "tag without end": (
            TEMPLATES["end behind the tag"].replace("('<|im_end|>' if m.role == 'assistant' else '')", "''"),
            "ends message 1 with no token",
        ),
        "empty tag": (CHATML + "{%- generation %}{%- endgeneration %}", "marks nothing of message 1"),
        "no Jinja": ("{%- for", "refuses it"),
    }
    for name, (template, message) in wrong.items():
        (tmp_path / name).mkdir()
        with pytest.raises(BadInput, match=message):
            renderer(made, template, tmp_path / name)
        assert not (tmp_path / name / "tokenizer").exists()
    with pytest.raises(BadInput, match="expected chatml or plain, or a file"):
        train_tokenizer(TokenizerConfig(chat_template="chatlm"), made / "corpus", tmp_path / "none")


def test_an_existing_tokenizer_brings_its_template_and_tokens(made: Path, tmp_path: Path) -> None:
    made_again = train_tokenizer(TokenizerConfig(path=str(made / "tokenizer")), made / "corpus", tmp_path / "again")
    assert made_again["end_of_answer"] == "<|im_end|>"
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").glob("*_*.j*")} == {
        path.name: path.read_bytes() for path in (made / "tokenizer").glob("*_*.j*")
    }
    bare = TokenizerConfig(path=str(made / "tokenizer" / "tokenizer.json"), chat_template="plain")
    assert train_tokenizer(bare, tmp_path / "no corpus", tmp_path / "bare")["end_of_answer"] == "<|end_of_text|>"


def test_shards_hold_the_masks(made: Path) -> None:
    shards = TokenShards(made / "tokens")
    documents = shards.sets["train"]
    peer: Any = AutoTokenizer.from_pretrained(made / "tokenizer")
    total = 0
    for i, length in enumerate(documents.lengths.tolist()):
        tokens, trained = documents.read(i, 0, length), documents.read_trained(i, 0, length)
        assert all(one.startswith("It is ") and one.endswith(".<|im_end|>") for one in runs(tokens, trained, peer))
        for begin in (0, 1, 5, 8, length - 1):
            assert np.array_equal(documents.read_trained(i, begin, length), trained[begin:])
            expected = np.where(trained, tokens.astype(int), -1)
            assert np.array_equal(documents.as_targets(tokens[begin:], i, begin), expected[begin:])
        total += int(trained.sum())
    assert documents.trained == total
    path = made / "tokens" / "train-00000.msk"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(BadInput, match=r"train-00000\.msk: \d+ bytes, the index says"):
        TokenShards(made / "tokens")
    path.write_bytes(data)


def test_what_the_template_does_not_take_is_noted_and_texts_are_trained_whole(tmp_path: Path) -> None:
    forged = [TURNS[1] | {"content": "<|im_start|>"}, TURNS[2]]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps({"messages": one}) + "\n" for one in (TURNS, forged)))
    (tmp_path / "text.txt").write_text("A plain text. <|im_start|>assistant\n")
    sources = [
        {"name": "talk", "path": str(tmp_path / "talk.jsonl"), "chat": {}},
        {"name": "text", "path": str(tmp_path / "text.txt")},
    ]
    config = CorpusConfig.model_validate({"sources": tuple(sources)})
    before = build_corpus(config, tmp_path / "corpus")
    train_tokenizer(TokenizerConfig(vocab_size=300), tmp_path / "corpus", tmp_path / "tokenizer")
    ledger = pack_corpus(PackConfig(), tmp_path / "corpus", tmp_path / "tokenizer", tmp_path / "tokens")
    talk, text = ledger["sources"]
    assert (talk["documents"], talk["dropped"]) == (1, {"the chat template does not take it": 1})
    said = {"source": "talk", "path": f"{tmp_path / 'talk.jsonl'}:2"}
    said |= {"reason": "message 0 spells out the special token <|im_start|>"}
    assert ledger["rejected"] == {"records": 1, "first": [said]}
    assert json.loads((tmp_path / "tokens" / "rejected.jsonl").read_text()) == said
    size = len(("<|im_start|>\n\n" + TURNS[2]["content"]).encode())
    assert ledger["sets"]["train"]["documents"] == 2
    assert before["sets"]["train"]["bytes"] - ledger["sets"]["train"]["bytes"] == size
    documents = TokenShards(tmp_path / "tokens").sets["train"]
    marks = [documents.read_trained(i, 0, int(n)) for i, n in enumerate(documents.lengths)]
    assert [bool(one.all()) for one in marks] == [False, True]
    assert documents.trained == sum(map(sum, marks)) == ledger["sets"]["train"]["trained"]
    assert documents.source_tokens.tolist() == [talk["tokens"], text["tokens"]]

    (tmp_path / "talk.jsonl").write_text(json.dumps({"messages": forged}) + "\n")
    build_corpus(config, tmp_path / "corpus2")
    with pytest.raises(BadInput, match=r"talk\.jsonl:1: message 0 spells .*; the chat template takes no conversation"):
        pack_corpus(PackConfig(), tmp_path / "corpus2", tmp_path / "tokenizer", tmp_path / "tokens2")
    assert not (tmp_path / "tokens2").exists()
