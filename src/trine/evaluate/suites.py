"""Named lists of tasks, and the words by which a task is asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from trine.errors import BadInput

SUITES: dict[str, tuple[str, ...]] = {
    "sec-paper-general": (
        "bbh",
        "agieval_nous",
        "truthfulqa",
        "hellaswag",
        "arc_easy",
        "arc_challenge",
        "boolq",
        "openbookqa",
        "piqa",
        "winogrande",
    ),
    "sec-paper-domain": ("unseen-filings", "tat-qa", "convfinqa"),
    "trinity-base": (
        "mbpp_plus:shots=3",
        "minerva_math500:shots=4",
        "hellaswag:shots=5",
        "winogrande:shots=5",
        "mmlu:shots=5",
        "mmlu_pro:shots=5",
        "triviaqa:shots=5",
        "arc_challenge:shots=0",
        "bbh:shots=3",
        "gpqa_diamond_n_shot:shots=5",
        "gsm8k_cot:shots=8",
    ),
    "offline": (
        "general:bytes=100000",
        "tat-qa:limit=100",
        "finqa:limit=100",
        "convfinqa:limit=100",
        "needle:length=256,items=20",
    ),
}
"""`sec-paper-*`: the names of Llama-3-SEC's card (BIG-bench, AGIEval, GPT4All's set, TruthfulQA; perplexity of filings,
TAT-QA, ConvFinQA). `trinity-base`: table 2 of the Trinity Large report with its shots, and GSM8K of the model's card.
`offline`: what the folder of --data holds, without a package's data."""
_OPTIONS = re.compile(r"^(?P<name>.+?):(?P<options>[a-z_]+=.*)$", re.DOTALL)


@dataclass(frozen=True)
class Spec:
    """A task as asked for: a name or path, and options."""

    text: str
    """As it was written, or the name that the option `as` gives it: what the task is called in results."""
    name: str
    options: dict[str, str] = field(default_factory=dict)


def parse_spec(text: str) -> Spec:
    """`NAME` or `NAME:key=value,key=value`; `as=WORD` is what results call it. Raises BadInput."""
    found = _OPTIONS.match(text)
    if not found:
        return Spec(text, text)
    options: dict[str, str] = {}
    for pair in found["options"].split(","):
        key, sign, value = pair.partition("=")
        if not sign or not value or key in options:
            raise BadInput(f"task '{text}': '{pair}' is not key=value with a key of its own")
        options[key] = value
    called = options.pop("as", text)
    if called != text and not re.fullmatch(r"[A-Za-z0-9_-]+", called):
        raise BadInput(f"task '{text}': as={called}; expected letters, digits, - and _")
    return Spec(called, found["name"], options)


def expand(words: tuple[str, ...]) -> list[Spec]:
    """The tasks of suites and single ones, in their order. Raises BadInput for one that comes twice, or none."""
    specs = [parse_spec(one) for word in words for one in SUITES.get(word, (word,))]
    if not specs:
        raise BadInput("no task is named; give --tasks a suite, a task, or a folder of text")
    seen: set[str] = set()
    for one in specs:
        if one.text in seen:
            raise BadInput(f"task '{one.text}' is asked for twice")
        seen.add(one.text)
    return specs
