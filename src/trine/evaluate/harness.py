"""Tasks of lm-evaluation-harness, asked of any model that trine opens.

`HarnessLM` is a model as the harness knows one: what it says equals what the harness's own transformers model says of
the same folder. Data that is not on disk is not fetched unless asked for.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lm_eval.evaluator
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.tasks import TaskManager

from trine.errors import BadInput, nearest
from trine.evaluate.asking import Prompt, Scorer
from trine.evaluate.items import Item, stage
from trine.evaluate.reading import Row
from trine.evaluate.scorer import ModelScorer, windows_of
from trine.model.sampling import Sampling
from trine.progress import Progress, silent

_MOST_NEW_TOKENS = 256
_FEWSHOT_SEED = 1234
"""Both the harness's defaults."""
_MAIN = ("bits_per_byte", "exact_match", "acc_norm", "pass_at_1", "acc", "f1")
"""The first of these that a task has is its main metric, unless another is asked for."""
_FILTERS = ("flexible-extract", "none")


class HarnessLM(TemplateLM):
    """A model's answers in the harness's terms."""

    def __init__(self, scorer: ModelScorer, progress: Progress = silent, name: str = "lm-eval") -> None:
        super().__init__()
        self.scorer, self.progress, self.name = scorer, progress, name

    @property
    def eot_token_id(self) -> int:
        eos = self.scorer.opened.eos
        return self.scorer.prefix if eos is None else eos

    @property
    def prefix_token_id(self) -> int:
        return self.scorer.prefix

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        if add_special_tokens is None:
            return self.scorer.encode(string)
        return self.scorer.tokenizer.encode(string, add_special_tokens=add_special_tokens).ids

    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        rows = [Row([*context, *continuation], len(continuation)) for _, context, continuation in requests]
        scored = self.scorer.score(rows, self.progress, f"{self.name}: likelihoods")
        return [(one.total, one.greedy) for one in scored]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """A text's tokens, with what the tokenizer puts before it, after the token that begins texts."""
        texts = [self.tok_encode(one.args[0]) for one in requests]
        windows = [windows_of(one, self.scorer.prefix, self.scorer.longest) for one in texts]
        flat = [row for rows in windows for row in rows]
        scored = iter(self.scorer.score(flat, self.progress, f"{self.name}: windows of text"))
        return [math.fsum(next(scored).total for _ in rows) for rows in windows]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        prompts = [self._prompt(*one.args) for one in requests]
        return self.scorer.complete(prompts, self.progress, f"{self.name}: texts")

    def _prompt(self, text: str, given: dict[str, Any]) -> Prompt:
        options: Any = normalize_gen_kwargs(given, _MOST_NEW_TOKENS)
        end = self.scorer.tokenizer.decode([self.eot_token_id], skip_special_tokens=False)
        stop = tuple(handle_stop_sequences(options.get("until"), eos=end))
        sampling = None
        if options.get("do_sample"):
            sampling = Sampling(options["temperature"], options.get("top_k"), options.get("top_p") or 1.0)
        return Prompt(text, options["max_gen_toks"], stop, sampling)


