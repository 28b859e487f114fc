"""Golden case 28, chat templates: what transformers renders with the output's template, mergekit beside."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.merge.golden import llama, ours, peer, planned, write_llama
from tests.merge.tokenizers import write_tokenizer
from trine.errors import BadInput

pytest.importorskip("mergekit")
CONFIG = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: ROOT/a}, {model: ROOT/b}, {model: ROOT/c}]\n"
CONFIG += "base_model: ROOT/a\n"
TALK = [("system", "Be brief."), ("user", "Hi"), ("assistant", " Hello "), ("user", "Bye")]
HASHES = "{% for one in messages %}{{ '# ' + one['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models; b and c have one template, a another."""
    root = tmp_path_factory.mktemp("chat")
    for i, name in enumerate("abc"):
        write_llama(root / name, llama(i, vocab_size=30), vocab_size=30)
        write_tokenizer(root / name, ["ab", "cd"])
        (root / name / "chat_template.jinja").write_text("{{ messages[0]['content'] }}" if i == 0 else HASHES)
    return root


def rendered(folder: Path, start: int = 0, end: int = 4) -> str:
    """A part of the conversation; an answer is asked for after a question."""
    from transformers import AutoTokenizer

    talk = [{"role": role, "content": text} for role, text in TALK[start:end]]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=talk[-1]["role"] == "user")


def both(setting: str, zoo: Path, folder: Path) -> tuple[Path, Path]:
    text = CONFIG.replace("ROOT", str(zoo)) + setting
    ours(text, folder / "ours")
    peer(text, folder / "peer", copy_tokenizer=True)
    return folder / "ours", folder / "peer"


PUBLIC: dict[str, Callable[[str], str]] = {
    "chatml": lambda text: text,
    "mistral": lambda text: text,
    "llama3": lambda text: text.replace("<|eot_id|>\n", "<|eot_id|>"),
    "exaone": lambda text: re.sub(r"\s*\n\s*", "\n", text).lstrip().replace("\n[|endofturn|]", "[|endofturn|]"),
    "alpaca": lambda text: re.sub(r"(?<!\n)### Response", "\n\n### Response", text).lstrip("\n"),
}
"""What makes mergekit's rendering that of the format as its makers give it: stray white space, a missing blank line."""


@pytest.mark.parametrize("name", PUBLIC)
def test_case_28_a_format_by_name(zoo: Path, tmp_path: Path, name: str) -> None:
    mine, theirs = both(f"chat_template: {name}\ntokenizer_source: base\n", zoo, tmp_path)
    for part in ((0, 4), (1, 4), (0, 3), (1, 2)):
        wanted = PUBLIC[name](rendered(theirs, *part))
        found = rendered(mine, *part)
        if name == "exaone":
            found, wanted = found.rstrip("\n").replace(" \n", "\n").replace(" [", "["), wanted.rstrip("\n")
        assert found == wanted


def test_a_format_by_name_as_its_makers_give_it(zoo: Path, tmp_path: Path) -> None:
    """White space to the letter, which mergekit's rendering above does not show."""
    wanted = {
        "exaone": "[|system|][|endofturn|]\n[|user|]Hi\n[|assistant|] Hello [|endofturn|]\n[|user|]Bye\n[|assistant|]",
        "alpaca": "### Instruction:\nHi\n\n### Response:\nHello\n\n### Instruction:\nBye\n\n### Response:\n",
        "llama3": "<s>"
        + "".join(f"<|start_header_id|>{role}<|end_header_id|>\n\n{text.strip()}<|eot_id|>" for role, text in TALK[1:])
        + "<|start_header_id|>assistant<|end_header_id|>\n\n",
    }
    for name, text in wanted.items():
        ours(CONFIG.replace("ROOT", str(zoo)) + f"chat_template: {name}\n", tmp_path / name)
        assert rendered(tmp_path / name, 1) == text


def test_case_28_what_most_models_have(zoo: Path, tmp_path: Path) -> None:
    mine, theirs = both("chat_template: auto\n", zoo, tmp_path)
    assert rendered(mine) == rendered(theirs) == "# Be brief.# Hi#  Hello # Bye"


def test_case_28_jinja(zoo: Path, tmp_path: Path) -> None:
    text = """chat_template: |
  {% for one in messages %}
  ({{ one['role'] }}) {{ one['content'] }}
  {% endfor %}
"""
    mine, theirs = both(text, zoo, tmp_path)
    assert rendered(mine) == rendered(theirs) == "".join(f"({role}) {text}\n" for role, text in TALK)


def test_a_template_in_the_settings_gives_way(zoo: Path, tmp_path: Path) -> None:
    """Older models have it in tokenizer_config.json; one place must not contradict the other."""
    import json
    import shutil

    for name in "abc":
        shutil.copytree(zoo / name, tmp_path / name)
        (tmp_path / name / "chat_template.jinja").unlink()
        path = tmp_path / name / "tokenizer_config.json"
        settings = json.loads(path.read_text()) | {"chat_template": HASHES if name != "a" else "{{ messages }}"}
        path.write_text(json.dumps(settings))
    ours(CONFIG.replace("ROOT", str(tmp_path)) + "chat_template: auto\n", tmp_path / "out")
    assert "chat_template" not in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert rendered(tmp_path / "out", 1, 2) == "# Hi"


@pytest.mark.parametrize("setting", ["chatmi", "short {", "a text without any braces in it"])
def test_what_is_no_template(zoo: Path, tmp_path: Path, setting: str) -> None:
    """Both refuse; ours at its line."""
    text = CONFIG.replace("ROOT", str(zoo)) + f"chat_template: '{setting}'\ntokenizer_source: base\n"
    with pytest.raises(BadInput, match=r"merge.yaml:5: chat_template: got .*, expected auto, alpaca, chatml") as error:
        planned(text, tmp_path)
    assert ("did you mean 'chatml'" in str(error.value)) == (setting == "chatmi")
    with pytest.raises(RuntimeError, match="Invalid chat template"):
        peer(text, tmp_path / "peer")
