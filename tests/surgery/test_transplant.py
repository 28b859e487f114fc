"""Transplanted tokenizers: combinations against float64 formulas, whole models against mergekit's tokensurgeon."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import write_texts
from tests.e2e.test_merge import load
from tests.merge.checkpoints import read_weights, write_weights
from tests.surgery.donors import dense
from trine.errors import BadInput
from trine.merge.dtypes import Array
from trine.merge.engine import Options
from trine.surgery import landmarks
from trine.surgery.copying import made_folder
from trine.surgery.landmarks import Landmarks, combined, interpolation, pursuit
from trine.surgery.transplant import Transplant, plan_transplant, transplant
from trine.surgery.vocabulary import read_vocabulary

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def byte_level(folder: Path, texts: Path, size: int, specials: Sequence[str], **roles: str) -> int:
    """A byte-level BPE trained on a folder's texts; the number of its tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(specials), initial_alphabet=alphabet)
    tokenizer.train([str(path) for path in sorted(texts.iterdir())], trainer)
    return _save(folder, tokenizer, roles)


def pieces(folder: Path, texts: Path, size: int, specials: Sequence[str], **roles: str) -> int:
    """A BPE as SentencePiece writes it, with every lone byte."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    lone = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer.train(
        [str(path) for path in sorted(texts.iterdir())],
        trainers.BpeTrainer(vocab_size=size, special_tokens=[*specials, "<unk>"], max_token_length=9),
    )
    tokenizer.model = _with_bytes(tokenizer, lone)
    return _save(folder, tokenizer, roles)


def _with_bytes(tokenizer: Any, lone: list[str]) -> Any:
    from tokenizers import models

    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = model["vocab"]
    for one in lone:
        vocabulary[one] = len(vocabulary)
    merges = [tuple(one) for one in model["merges"]]
    return models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>")


def _save(folder: Path, tokenizer: Any, roles: dict[str, str]) -> int:
    from transformers import PreTrainedTokenizerFast

    for old in folder.glob("*token*"):
        old.unlink()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{f"{k}_token": v for k, v in roles.items()}).save_pretrained(
        folder
    )
    return len(tokenizer.get_vocab())


def two(folder: Path, stored: str = "float32", tied: bool = False, donor_tied: bool = False) -> tuple[str, str]:
    """A model and a donor of another width, each with a byte-level tokenizer of its own."""
    texts = write_texts(folder / "texts", 6)
    other = write_texts(folder / "other", 6, seed=1)
    (other / "more.txt").write_text("attention windows expert routers forget the largest tokens again and again. " * 40)
    specials = {"model": ["<s>", "</s>", "<|user|>"], "donor": ["<|begin|>", "<|end|>", "<|pad|>", "<|user|>"]}
    dense(folder / "model", "llama", 0, stored, vocab_size=400, tie_word_embeddings=tied)
    dense(
        folder / "donor",
        "llama",
        1,
        stored,
        vocab_size=420,
        hidden_size=48,
        head_dim=12,
        tie_word_embeddings=donor_tied,
    )
    byte_level(folder / "model", texts, 390, specials["model"], bos="<s>", eos="</s>")
    byte_level(folder / "donor", other, 420, specials["donor"], bos="<|begin|>", eos="<|end|>", pad="<|pad|>")
    return str(folder / "model"), str(folder / "donor")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A model and a donor."""
    return two(tmp_path_factory.mktemp("transplant"))


def run(pair: tuple[str, str], out: Path, *how: Any) -> tuple[Transplant, dict[str, Array]]:
    found = plan_transplant(*pair, *how)
    transplant(found, out, Options())
    assert not made_folder(out).exists()
    assert [path.name for path in out.parent.glob(".*")] == []
    return found, read_weights(out)


def exact_pursuit(table: Array, target: Array, k: int) -> tuple[list[int], Array]:
    """Orthogonal matching pursuit by its definition, in float64."""
    taken: list[int] = []
    left, fitted = target, np.zeros(0)
    for _ in range(k):
        products = np.abs(table @ left)
        products[taken] = -1
        taken.append(int(products.argmax()))
        fitted = np.linalg.lstsq(table[taken].T, target, rcond=None)[0]
        left = target - table[taken].T @ fitted
    return taken, fitted


