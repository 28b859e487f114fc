"""Is a text in the wanted language, and is it text at all? Measures that hold for filings, where tables fail web rules.

The language is judged by function words, which make up a quarter to a half of prose: it needs no model and tells the
languages listed here from each other. A text with few function words of any of them is in another language if it has
letters beyond ASCII, and a list of names if not. Nothing is said of a text with fewer than `_ENOUGH` words in letters.
Lines of tables (beginning with `|`) are left out of every measure. The limits' defaults stand well outside what real
filings of 1993 to 2026 have, and inside what uuencoded attachments, mojibake and text in other languages have.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from trine.data.config import QualityConfig
from trine.data.document import Document, Dropped
from trine.data.words import words_of

_ENOUGH = 50
"""Words in letters, outside tables, below which nothing is judged."""
_LINE = 20
"""Characters of the shortest line that is compared with others."""
_FUNCTION_WORDS = {
    "en": "the of and to in for is by as with that on or at be from are not its this which our we was has have any",
    "de": "der die das und in zu den von für mit auf ist im des dem nicht ein eine als auch es an werden aus hat",
    "fr": "de la le et les des en du à une un pour que dans par au sur est qui il ne pas ce sont avec aux ou",
    "es": "de la que el en y a los del se las por un para con no una su al es lo como más o sus son",
    "it": "di e il la che in un a per è del una della sono con non si le dei da nel alla i al gli delle",
    "nl": "de van en het een in is dat op te voor met zijn die aan niet er om ook als door bij of naar worden",
    "pt": "de a o que e do da em um para com não uma os no se na por mais as dos como mas ao das à",
}
_SYMBOLS = np.zeros(256, bool)
_SYMBOLS[np.frombuffer(b"@#&*+<>^[]\\{}~`!?;", np.uint8)] = True
"""Characters that prose and financial figures have few of; encoded attachments are a fifth of them."""
_BITS = 16
_LAST = np.uint64((1 << _BITS) - 1)
_CLEAR = 0.15
"""Share of function words of a language that its prose has, and text in another has not."""
_FOREIGN = 0.02
"""Share of letters beyond ASCII that tells text in an unknown language from a list of names."""
_LETTER = np.array([chr(b).isalpha() if b < 128 else True for b in range(256)])


def function_words(language: str) -> NDArray[np.bool_]:
    """A table that is true at the last bits of the hashes of a language's most frequent function words; a word that is
    none is taken for one with a chance of 0.0004."""
    table = np.zeros(1 << _BITS, bool)
    table[words_of(_FUNCTION_WORDS[language]).hashes & _LAST] = True
    return table


class Quality:
    """The step that drops what is not text of the wanted language."""

    def __init__(self, config: QualityConfig) -> None:
        self._config = config
        self._judged = 0
        self._known = {name: function_words(name) for name in _FUNCTION_WORDS} if config.language else {}

    def __call__(self, document: Document) -> Document | Dropped:
        data = np.frombuffer(document.text.encode(), np.uint8)
        words = document.words
        chosen = _LETTER[data[words.begins]] & ~_in_table(data, words.begins)
        if np.count_nonzero(chosen) < _ENOUGH:
            return document
        self._judged += 1
        config = self._config
        mean = float((words.ends - words.begins)[chosen].mean())
        if not config.min_word_bytes <= mean <= config.max_word_bytes:
            return Dropped("words too short or too long to be text", f"{mean:.1f} bytes on average")
        symbols = np.count_nonzero(_SYMBOLS[data]) / max(1, np.count_nonzero(data > 32))
        if symbols > config.max_symbols:
            return Dropped("too many symbols to be text", f"{symbols:.1%}")
        undecoded = document.text.count("\ufffd") / len(document.text)
        if undecoded > config.max_undecoded:
            return Dropped("too many undecoded characters", f"{undecoded:.1%}")
        repeated = _repeated(document.text)
        if repeated > config.max_repeated_lines:
            return Dropped("mostly repeated lines", f"{repeated:.1%}")
        return self._language(document, words.hashes[chosen])

    def figures(self) -> dict[str, int]:
        """Documents long enough to be judged, for the ledger."""
        return {"judged": self._judged}

    def _language(self, document: Document, hashes: NDArray[np.uint64]) -> Document | Dropped:
        wanted = self._config.language
        if wanted is None:
            return document
        last = hashes & _LAST
        share = float(self._known[wanted][last].mean())
        if share >= max(_CLEAR, self._config.min_function_words):
            return document
        shares = {name: float(known[last].mean()) for name, known in self._known.items()}
        best = max(shares, key=lambda name: shares[name])
        foreign = best != wanted and shares[best] >= _CLEAR
        if not foreign and (share >= self._config.min_function_words or _beyond_ascii(document.text) < _FOREIGN):
            return document
        what = f"function words: {wanted} {shares[wanted]:.1%}, {best} {shares[best]:.1%}"
        return Dropped(f"not in the language {wanted}", what)


def _beyond_ascii(text: str) -> float:
    """Share of the letters that are beyond ASCII."""
    letters = sum(map(str.isalpha, text))
    return (letters - len(re.findall("[A-Za-z]", text))) / letters


def _in_table(data: NDArray[np.uint8], places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of `places` lie in a line that begins with `|`."""
    begins = np.concatenate([[0], np.flatnonzero(data == ord("\n")) + 1])
    table = np.append(data, 0)[begins] == ord("|")
    if not table.any():
        return np.zeros(len(places), bool)
    return table[np.searchsorted(begins, places, side="right") - 1]


def _repeated(text: str) -> float:
    """Share of the characters of lines, tables left out, that are in lines said before."""
    seen, total, again = set[str](), 0, 0
    for line in _lines(text):
        total += len(line)
        if line in seen:
            again += len(line)
        seen.add(line)
    return again / total if total else 0.0


def _lines(text: str) -> Iterator[str]:
    for line in text.split("\n"):
        stripped = line.strip()
        if len(stripped) >= _LINE and stripped[0] != "|":
            yield stripped