class HarnessTask:
    """A task, group or tag of the harness; a group's items are pooled, each under its task's name."""

    def __init__(
        self,
        name: str,
        loaded: Any,
        *,
        metric: str | None = None,
        wanted_filter: str | None = None,
        limit: int | None = None,
        unsafe_code: bool = False,
    ) -> None:
        self.name, self.loaded, self.limit, self.unsafe_code = name, loaded, limit, unsafe_code
        self.wanted_filter = wanted_filter
        self.tasks: dict[str, Any] = loaded["tasks"]
        unsafe = [one for one, task in self.tasks.items() if getattr(task, "UNSAFE_CODE", False)]
        if unsafe and not unsafe_code:
            raise BadInput(
                f"task '{name}': {unsafe[0]} runs code that the model writes; --confirm-run-unsafe-code allows it"
            )
        known = [set(task.higher_is_better()) for task in self.tasks.values()]
        shared = set.intersection(*known)
        if metric is not None and metric not in shared:
            raise BadInput(
                f"task '{name}': no metric '{metric}' (it has {', '.join(sorted(shared))}){nearest(metric, shared)}"
            )
        first = next(iter(self.tasks.values())).higher_is_better()
        self.metric = metric or next((one for one in (*_MAIN, *first) if one in shared), next(iter(first)))
        self.higher_is_better = first.get(self.metric, True)

    def sizes(self) -> dict[str, int]:
        items = requests = 0
        for task in self.tasks.values():
            documents = list(task.doc_iterator(limit=self.limit))
            items += len(documents)
            several = task.OUTPUT_TYPE == "multiple_choice"
            requests += sum(len(task.doc_to_choice(one)) if several else 1 for _, one in documents)
        return {"items": items, "requests": requests}

    def about(self) -> dict[str, Any]:
        shots = {name: task.get_config("num_fewshot") for name, task in self.tasks.items()}
        return {
            "kind": "lm-eval",
            "lm_eval": version("lm_eval"),
            "shots": shots,
            "versions": {name: str(task.VERSION) for name, task in self.tasks.items()},
            "metric": self.metric,
            "filter": self.wanted_filter,
            "limit": self.limit,
        }

    def run(self, scorer: Scorer, progress: Progress = silent) -> list[Item]:
        if not isinstance(scorer, ModelScorer):
            raise TypeError("the harness asks for tokens, so it takes a model")
        found: Any = lm_eval.evaluator.evaluate(
            HarnessLM(scorer, progress, stage(self.name)),
            self.loaded,
            limit=self.limit,
            bootstrap_iters=0,
            log_samples=True,
            confirm_run_unsafe_code=self.unsafe_code,
        )
        items = []
        for name, samples in found["samples"].items():
            kept = self._filter(name, [one["filter"] for one in samples])
            items += [self._item(name, one) for one in samples if one["filter"] == kept]
        return items

    def _filter(self, name: str, given: Sequence[str]) -> str:
        known = list(dict.fromkeys(given))
        if self.wanted_filter is None:
            return next((one for one in _FILTERS if one in known), known[0])
        if self.wanted_filter not in known:
            raise BadInput(f"task '{name}': no filter '{self.wanted_filter}' (it has {', '.join(known)})")
        return self.wanted_filter

    def _item(self, name: str, sample: dict[str, Any]) -> Item:
        metrics = {metric: sample[metric] for metric in sample["metrics"]}
        score, weight = _number(self.metric, metrics.get(self.metric))
        loglik, size = _likelihood(self.tasks[name].OUTPUT_TYPE, sample, metrics)
        numbers = {key: _number(key, value)[0] for key, value in metrics.items() if key != self.metric}
        return Item(
            f"{name}/{sample['doc_id']}",
            score,
            weight,
            group=name if len(self.tasks) > 1 else "",
            prompt=sample["prompt_hash"][:16],
            prediction=_prediction(self.tasks[name].OUTPUT_TYPE, sample),
            target=str(sample["target"]),
            bytes=size,
            loglik=loglik,
            more={key: value for key, value in numbers.items() if not math.isnan(value)},
        )


def _number(metric: str, value: Any) -> tuple[float, float]:
    """An item's score and weight; NaN for a metric that is not the mean of items' values."""
    if isinstance(value, bool | int | float) or hasattr(value, "__float__"):
        return float(value), 1.0
    if metric == "bits_per_byte" and isinstance(value, list | tuple) and value[1]:
        return -value[0] / math.log(2) / value[1], float(value[1])
    return math.nan, 1.0


def _likelihood(kind: str, sample: dict[str, Any], metrics: dict[str, Any]) -> tuple[float | None, int | None]:
    """Log-likelihood of the text or of the right answer, and its bytes, as far as the harness says them."""
    if kind == "loglikelihood_rolling":
        pair = metrics.get("bits_per_byte") or metrics.get("byte_perplexity")
        return (float(pair[0]), int(pair[1])) if pair else (None, None)
    given = sample["filtered_resps"]
    if kind == "loglikelihood":
        return float(given[0][0]), len(str(sample["arguments"][0][1]).encode())
    if kind == "multiple_choice" and isinstance(sample["target"], int) and 0 <= sample["target"] < len(given):
        place = sample["target"]
        return float(given[place][0]), len(str(sample["arguments"][place][1]).encode())
    return None, None


def _prediction(kind: str, sample: dict[str, Any]) -> str | None:
    given = sample["filtered_resps"]
    if kind == "multiple_choice":
        return str(max(range(len(given)), key=lambda place: given[place][0]))
    return str(given[0]) if kind == "generate_until" else None


def offline() -> None:
    """Keep the libraries that fetch data off the network, loaded already or not."""
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        os.environ[name] = "1"
    for module, name in (
        ("huggingface_hub.constants", "HF_HUB_OFFLINE"),
        ("datasets.config", "HF_HUB_OFFLINE"),
        ("datasets.config", "HF_DATASETS_OFFLINE"),
    ):
        if module in sys.modules:
            setattr(sys.modules[module], name, True)


class Harness:
    """The harness's tasks, and those of YAML in further folders."""

    def __init__(self, include: Sequence[Path] = (), network: bool = False) -> None:
        if not network:
            offline()
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self.manager = TaskManager(include_path=[str(one.resolve()) for one in include] or None)

    def knows(self, name: str) -> bool:
        return name in self.manager.task_index

    def load(self, name: str, shots: int | None = None) -> Any:
        """A task, group or tag with its data. Raises BadInput when data is not on disk, or a file is wrong."""
        try:
            loaded = self.manager.load([name])
        except Exception as error:  # the harness and its data libraries raise whatever their parts raise
            text = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BadInput(
                f"task '{name}': lm-evaluation-harness cannot load it or its data is not on disk ({text})"
            ) from None
        for task in loaded["tasks"].values():
            default = task.get_config("num_fewshot")
            if shots is not None and default != 0:
                task.set_config(key="num_fewshot", value=shots)
            elif default is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=_FEWSHOT_SEED)
        return loaded
