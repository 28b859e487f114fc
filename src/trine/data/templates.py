"""Chat templates to write into a tokenizer folder: chatml, plain, or a Jinja file."""

from __future__ import annotations

from pathlib import Path

from trine.errors import BadInput

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
CHATML = (
    "{{- bos_token or '' }}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
PLAIN = (
    "{{- bos_token or '' }}"
    "{%- for message in messages %}"
    "{{- '### ' + message['role'] + '\\n' + message['content'] }}"
    "{{- eos_token if message['role'] == 'assistant' else '' }}"
    "{{- '\\n\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '### assistant\\n' }}{%- endif %}"
)
"""Needs no token but the one that ends a text."""
BUILTIN = {"chatml": CHATML, "plain": PLAIN}


def named_template(name: str) -> str:
    """The template that `tokenizer.chat_template` names. Raises BadInput for one that cannot be read."""
    if name in BUILTIN:
        return BUILTIN[name]
    path = Path(name).expanduser()
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        known = " or ".join(BUILTIN)
        raise BadInput(
            f"{path}: tokenizer.chat_template cannot be read ({reason}); expected {known}, or a file"
        ) from None