@pytest.mark.parametrize(("width", "k"), [(24, 8), (64, 40)])
@pytest.mark.parametrize("step", [7, 1000])
def test_pursuit_is_its_definition(width: int, k: int, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landmarks, "block_rows", lambda _: step)
    rng = np.random.default_rng(0)
    table = rng.standard_normal((90, width)).astype(np.float32)
    targets = rng.standard_normal((5, width)).astype(np.float32)
    ids = rng.permutation(90)[:70]
    which, coefficients = pursuit(
        Landmarks(torch.from_numpy(table), torch.from_numpy(ids)), torch.from_numpy(targets), k
    )
    for row, target in enumerate(targets.astype(float)):
        taken, fitted = exact_pursuit(table[ids].astype(float), target, k)
        assert which[row].tolist() == taken
        np.testing.assert_allclose(coefficients[row].numpy(), fitted, atol=2e-4)


def test_pursuit_ends_when_nothing_is_left() -> None:
    """A target that two landmarks give exactly, one of zeros, and more landmarks than there are directions."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(30, 6, generator=generator)
    targets = torch.stack([2 * table[4] - 3 * table[9], torch.zeros(6), torch.randn(6, generator=generator)])
    which, coefficients = pursuit(Landmarks(table, torch.arange(30)), targets, 10)
    assert torch.isfinite(coefficients).all()
    assert all(len(set(row)) == 10 for row in which.tolist())
    torch.testing.assert_close(
        combined(Landmarks(table, torch.arange(30)), (which, coefficients)), targets, atol=1e-4, rtol=1e-4
    )
    assert not coefficients[1].any()


@pytest.mark.parametrize("step", [7, 1000])
def test_interpolation_is_its_formula(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landmarks, "block_rows", lambda _: step)
    rng = np.random.default_rng(0)
    table = rng.standard_normal((50, 12)).astype(np.float32)
    targets = np.concatenate([rng.standard_normal((4, 12)).astype(np.float32), table[7:8]])
    which, weights = interpolation(Landmarks(torch.from_numpy(table), torch.arange(50)), torch.from_numpy(targets), 6)
    for row, target in enumerate(targets.astype(float)):
        distances = np.linalg.norm(table - target, axis=1)
        nearest = np.argsort(distances)[:6]
        expected = 1 / np.maximum(distances[nearest], 1e-6)
        assert set(which[row].tolist()) == set(nearest.tolist())
        found = dict(zip(which[row].tolist(), weights[row].tolist(), strict=True))
        for place, one in zip(nearest.tolist(), expected / expected.sum(), strict=True):
            assert found[place] == pytest.approx(one, abs=1e-5)


CASES = [("omp", False), ("omp", True), ("common-interpolation", False), ("mean", True), ("zero", False)]


@pytest.mark.parametrize(("method", "tied"), CASES)
def test_rows_are_what_they_should_be(tmp_path: Path, method: Any, tied: bool) -> None:
    """Every row against float64: shared ones copied, the others combined in each table's own spaces."""
    pair = two(tmp_path, "bfloat16", tied, donor_tied=True)
    found, out = run(pair, tmp_path / "out", method, 5)
    model, donor = (read_weights(Path(one)) for one in pair)
    ours, theirs = (read_vocabulary(Path(one)).tokens for one in pair)
    roles = {"<|begin|>": "<s>", "<|end|>": "</s>"}
    same = {number: ours[roles.get(text, text)] for text, number in theirs.items() if roles.get(text, text) in ours}
    assert found.matching.sources == same
    assert 256 < len(same) < len(theirs) - 20
    landmarks = sorted(same)
    assert (HEAD in out) != tied
    for name in (EMBEDDING, HEAD)[: 1 if tied else 2]:
        space, table = donor[EMBEDDING].astype(float), model[name].astype(float)
        assert out[name].shape == (len(theirs), 32)
        for number in theirs.values():
            if number in same:
                np.testing.assert_array_equal(out[name][number], model[name][same[number]])
                continue
            if method == "omp":
                taken, fitted = exact_pursuit(space[landmarks], space[number], 5)
                expected = sum(c * table[same[landmarks[one]]] for one, c in zip(taken, fitted, strict=True))
            elif method == "common-interpolation":
                distances = np.linalg.norm(space[landmarks] - space[number], axis=1)
                near = np.argsort(distances)[:5]
                weights = (1 / distances[near]) / (1 / distances[near]).sum()
                expected = sum(w * table[same[landmarks[one]]] for one, w in zip(near, weights, strict=True))
            else:
                expected = table.mean(0) * (method == "mean")
            np.testing.assert_allclose(out[name][number], expected, atol=2e-4 + 0.004 * np.abs(expected).max())
    for name in set(model) - {EMBEDDING, HEAD}:
        np.testing.assert_array_equal(out[name], model[name])
    assert load(tmp_path / "out").config.tie_word_embeddings == tied


