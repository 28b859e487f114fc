"""Conversations in, tokens and the ones among them to train on out, by the chat template of a tokenizer folder.

What is trained is exactly what a model must say itself: each answer with the token that ends it. Where the template
marks answers (`{% generation %}`), its marks count, and the special token right behind one. Otherwise an answer is
what rendering the conversation up to it adds to rendering what comes before it with the prompt for an answer.

A template may render an earlier turn otherwise once later ones come, as those do that drop what a model thought. Such
a conversation becomes one document per answer, each as the model will be asked for it, trained on that answer alone.
A conversation that a template does not take, or whose answers cannot be told, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trine.data.conversations import Message
from trine.errors import BadInput

_TAGGED = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PROBE = [{"role": "user", "content": "Question"}, {"role": "assistant", "content": "Answer"}]
Span = tuple[int, int]
"""Begin and end of an answer in characters."""


class Unrenderable(ValueError):
    """The template cannot be used for a conversation; the text says why, without the place."""


@dataclass(frozen=True)
class Rendered:
    """A conversation, or the part of one up to an answer."""

    tokens: np.ndarray
    """int64 [T]."""
    trained: np.ndarray
    """bool [T]."""


class ChatRenderer:
    """The tokenizer and the chat template of a folder."""

    def __init__(self, folder: Path, name: str | None = None) -> None:
        """Raises BadInput, about `name` (default: the folder), without a template, or with one that takes no plain
        question and answer."""
        from tokenizers import processors
        from transformers import AutoTokenizer

        self._peer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if not isinstance(self._peer.chat_template, str):
            raise BadInput(f"{folder}: has no chat template, or several; set tokenizer.chat_template to one")
        self._tokenizer = self._peer.backend_tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # the template writes what a post-processor would add, and offsets must count white space
        self._tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        added = self._tokenizer.get_added_tokens_decoder()
        self._added = {i: token.content for i, token in added.items()}
        self._ends = _any_of(self._added.values())
        self._special = _any_of(token.content for token in added.values() if token.special)
        self._tagged = bool(_TAGGED.search(self._peer.chat_template))
        (probe,) = self.encode([_PROBE])
        if isinstance(probe, Unrenderable):
            raise BadInput(f"{name or folder}: the chat template does not take a question and an answer: {probe}")
        self.end_of_answer = self._added[int(probe[0].tokens[probe[0].trained][-1])]
        """The token that ends an answer."""

    def encode(self, conversations: Sequence[list[Message]]) -> list[list[Rendered] | Unrenderable]:
        """The documents that each conversation becomes: one, or one per answer; or why it cannot be used."""
        found = [self._documents_or_why(one) for one in conversations]
        texts = [text for one in found if not isinstance(one, Unrenderable) for text, _ in one]
        encodings = iter(self._tokenizer.encode_batch(texts, add_special_tokens=False))
        return [
            one if isinstance(one, Unrenderable) else [_rendered(next(encodings), spans) for _, spans in one]
            for one in found
        ]

    def _documents_or_why(self, messages: list[Message]) -> list[tuple[str, list[Span]]] | Unrenderable:
        for i, one in enumerate(messages):
            if found := self._special.search(one["content"]):
                return Unrenderable(f"message {i} spells out the special token {found[0]}")
        try:
            return self._documents(messages)
        except Unrenderable as error:
            return error

    def _documents(self, messages: list[Message]) -> list[tuple[str, list[Span]]]:
        """Texts, and where the answers in each are that it is trained on."""
        answers = [self._answer(messages, i) for i, one in enumerate(messages) if one["role"] == "assistant"]
        whole = answers[-1][0] if messages[-1]["role"] == "assistant" else self._render(messages)[0]
        if all(whole.startswith(text[: spans[-1][1]]) for text, spans in answers):
            return [(whole, [span for _, spans in answers for span in spans])]
        return answers

    def _answer(self, messages: list[Message], place: int) -> tuple[str, list[Span]]:
        """The conversation up to the answer at `place` as text, and where that answer is in it."""
        text, marks = self._render(messages[: place + 1])
        asked, _ = self._render(messages[:place], prompt=True)
        begin = len(asked)
        if not text.startswith(asked):
            raise Unrenderable(f"the template begins message {place} otherwise than its prompt for an answer")
        if not self._tagged:
            return text, [(begin, self._end(text, begin, messages[place]["content"].strip(), place))]
        spans = [(max(first, begin), end) for first, end in marks if end > max(first, begin)]
        if not spans:
            raise Unrenderable(f"the template marks nothing of message {place} as an answer")
        first, end = spans[-1]
        if not text.endswith(tuple(self._added.values()), 0, end):
            behind = self._ends.match(text, end)
            if behind is None:
                raise Unrenderable(f"the template ends message {place} with no token of its own")
            end = behind.end()
        return text, [*spans[:-1], (first, end)]

    def _end(self, text: str, begin: int, content: str, place: int) -> int:
        """Where the answer that begins at `begin` and says `content` ends, with its end token: the last place where a
        token of the template follows what is said, which short answers are also found before."""
        found = text.rfind(content, begin) if content else -1
        while found >= 0:
            behind = found + len(content)
            end = self._ends.match(text, behind + len(text[behind:]) - len(text[behind:].lstrip()))
            if end is not None:
                return end.end()
            found = text.rfind(content, begin, behind - 1)
        last = [*self._ends.finditer(text, begin)]  # the template rewrites what is said
        if not last:
            raise Unrenderable(f"the template ends message {place} with no token of its own")
        return last[-1].end()

    def _render(self, messages: list[Message], prompt: bool = False) -> tuple[str, list[Span]]:
        """Text, and what the template marks as answers."""
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        render: Any = render_jinja_template
        try:
            texts, marks = render(
                [messages],
                chat_template=self._peer.chat_template,
                return_assistant_tokens_mask=self._tagged,
                add_generation_prompt=prompt,
                **self._peer.special_tokens_map,
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise Unrenderable(f"the template refuses it ({str(error).strip()[:200]})") from None
        return texts[0], marks[0] if marks else []


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches any of `tokens`, the longest first; nothing where there is none."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")


def _rendered(encoding: Any, spans: list[Span]) -> Rendered:
    """Tokens that overlap a span are trained."""
    begins, ends = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
    trained = np.zeros(len(begins), dtype=bool)
    for begin, end in spans:
        trained |= (begins < end) & (ends > begin)
    return Rendered(np.array(encoding.ids, dtype=np.int64), trained)
