"""Text in, text out: pieces join to the whole text, stop strings, chat templates, tokenizers with leading spaces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.model.shapes import small_config, small_model
from trine.completion import TextModel, TextStream
from trine.data.tokenizer import trinity_pre_tokenizer
from trine.errors import BadInput
from trine.model.hf import save_model
from trine.model.sampling import Sampling

TEXT = "the model reads the café, then naïve 日本語 text 😀 writes it again. " * 3
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|bot|>{% endif %}"
)


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = trinity_pre_tokenizer(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|user|>", "<|system|>", "<|bot|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    special = ["<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


@pytest.mark.parametrize("make", [byte_level, metaspace])
@pytest.mark.parametrize("begin", [0, 1, 4])
def test_pieces_join_to_the_text_of_the_whole(make: type, begin: int) -> None:
    tokenizer = make()
    ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
    stream = TextStream(tokenizer, ids[:begin])
    pieces = [stream.push(token) for token in ids[begin:]]
    text = "".join([*pieces, stream.close()])
    assert tokenizer.decode(ids[:begin]) + text == tokenizer.decode(ids)
    assert "�" not in text
    assert sum(map(bool, pieces)) > len(pieces) // 2


@pytest.mark.parametrize("stop", [[" text"], ["xyz", "naïve 日本"], ["語 text 😀 w", "zzz"], ["text", " te"]])
def test_text_ends_before_a_stop_string_and_never_shows_its_beginning(stop: list[str]) -> None:
    tokenizer = byte_level()
    stream, text = TextStream(tokenizer, [], stop), ""
    for token in tokenizer.encode(TEXT).ids:
        text += stream.push(token)
        if stream.stopped:
            break
    assert stream.stopped
    assert text == TEXT[: min(TEXT.find(one) for one in stop if one in TEXT)]
    assert stream.close() == ""


def test_what_may_begin_a_stop_string_is_shown_at_the_end() -> None:
    tokenizer = byte_level()
    stream = TextStream(tokenizer, [], ["text?"])
    ids = tokenizer.encode("the text").ids
    assert "".join(stream.push(token) for token in ids) == "the "
    assert stream.close() == "text"


def write_model(folder: Path, template: str | None = TEMPLATE) -> Path:
    tokenizer = byte_level()
    model = small_model(small_config(vocab_size=320), bias=0.2)
    save_model(model, folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"eos_token": "<|end_of_text|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    named |= {"chat_template": template} if template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


def test_batches_give_the_texts_of_single_prompts(tmp_path: Path) -> None:
    model = TextModel(write_model(tmp_path / "model"))
    prompts = [model.encode(text) for text in ("the", "the model reads the café", "again", "it writes")]
    sampling = Sampling(temperature=0)
    single = ["".join(model.complete(prompt, 12, sampling)) for prompt in prompts]
    found = {one.prompt: one for one in model.complete_all(prompts, 12, sampling, batch_rows=3)}
    assert [found[i].text for i in range(4)] == single
    assert all(one.finish == "end" or one.tokens == 12 for one in found.values())


def test_samples_differ_and_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    model = TextModel(write_model(tmp_path / "model"))
    prompts = [model.encode(text) for text in ("the model", "again it")]
    runs = []
    for rows in (1, 4, 16):
        made = model.complete_all(prompts, 10, Sampling(seed=3), samples=3, batch_rows=rows)
        runs.append({(one.prompt, one.sample): one.text for one in made})
    assert runs[0] == runs[1] == runs[2]
    assert len(set(runs[0].values())) == 6


def test_stop_strings_end_rows_of_a_batch(tmp_path: Path) -> None:
    model = TextModel(write_model(tmp_path / "model"))
    prompts = [model.encode(text) for text in ("the model", "again it")]
    whole = sorted(model.complete_all(prompts, 30, Sampling(seed=1)), key=lambda one: one.prompt)
    stop = whole[0].text[8:11]
    found = sorted(model.complete_all(prompts, 30, Sampling(seed=1), stop=[stop]), key=lambda one: one.prompt)
    assert found[0].finish == "stop"
    assert found[0].text == whole[0].text[: whole[0].text.find(stop)]
    assert found[0].tokens < whole[0].tokens
    assert found[1].text == whole[1].text.partition(stop)[0]


def test_chat_tokens_are_those_of_the_template(tmp_path: Path) -> None:
    model = TextModel(write_model(tmp_path / "model"))
    tokens = model.encode_chat([{"role": "system", "content": "reads"}, {"role": "user", "content": "the text"}])
    tokenizer = model.opened.tokenizer
    assert tokenizer.decode(tokens, skip_special_tokens=False) == "<|system|>reads<|user|>the text<|bot|>"
    assert tokens[-1] == tokenizer.token_to_id("<|bot|>")


def test_chat_errors_say_what_is_wrong(tmp_path: Path) -> None:
    silent = TextModel(write_model(tmp_path / "silent", None))
    with pytest.raises(BadInput, match="has no chat template"):
        silent.encode_chat([{"role": "user", "content": "x"}])
    strict = TextModel(write_model(tmp_path / "strict", "{{ raise_exception('roles must alternate') }}"))
    with pytest.raises(BadInput, match="roles must alternate"):
        strict.encode_chat([{"role": "user", "content": "x"}])
