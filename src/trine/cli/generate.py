"""trine generate: text from a model folder, streamed for one prompt, in batches for a file of them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from trine.cli.live import watching
from trine.cli.result import Shown
from trine.cli.unfinished import Unfinished, partial_path
from trine.errors import BadInput
from trine.manifest import write_file

if TYPE_CHECKING:
    from trine.completion import Completion, TextModel
    from trine.model.sampling import Sampling


def generate(
    model: Annotated[Path, Parameter(help="A model folder, or the run folder that holds one.")],
    /,
    *,
    prompt: Annotated[str | None, Parameter(help="The text to go on from. Default: standard input.")] = None,
    prompts: Annotated[
        Path | None,
        Parameter(help="Many prompts: a text per line, or .jsonl with `prompt` (or `messages`) in each line."),
    ] = None,
    out: Annotated[
        Path | None,
        Parameter(help="Write one JSON line per completion here, in the prompts' order. Stopped, it is gone on with."),
    ] = None,
    chat: Annotated[
        bool, Parameter(help="A prompt is a user's message; conversations go through the model's chat template.")
    ] = False,
    system: Annotated[str | None, Parameter(help="With --chat: the system message before each prompt.")] = None,
    max_new_tokens: Annotated[int, Parameter(validator=Number(gte=1))] = 200,
    temperature: Annotated[float, Parameter(help="0 takes the likeliest token.", validator=Number(gte=0))] = 0.8,
    top_k: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    top_p: Annotated[float, Parameter(validator=Number(gt=0, lte=1))] = 0.95,
    min_p: Annotated[float, Parameter(validator=Number(gte=0, lte=1))] = 0.0,
    repetition_penalty: Annotated[
        float, Parameter(help="Above 1: words come back less.", validator=Number(gt=0))
    ] = 1.0,
    stop: Annotated[tuple[str, ...], Parameter(help="End before this text; may be given several times.")] = (),
    samples: Annotated[int, Parameter(help="Completions of each prompt.", validator=Number(gte=1))] = 1,
    batch: Annotated[int, Parameter(help="Completions computed at once, at most.", validator=Number(gte=1))] = 16,
    prompt_cache: Annotated[
        Path | None,
        Parameter(help="Keep what all prompts begin with in this file, computed once; given again, it is read."),
    ] = None,
    seed: int = 0,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "auto"], Parameter(help="bfloat16 is the fastest on a CPU.")
    ] = "float32",
    device: str = "cpu",
) -> Shown:
    """Complete a text, or a file of them. The same options give the same text, in whatever batch.

    Example: trine generate runs/quickstart --prompt "The module provides" --max-new-tokens 80

    Example: trine generate runs/quickstart --prompts questions.jsonl --out answers.jsonl --samples 4
    """
    if prompt is not None and prompts is not None:
        raise BadInput("--prompt and --prompts exclude each other")
    if system is not None and not chat:
        raise BadInput("--system goes with --chat")
    for option, path in (("--out", out), ("--prompt-cache", prompt_cache)):
        if path is not None and not path.parent.is_dir():
            raise BadInput(f"{path.parent}: no such folder; {option} names a file in an existing one")
    given = read_prompts(prompts) if prompts else [{"prompt": sys.stdin.read() if prompt is None else prompt}]

    from trine.completion import TextModel
    from trine.model.sampling import Sampling

    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    folder = model / "model" if (model / "model" / "config.json").is_file() else model
    opened = TextModel(folder, dtype, device)
    tokens = [encode(opened, one, chat, system) for one in given]
    if prompt_cache is not None:
        opened.keep(prompt_cache, tokens)
    if prompts is None and samples == 1 and out is None:
        completion = _stream(opened, tokens[0], max_new_tokens, sampling, stop)
        text = completion if chat else given[0]["prompt"] + completion
        return Shown(given[0] | {"completion": completion}, "" if _same_terminal() else text)
    limits = {"max_new_tokens": max_new_tokens, "stop": stop, "samples": samples}
    done = _complete_all(opened, tokens, sampling, batch, out, limits)
    records = [given[one.prompt] | _record(one) for one in done]
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    if out is not None:
        write_file(out, lines)
        partial_path(out).unlink()
    total = sum(one.tokens for one in done)
    summary = {"completions": len(done), "new_tokens": total} | ({"out": str(out)} if out else {"results": records})
    return Shown(summary, lines if out is None else f"{len(done)} completions, {total:,} new tokens: {out}")


def _complete_all(
    opened: TextModel, tokens: list[list[int]], sampling: Sampling, batch: int, out: Path | None, limits: dict[str, Any]
) -> list[Completion]:
    """All completions in the prompts' order, progress shown while they come; with `out` kept beside it at once."""
    partial = None if out is None else Unfinished(out, opened.request(tokens, sampling, limits))
    done = partial.done() if partial else []
    had = {(one.prompt, one.sample) for one in done}
    with watching() as watch:
        for one in opened.complete_all(tokens, sampling=sampling, batch_rows=batch, without=had, **limits):
            done.append(one)
            if partial:
                partial.add(one)
            watch.progress(len(done), len(tokens) * limits["samples"], "generate: completions")
    return sorted(done, key=lambda one: (one.prompt, one.sample))


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """A mapping with `prompt` or `messages` per line. Raises BadInput naming the line."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        found.append(_parse(line, f"{path}:{number}") if path.suffix in (".jsonl", ".json") else {"prompt": line})
    if not found:
        raise BadInput(f"{path}: holds no prompt; expected a text per line, or JSON objects in a .jsonl file")
    return found


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise BadInput(f"{where}: not JSON ({error})") from None
    if not isinstance(value, dict) or ("prompt" in value) == ("messages" in value):
        raise BadInput(f'{where}: expected an object with either "prompt" or "messages", got {line[:60]}')
    if "prompt" in value and not isinstance(value["prompt"], str):
        raise BadInput(f"{where}: prompt is {value['prompt']!r:.60}; expected a text")
    messages = value.get("messages", [{"role": "", "content": ""}])
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise BadInput(f'{where}: messages is {messages!r:.60}; expected a list of {{"role": ..., "content": ...}}')
    return value


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and "content" in value


def encode(opened: TextModel, given: dict[str, Any], chat: bool, system: str | None) -> list[int]:
    """The tokens of one prompt. Raises BadInput for a conversation without --chat."""
    if "messages" in given and not chat:
        raise BadInput("the prompts hold conversations (messages); give --chat to use the model's chat template")
    if not chat:
        return opened.encode(given["prompt"])
    messages = given.get("messages") or [{"role": "user", "content": given["prompt"]}]
    return opened.encode_chat([*([{"role": "system", "content": system}] if system else []), *messages])


def _record(one: Completion) -> dict[str, Any]:
    values = asdict(one)
    return {"completion": values["text"]} | {key: values[key] for key in ("sample", "tokens", "finish")}


def _stream(opened: TextModel, tokens: list[int], max_new_tokens: int, sampling: Sampling, stop: Sequence[str]) -> str:
    """One completion, shown on a terminal while it comes."""
    started, pieces, shown = time.monotonic(), [], sys.stderr.isatty()
    for piece in opened.complete(tokens, max_new_tokens, sampling, stop):
        pieces.append(piece)
        if shown:
            sys.stderr.write(piece)
            sys.stderr.flush()
    if shown:
        sys.stderr.write(f"\n({time.monotonic() - started:.1f} s)\n")
    return "".join(pieces)


def _same_terminal() -> bool:
    """Whether what was streamed to stderr is already before the reader's eyes."""
    return sys.stderr.isatty() and sys.stdout.isatty()
