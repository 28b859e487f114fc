"""Text in, text out: a model folder's tokenizer and chat template around `model.decode.generate`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from trine.data.tokenizer import open_tokenizer, vocabulary_size
from trine.errors import BadInput
from trine.model.decode import generate, keep_prompt
from trine.model.hf import load_model
from trine.model.hf_config import end_tokens
from trine.model.prompt_cache import KeptPrompt, fingerprint
from trine.model.sampling import Sampling

Messages = Sequence[dict[str, str]]
"""A conversation: mappings with `role` and `content`."""
_CONTEXT_TOKENS = 6
"""Tokens kept before the text that is decoded: what a token looks like may depend on its left neighbours."""


@dataclass
class Completion:
    """What one prompt was answered with; `prompt` and `sample` count from 0."""

    prompt: int
    sample: int
    text: str = ""
    stream: int = 0
    """Number of the text, for its draws."""
    tokens: int = 0
    finish: str = "length"
    """length: the limit was reached; end: a token that ends the text; stop: one of the stop strings."""


class TextStream:
    """Tokens in, text out in pieces of whole characters, up to the first of the stop strings.

    A token is decoded together with a few before it, so that tokenizers which write a space at the beginning of a word
    keep it; text that may begin a stop string is held back.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(one for one in stop if one)
        self._tokens = list(prompt[-_CONTEXT_TOKENS:])
        self._shown = self._decode()
        self._held = ""
        self.stopped = False

    def _decode(self) -> str:
        return self._tokenizer.decode(self._tokens)

    def push(self, token: int) -> str:
        """The text that is certain after `token`; empty once `stopped`."""
        self._tokens.append(token)
        text = self._decode()
        if text.endswith("\ufffd") or len(text) < len(self._shown):
            return ""
        self._held += text[len(self._shown) :]
        self._tokens = self._tokens[-_CONTEXT_TOKENS:]
        self._shown = self._decode()
        return self._release()

    def _release(self) -> str:
        places = [place for one in self._stop if (place := self._held.find(one)) >= 0]
        if places:
            self.stopped = True
            text, self._held = self._held[: min(places)], ""
            return text
        longest = max((len(one) for one in self._stop), default=1) - 1
        keep = next((n for n in range(min(longest, len(self._held)), 0, -1) if self._may_begin(self._held[-n:])), 0)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return text

    def _may_begin(self, tail: str) -> bool:
        return any(one.startswith(tail) for one in self._stop)

    def close(self) -> str:
        """What was held back, when no more tokens come."""
        rest = self._decode()[len(self._shown) :]
        text, self._held, self._shown = self._held + rest, "", self._shown + rest
        return "" if self.stopped else text


class TextModel:
    """A Hugging Face folder that completes text."""

    def __init__(self, folder: Path, dtype: str = "float32", device: str = "cpu") -> None:
        """Raises BadInput when model or tokenizer cannot be read."""
        self.folder = folder
        self.opened = open_tokenizer(folder, exact_bytes=False)
        self.model = load_model(folder, dtype, device)
        ends = end_tokens(folder) | ({self.opened.eos} if self.opened.eos is not None else set())
        self.stop = frozenset(ends)
        self.kept: KeptPrompt | None = None

    def encode(self, prompt: str) -> list[int]:
        """The tokens of a text to go on from, with the token that begins a text. Raises BadInput for none."""
        ids = self.opened.tokenizer.encode(prompt).ids
        if not ids:
            raise BadInput("the prompt is empty, and the tokenizer has no token that begins a text")
        return ids

    def encode_chat(self, messages: Messages) -> list[int]:
        """The tokens of a conversation in the chat template, up to where the answer begins. Raises BadInput."""
        return chat_tokens(self.folder, messages)

    def keep(self, path: Path, prompts: Sequence[Sequence[int]]) -> None:
        """Take what all prompts begin with from the prompt cache `path`, written now if it is new. Raises BadInput."""
        self.kept = keep_prompt(path, self.model, prompts)

    def request(self, prompts: Sequence[Sequence[int]], sampling: Sampling, limits: dict[str, Any]) -> dict[str, Any]:
        """All that decides the texts of `complete_all`, as JSON takes it."""
        return {"model": fingerprint(self.model), "prompts": prompts, "sampling": asdict(sampling)} | limits

    def complete(
        self, prompt: Sequence[int], max_new_tokens: int, sampling: Sampling, stop: Sequence[str] = ()
    ) -> Iterator[str]:
        """Yield the continuation of a prompt in pieces, until the text ends or the limit."""
        for _, piece in self._pieces([prompt], [Completion(0, 0)], max_new_tokens, sampling, stop):
            yield piece

    def complete_all(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        sampling: Sampling,
        *,
        stop: Sequence[str] = (),
        samples: int = 1,
        batch_rows: int = 16,
        without: Collection[tuple[int, int]] = (),
    ) -> Iterator[Completion]:
        """Yield `samples` continuations of each prompt as their batches end; prompts alike in length go together.

        `without` names those, by prompt and sample, that are not wanted.
        """
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        pairs = [(i, k) for i in order for k in range(samples) if (i, k) not in without]
        wanted = [Completion(i, k, stream=i * samples + k) for i, k in pairs]
        for begin in range(0, len(wanted), batch_rows):
            rows = wanted[begin : begin + batch_rows]
            pieces = self._pieces([prompts[row.prompt] for row in rows], rows, max_new_tokens, sampling, stop)
            for row, piece in pieces:
                row.text += piece
            yield from rows

    def _pieces(
        self,
        prompts: Sequence[Sequence[int]],
        rows: list[Completion],
        max_new_tokens: int,
        sampling: Sampling,
        stop: Sequence[str],
    ) -> Iterator[tuple[Completion, str]]:
        """Generate, fill in all of `rows` but their text, and yield that in pieces."""
        tokenizer = self.opened.tokenizer
        texts = [TextStream(tokenizer, prompt, stop) for prompt in prompts]
        ended: set[int] = set()
        for fresh in generate(
            self.model,
            prompts,
            max_new_tokens,
            sampling,
            stop=self.stop,
            choices=vocabulary_size(tokenizer),
            streams=[row.stream for row in rows],
            ended=ended,
            kept=self.kept,
        ):
            for i, token in fresh.items():
                rows[i].tokens += 1
                if piece := texts[i].push(token):
                    yield rows[i], piece
                if texts[i].stopped:
                    ended.add(i)
        for row, text in zip(rows, texts, strict=True):
            row.finish = "stop" if text.stopped else "length" if row.tokens == max_new_tokens else "end"
            if piece := text.close():
                yield row, piece


def chat_tokens(folder: Path, messages: Messages) -> list[int]:
    """A conversation as transformers' tokenizer of `folder` encodes it, in the template's sandbox. Raises BadInput."""
    import jinja2
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise BadInput(f"{folder}: has no chat template (chat_template.jinja, or a key of tokenizer_config.json)")
    try:
        return tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise BadInput(f"{folder}: its chat template does not take this conversation ({error})") from None
