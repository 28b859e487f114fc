"""Records in, conversations out: which keys hold the messages, and whether a record is a usable conversation.

Known without being named: a list of messages (`role` and `content`, or ShareGPT's `from` and `value`), and pairs of
question and answer under the names of Alpaca, Dolly, GSM8K and other public sets.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from trine.data.config import ChatConfig
from trine.data.document import why_no_text

Message = dict[str, str]
"""`role` (system, user or assistant) and `content`."""


class _Pair(NamedTuple):
    question: str
    context: str | None
    answer: str


_LISTS = ("messages", "conversations", "conversation")
_PAIRS = (
    _Pair("instruction", "input", "output"),
    _Pair("instruction", "context", "response"),
    _Pair("question", None, "answer"),
    _Pair("prompt", None, "completion"),
    _Pair("prompt", None, "response"),
)
"""Alpaca, Dolly, GSM8K, and two ways of naming prompts."""
_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
_UNREAD = ("tool_calls", "function_call", "tools", "functions", "reasoning_content", "thinking")
"""Keys of a message, or beside the messages, that change what is said and that no part of this reads."""


class NotAConversation(ValueError):
    """A record cannot be used; the text says why, without the place."""


@dataclass(frozen=True)
class Shape:
    """The keys of a file's conversations."""

    conversation: str | None
    pair: _Pair | None
    system: str | None

    def messages(self, record: Any) -> list[Message]:
        """The conversation in `record`. Raises NotAConversation."""
        if not isinstance(record, Mapping):
            raise NotAConversation(f"is a JSON {type(record).__name__}, expected an object")
        messages = self._listed(record) if self.conversation is not None else self._paired(record)
        system = record.get(self.system) if self.system else None
        if system is not None and _text(system, f"'{self.system}'").strip():
            messages.insert(0, {"role": "system", "content": system})
        _check(messages)
        return messages

    def _listed(self, record: Mapping[str, Any]) -> list[Message]:
        assert self.conversation is not None
        given = _value(record, self.conversation)
        _refuse_unread(record, "the record")
        if not isinstance(given, list) or not given:
            raise NotAConversation(f"'{self.conversation}' is {_kind(given)}, expected a list of messages")
        return [_message(one, f"'{self.conversation}'[{i}]") for i, one in enumerate(given)]

    def _paired(self, record: Mapping[str, Any]) -> list[Message]:
        assert self.pair is not None
        question = _text(_value(record, self.pair.question), f"'{self.pair.question}'")
        answer = _text(_value(record, self.pair.answer), f"'{self.pair.answer}'")
        context = record.get(self.pair.context) if self.pair.context else None
        if context is not None and _text(context, f"'{self.pair.context}'").strip():
            question = f"{question}\n\n{context}"
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def shape_of(keys: Iterable[str], config: ChatConfig) -> Shape | None:
    """Where a file whose first record has `keys` holds its conversations, as far as `config` does not say; None where
    nothing known is there."""
    held = set(keys)
    system = config.system or ("system" if "system" in held else None)
    if config.conversation is not None:
        return Shape(config.conversation, None, system)
    if config.question is not None and config.answer is not None:
        return Shape(None, _Pair(config.question, config.context, config.answer), system)
    if found := next((name for name in _LISTS if name in held), None):
        return Shape(found, None, system)
    pair = next((one for one in _PAIRS if {one.question, one.answer} <= held), None)
    return None if pair is None else Shape(None, pair, system)


def as_json(messages: list[Message]) -> str:
    """A conversation as the corpus stores it."""
    return json.dumps(messages, ensure_ascii=False, separators=(",", ":"))


def from_json(text: str) -> list[Message]:
    """A conversation that `as_json` wrote."""
    return json.loads(text)


def as_text(messages: list[Message]) -> str:
    """What is said in a conversation, for the tokenizer to learn from."""
    return "\n\n".join(one["content"] for one in messages)


def _value(record: Mapping[str, Any], key: str) -> Any:
    if key not in record:
        raise NotAConversation(f"has no key '{key}' (keys: {', '.join(map(str, list(record)[:8])) or 'none'})")
    return record[key]


def _message(given: Any, where: str) -> Message:
    if not isinstance(given, Mapping):
        raise NotAConversation(f"{where} is {_kind(given)}, expected an object with role and content")
    role, content = ("role", "content") if "role" in given else ("from", "value")
    _refuse_unread(given, where)
    if given.get("weight") == 0:
        raise NotAConversation(f"{where}.weight is 0, and no message can be left out of training by it")
    said = _text(_value(given, role), f"{where}.{role}")
    if said not in _ROLES:
        raise NotAConversation(f"{where}.{role} is '{said[:40]}', expected one of {', '.join(_ROLES)}")
    return {"role": _ROLES[said], "content": _text(_value(given, content), f"{where}.{content}")}


def _refuse_unread(given: Mapping[str, Any], where: str) -> None:
    unread = [key for key in _UNREAD if given.get(key)]
    if unread:
        raise NotAConversation(f"{where} has {unread[0]}, which is not supported")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise NotAConversation(f"{where} is {_kind(value)}, expected text")
    if why := why_no_text(value):
        raise NotAConversation(f"{where} {why}")
    return value


def _kind(value: Any) -> str:
    if value is None or value == []:
        return "null" if value is None else "an empty list"
    return {list: "a list", dict: "an object", str: "text"}.get(type(value), type(value).__name__)


def _check(messages: list[Message]) -> None:
    for i, one in enumerate(messages):
        if one["role"] == "system" and i:
            raise NotAConversation(f"message {i} is a system message; expected it first")
        if not one["content"].strip():
            raise NotAConversation(f"message {i} ({one['role']}) is blank")
    if not any(one["role"] == "assistant" for one in messages):
        raise NotAConversation("has no answer (message of the assistant)")
    if messages[0]["role"] == "assistant" or (messages[0]["role"] == "system" and messages[1]["role"] == "assistant"):
        raise NotAConversation("begins with an answer; expected a message of the user before it")
