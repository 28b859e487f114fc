"""A long recipe made short: the same stages, phases, schedules and kinds of layers, in proportion, on a tiny model.

What stays is the order of things; every size shrinks. Each phase keeps its part of the steps, but at least a
twentieth of them, so that what is brief in the recipe is still run.
"""

from __future__ import annotations

from math import ceil, gcd
from typing import Any, TypeVar

from trine.data.config import TokenizerConfig
from trine.model.config import ModelConfig
from trine.optim.config import OptimConfig, ScheduleConfig
from trine.train.config import TrainConfig
from trine.train.timeline import Timeline

_LENGTH, _LONGEST, _BATCH = 64, 512, 4
"""Sequence length and batch at the beginning, and the longest sequences."""
_LEAST = 20
"""A phase gets at least one step in so many."""
_Schedule = TypeVar("_Schedule", bound=ScheduleConfig)


def small_tokenizer(tokenizer: TokenizerConfig) -> TokenizerConfig:
    """At most 2,048 entries, from at most 2 MB of text."""
    return tokenizer.model_copy(update={"vocab_size": min(tokenizer.vocab_size, 2048), "sample_bytes": 2_000_000})


def small_model(model: ModelConfig) -> ModelConfig:
    """The same kinds of layers in the same pattern, some hundred thousand parameters."""
    experts = min(model.num_experts, 16)
    values: dict[str, Any] = {
        "preset": None,
        "vocab_size": None,
        "hidden_size": 64,
        "intermediate_size": 128,
        "moe_intermediate_size": 32,
        "num_hidden_layers": min(model.num_hidden_layers, 6),
        "num_dense_layers": min(model.num_dense_layers, 2),
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_experts": experts,
        "num_experts_per_tok": min(model.num_experts_per_tok, max(1, experts // 2)),
        "sliding_window": _LENGTH // 2,
        "layer_types": None,
        "max_position_embeddings": _LONGEST,
    }
    return model.model_copy(update=values)


def small_run(train: TrainConfig, optim: OptimConfig, steps: int) -> tuple[TrainConfig, OptimConfig]:
    """The run in `steps` steps, and the optimizers with their schedule in proportion."""
    timeline = Timeline(train, optim.schedule)
    before = [sum(span.steps for span in timeline.spans if span.phase == n) for n in range(len(train.phases) + 1)]
    reached = max(n for n, count in enumerate(before) if count) + 1
    after = _in_proportion(before[:reached], steps)
    settings = train.settings()
    small = train.model_copy(
        update=_sizes(train, train, sum(after) / sum(before))
        | {"phases": (), "steps": steps, "checkpoint_every_steps": None, "rsdb_documents": _documents(train)}
        | {"eval": train.eval.model_copy(update={"every_steps": None, "max_tokens": 4096})}
    )
    for number, phase in enumerate(train.phases[: reached - 1], 1):
        done = sum(after[:number])
        so_far = small.model_copy(update={"steps": done})
        changed = _sizes(settings[number], train, after[number] / max(1, before[number]))
        changed["begin_tokens"] = Timeline(so_far, ScheduleConfig(decay_steps=0)).tokens(done)
        changed["rsdb_documents"] = _documents(settings[number])
        if phase.schedule is not None:
            old, new = _stretch(train, before, number), _stretch(train, after, number)
            changed["schedule"] = _scaled(phase.schedule, old, new)
        small = small.model_copy(update={"phases": (*small.phases, phase.model_copy(update=changed))})
    old, new = _stretch(train, before, 0), _stretch(train, after, 0)
    schedule = optim.model_copy(update={"schedule": _scaled(optim.schedule, old, new)})
    return TrainConfig.model_validate(small.model_dump()), schedule


def _in_proportion(counts: list[int], total: int) -> list[int]:
    """`total` split as `counts` are, each part but an empty one with at least its twentieth."""
    least = max(1, total // _LEAST)
    parts = [max(least, round(count * total / sum(counts))) if count else 0 for count in counts]
    parts[parts.index(max(parts))] += total - sum(parts)
    return parts


def _stretch(train: TrainConfig, steps: list[int], first: int) -> int:
    """Steps from phase `first` to the next that has a schedule of its own."""
    later = [n for n, phase in enumerate(train.phases, 1) if n > first and phase.schedule is not None]
    return sum(steps[first : later[0] if later else None])


def _scaled(schedule: _Schedule, old: int, new: int) -> _Schedule:
    warmup = min(new, ceil(schedule.warmup_steps * new / old))
    decay = schedule.decay_steps
    decay = None if decay is None else min(new - warmup, round(decay * new / old))
    return schedule.model_copy(update={"warmup_steps": warmup, "decay_steps": decay})


def _sizes(train: TrainConfig, begin: TrainConfig, share: float) -> dict[str, Any]:
    """Length and batch in proportion to those at the beginning of the run; `share`: of its steps that are left."""
    length = min(_LONGEST, max(16, _LENGTH * train.sequence_length // begin.sequence_length))
    batch = max(1, round(_BATCH * train.batch_sequences / begin.batch_sequences))
    ramp = train.batch_ramp
    if ramp is not None:
        first = max(1, batch * ramp.begin_sequences // train.batch_sequences)
        per_step = train.batch_sequences * train.sequence_length
        tokens = max(1, round(ramp.tokens / per_step * share * batch * length))
        ramp = ramp.model_copy(update={"begin_sequences": first, "tokens": tokens})
    return {
        "sequence_length": length,
        "batch_sequences": batch,
        "micro_batch_sequences": gcd(batch, _BATCH) if ramp is None else 1,
        "batch_ramp": ramp,
    }


def _documents(train: TrainConfig) -> int:
    return min(train.rsdb_documents, 64)