@pytest.mark.parametrize("method", ["omp", "common-interpolation", "mean", "zero"])
def test_whole_models_are_tokensurgeons(pair: tuple[str, str], tmp_path: Path, method: Any) -> None:
    pytest.importorskip("mergekit")
    from click.testing import CliRunner
    from mergekit.scripts.tokensurgeon import main

    peer = str(tmp_path / "peer")
    words = [*pair, peer, "-k", "6", "-a", method.replace("-", "_"), "--device", "cpu"]
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found, ours = run(pair, tmp_path / "out", method, 6)
    theirs = read_weights(tmp_path / "peer")
    assert ours.keys() == theirs.keys()
    for name, one in theirs.items():
        np.testing.assert_allclose(ours[name], one, atol=2e-5, err_msg=name)
    mine, other = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("out", "peer"))
    assert mine["vocab_size"] == other["vocab_size"] == found.vocabulary.size
    for role in ("bos", "eos", "pad"):
        assert mine[f"{role}_token_id"] == other[f"{role}_token_id"]


def test_tokens_written_in_two_ways_are_the_same_by_their_bytes(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("the café là, naïve  café\nthe the cafés " * 30)
    for name, make in (("model", pieces), ("donor", byte_level)):
        dense(tmp_path / name, "llama", 0, vocab_size=420)
        make(tmp_path / name, texts, 330, ["<s>", "</s>"], bos="<s>", eos="</s>")
    found = plan_transplant(str(tmp_path / "model"), str(tmp_path / "donor"), "mean")
    ours, theirs = (read_vocabulary(tmp_path / name) for name in ("model", "donor"))
    assert (ours.written, theirs.written) == ("pieces", "byte-level")
    sources = found.matching.sources

    def at(text: str) -> str:
        return ours.by_id[sources[theirs.tokens[text]]]

    assert at("ĠcafÃ©") == "▁café"
    assert at("Ċ") in ("\n", "<0x0A>")
    assert at("a") == "a"
    assert at("Ã") == "<0xC3>"
    assert at("</s>") == "</s>"
    assert found.matching.respelled > 200
    back = plan_transplant(str(tmp_path / "donor"), str(tmp_path / "model"), "mean")
    assert (
        back.vocabulary.by_id[next(n for n, s in back.matching.sources.items() if s == theirs.tokens["ĠcafÃ©"])]
        == "▁café"
    )


def test_ids_in_the_configs_are_those_of_the_donors_tokens(pair: tuple[str, str], tmp_path: Path) -> None:
    import shutil

    model = tmp_path / "model"
    shutil.copytree(pair[0], model)
    ours, theirs = (read_vocabulary(Path(one)).tokens for one in pair)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"image_token_id": ours["<|user|>"]}))
    (model / "generation_config.json").write_text(
        json.dumps({"temperature": 0.7, "eos_token_id": [1, 2], "bos_token_id": 0})
    )
    run((str(model), pair[1]), tmp_path / "out", "mean")
    out = json.loads((tmp_path / "out" / "config.json").read_text())
    assert out["image_token_id"] == theirs["<|user|>"] != ours["<|user|>"]
    donor = json.loads((Path(pair[1]) / "config.json").read_text())
    assert [out[f"{one}_token_id"] for one in ("bos", "eos", "pad")] == [
        donor[f"{one}_token_id"] for one in ("bos", "eos", "pad")
    ]
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["temperature"] == 0.7
    assert generation["eos_token_id"] == donor["eos_token_id"]
    lost = next(number for text, number in ours.items() if text not in theirs and number > 3)
    (model / "config.json").write_text(json.dumps(config | {"image_token_id": lost}))
    with pytest.raises(BadInput, match=rf"image_token_id {lost} \('.+'\) is no token of"):
        plan_transplant(str(model), pair[1], "mean")


