"""The output's chat template: that of most models, a known format by name, or one given as Jinja text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trine.errors import nearest
from trine.weights.index import read_mapping

FILE, SETTINGS, PROCESSORS = "chat_template.jinja", "tokenizer_config.json", "chat_template.json"
_SHORTEST = 20

_CHATML = (
    "{%- for one in messages %}"
    "{{- '<|im_start|>' ~ one.role ~ '\\n' ~ one.content ~ '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
_LLAMA3 = (
    "{{- bos_token }}"
    "{%- for one in messages %}"
    "{{- '<|start_header_id|>' ~ one.role ~ '<|end_header_id|>\\n\\n' ~ (one.content | trim) ~ '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
_EXAONE = (
    "{%- if messages[0].role != 'system' %}{{- '[|system|][|endofturn|]\\n' }}{%- endif %}"
    "{%- for one in messages %}"
    "{{- '[|' ~ one.role ~ '|]' ~ one.content ~ ('' if one.role == 'user' else '[|endofturn|]') ~ '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '[|assistant|]' }}{%- endif %}"
)
_ALPACA = (
    "{%- set titles = {'user': '### Instruction:\\n', 'user_context': '### Input:\\n', "
    "'assistant': '### Response:\\n'} %}"
    "{%- for one in messages %}"
    "{{- '' if loop.first else '\\n\\n' }}{{- titles.get(one.role, '') ~ (one.content | trim) }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '\\n\\n### Response:\\n' }}{%- endif %}"
)
_MISTRAL = (
    "{{- bos_token }}"
    "{%- set turns = namespace(first='', count=0) %}"
    "{%- for one in messages %}"
    "{%- if loop.first and one.role == 'system' %}"
    "{%- set turns.first = one.content ~ '\\n\\n' %}"
    "{%- else %}"
    "{%- if one.role != ['user', 'assistant'][turns.count % 2] %}"
    "{{- raise_exception('a conversation is user, assistant, user, ... after at most one system message') }}"
    "{%- endif %}"
    "{%- if one.role == 'user' %}"
    "{{- ' [INST] ' ~ (turns.first if turns.count == 0 else '') ~ one.content ~ ' [/INST]' }}"
    "{%- else %}{{- ' ' ~ one.content ~ eos_token }}{%- endif %}"
    "{%- set turns.count = turns.count + 1 %}"
    "{%- endif %}"
    "{%- endfor %}"
)
BUILTIN = {"alpaca": _ALPACA, "chatml": _CHATML, "exaone": _EXAONE, "llama3": _LLAMA3, "mistral": _MISTRAL}
"""Formats by name: Stanford Alpaca's headings, OpenAI's ChatML, EXAONE 3's, Llama 3's and Mistral 7B Instruct's."""


def wrong_template(setting: str) -> str | None:
    """What is wrong with a `chat_template`, or None."""
    if setting == "auto" or setting in BUILTIN or ("{" in setting and len(setting) >= _SHORTEST):
        return None
    known = ["auto", *BUILTIN]
    return f"got '{setting}', expected {', '.join(known)}, or a Jinja template{nearest(setting, known)}"


def chosen_template(setting: str, folders: Sequence[Path]) -> str | None:
    """The template that a `chat_template` means; None when it is `auto` and no model in `folders` has one."""
    if setting != "auto":
        return BUILTIN.get(setting, setting)
    found = Counter(one.strip() for folder in folders if (one := _template_of(folder)))
    return found.most_common(1)[0][0] if found else None


def _template_of(folder: Path) -> str | None:
    if (folder / FILE).is_file():
        return (folder / FILE).read_text(encoding="utf-8")
    template = _settings(folder).get("chat_template")
    if isinstance(template, list):
        template = next((one.get("template") for one in template if one.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def _settings(folder: Path) -> dict[str, Any]:
    return read_mapping(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}


def template_files(template: str, folder: Path) -> dict[str, str]:
    """The small files of a tokenizer in `folder` that change with its template."""
    settings = {key: value for key, value in _settings(folder).items() if key != "chat_template"}
    found = {FILE: template}
    return found | ({SETTINGS: json.dumps(settings, indent=2, ensure_ascii=False) + "\n"} if settings else {})