def test_a_killed_transplant_goes_on_with_the_batches_it_has(
    pair: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trine.surgery import transplant as module

    monkeypatch.setattr(module, "batch_rows", lambda *_: 16)
    whole = run(pair, tmp_path / "whole", "omp", 4)[1]
    found, plain, calls = plan_transplant(*pair, "omp", 4), landmarks.METHODS["omp"], []

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setitem(module.METHODS, "omp", counted)
    with pytest.raises(KeyboardInterrupt):
        transplant(found, tmp_path / "out", Options())
    kept = sorted(path for path in (tmp_path / ".out.pieces").iterdir() if path.name != "from")
    assert len(kept) == 2
    kept[0].write_bytes(kept[0].read_bytes()[:-1] + b"\xff")
    calls[:] = [()] * 3
    transplant(found, tmp_path / "out", Options())
    assert 3 + 2 * -(-len(found.new) // 16) - 1 == len(calls)  # the damaged piece was made again
    for name, one in read_weights(tmp_path / "out").items():
        np.testing.assert_array_equal(one, whole[name])
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_vocabularies_that_share_nothing(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    for name, words in (("model", "aa bb cc"), ("donor", "dd ee ff gg hh")):
        dense(tmp_path / name, "llama", 0)
        _save(tmp_path / name, Tokenizer(models.WordLevel({one: i for i, one in enumerate(words.split())})), {})
    pair = str(tmp_path / "model"), str(tmp_path / "donor")
    with pytest.raises(BadInput, match="share no token that others could be made of; use --method mean"):
        plan_transplant(*pair)
    table = read_weights(tmp_path / "model")[EMBEDDING]
    out = run(pair, tmp_path / "out", "mean")[1]
    np.testing.assert_allclose(out[EMBEDDING], np.tile(table.mean(0), (5, 1)), atol=1e-7)


def test_a_full_disk_is_said_and_leaves_nothing(
    pair: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import errno
    import os

    from trine.cli.main import main

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert main(["tokens", "transplant", *pair, str(tmp_path / "out"), "-k", "6"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_counts_and_writes_nothing(
    pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from trine.cli.main import main

    assert main(["tokens", "transplant", *pair, str(tmp_path / "out"), "-k", "6", "--dry-run", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["shared"] + counts["approximated"] == counts["tokens"] == counts["rows"]
    assert counts["seconds"] > 0
    assert counts["roles"] == {"eos": ["<|end|>", "</s>"], "bos": ["<|begin|>", "<s>"]}
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_transplanted_is_refused(pair: tuple[str, str], tmp_path: Path) -> None:
    import shutil

    with pytest.raises(BadInput, match="have the same vocabulary, so there is nothing to transplant"):
        plan_transplant(pair[0], pair[0])
    with pytest.raises(BadInput, match=r"-k 1000: expected 1 to \d+, the tokens that"):
        plan_transplant(*pair, "omp", 1000)
    bare = tmp_path / "bare"
    shutil.copytree(pair[1], bare, ignore=shutil.ignore_patterns("*token*"))
    with pytest.raises(BadInput, match=r"bare: has no tokenizer, which a transplant needs of both models"):
        plan_transplant(pair[0], str(bare))
    for number, (one, name) in enumerate(zip(pair, (EMBEDDING, HEAD), strict=True)):
        broken = tmp_path / f"broken-{number}"
        shutil.copytree(one, broken)
        tensors = {key: value.copy() for key, value in read_weights(broken).items()}
        tensors[name][7, 3] = np.nan
        write_weights(broken / "model.safetensors", tensors)
        model, donor = (str(broken) if place == number else other for place, other in enumerate(pair))
        with pytest.raises(BadInput, match=rf"broken-{number}/model.safetensors: '{name}': row 7 holds NaN"):
            transplant(plan_transplant(model, donor, "omp", 4), tmp_path / "out", Options())
    assert not (tmp_path / "out").exists()
    assert not made_folder(tmp_path / "out").exists()


def test_a_tokenizer_with_code_of_its_own_is_not_run(pair: tuple[str, str], tmp_path: Path) -> None:
    import shutil

    donor, ran = tmp_path / "donor", tmp_path / "ran"
    shutil.copytree(pair[1], donor)
    (donor / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    settings = json.loads((donor / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
    (donor / "tokenizer_config.json").write_text(json.dumps(settings))
    with contextlib.suppress(BadInput):
        plan_transplant(pair[0], str(donor))
    assert not ran.exists()
    (donor / "tokenizer_config.json").write_text("[]")
    with pytest.raises(BadInput, match="donor: has no tokenizer"):
        plan_transplant(pair[0], str(donor))
