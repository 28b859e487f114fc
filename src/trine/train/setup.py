"""A run before its first step: the configs, resolved against the token folder and the machine."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from trine.data.shards import TokenShards
from trine.errors import BadInput, nearest
from trine.evaluate.choices import Question, passages, questions
from trine.manifest import MANIFEST, digest_of, read_manifest, sha256_file
from trine.model.config import ModelConfig, padded_vocabulary
from trine.model.shape import build, read_shape
from trine.native.build import kernels
from trine.optim.config import OptimConfig
from trine.train.config import TrainConfig
from trine.train.freeze import Trained, resolve
from trine.train.lora import resolve_targets
from trine.train.stream import check_mix
from trine.train.timeline import Timeline


@dataclass(frozen=True)
class Plan:
    """What a run will do."""

    model: ModelConfig
    """With `vocab_size` filled in; not used with `start`."""
    start: Path | None
    """Folder of the model the run starts from."""
    optim: OptimConfig
    train: TrainConfig
    only: Trained | None
    """What is trained; None: everything."""
    lora: tuple[str, ...] | None
    """Linear layers that an adapter is trained for."""
    timeline: Timeline
    tokens: Path
    shards: TokenShards
    device: torch.device
    eval_sets: tuple[str, ...]
    questions: dict[str, list[Question]]
    """Asked at each evaluation, by set."""
    eval_every: int
    save_every: int
    fingerprint: str
    """Digest of the configs and of the token folder's manifest."""
    environment: dict[str, str]

    @property
    def epoch_tokens(self) -> int:
        return self.shards.sets["train"].tokens

    @property
    def on_answers(self) -> bool:
        """Whether some training tokens are no targets: those of conversations that are no answers."""
        return self.shards.sets["train"].trained is not None

    @property
    def answers_only(self) -> dict[str, list[str]]:
        """For a record with bits per byte: the sets of which answers alone are scored, where there is one."""
        names = [name for name in self.eval_sets if self.shards.sets[name].trained is not None]
        return {"answers_only": names} if names else {}


def prepare(model: ModelConfig, optim: OptimConfig, train: TrainConfig, tokens: Path) -> Plan:
    """Resolve and check everything that can be known before a step. Raises BadInput."""
    read_manifest(tokens, "tokens")
    shards = TokenShards(tokens)
    model = resolve_vocabulary(model, shards.vocab_size)
    if train.lora is not None:  # an adapter has no place for the experts' selection bias
        train = train.model_copy(update={"balance": train.balance.model_copy(update={"update": "none"})})
    timeline = Timeline(train, optim.schedule)
    if "train" not in shards.sets:
        raise BadInput(f"{tokens}: has no set named train (sets: {', '.join(shards.sets) or 'none'})")
    if shards.sets["train"].trained == 0:
        raise BadInput(f"{tokens}: of the set train no token is to be trained on")
    check_mix(timeline, shards.sets["train"], tokens)
    start = Path(train.init_from).expanduser() if train.init_from else None
    if start is not None:
        check_same_tokenizer(start, tokens / "tokenizer")
    only, lora = None, None
    if train.only is not None or train.lora is not None:
        skeleton = build(model if start is None else read_shape(start), "meta")
        only = None if train.only is None else resolve(Path(train.only).expanduser(), skeleton)
        lora = None if train.lora is None else resolve_targets(train.lora, skeleton)
    tenth, eval_sets = max(1, train.steps // 10), _eval_sets(train.eval.sets, shards, tokens)
    return Plan(
        model=model,
        start=start,
        optim=optim,
        train=train,
        only=only,
        lora=lora,
        timeline=timeline,
        tokens=tokens,
        shards=shards,
        device=pick_device(train.device),
        eval_sets=eval_sets,
        questions=_questions(train, eval_sets, shards),
        eval_every=train.eval.every_steps or tenth,
        save_every=train.checkpoint_every_steps or tenth,
        fingerprint=_fingerprint(model, optim, train, tokens, start, only),
        environment=_environment(train),
    )


def resolve_vocabulary(model: ModelConfig, tokenizer_size: int) -> ModelConfig:
    """`model` with `vocab_size` set: the given one, or the tokenizer's rounded up to a multiple of 64."""
    if model.vocab_size is None:
        return model.model_copy(update={"vocab_size": padded_vocabulary(tokenizer_size)})
    if model.vocab_size < tokenizer_size:
        raise BadInput(
            f"model.vocab_size {model.vocab_size} is below the tokenizer's {tokenizer_size} tokens; "
            "leave it out to have it chosen"
        )
    return model


def _eval_sets(wanted: tuple[str, ...] | None, shards: TokenShards, tokens: Path) -> tuple[str, ...]:
    if wanted is None:
        return tuple(name for name in shards.sets if name != "train")
    for name in wanted:
        if name not in shards.sets:
            known = ", ".join(shards.sets)
            raise BadInput(
                f"train.eval.sets names '{name}', which {tokens} does not hold "
                f"(it holds {known}){nearest(name, shards.sets)}"
            )
    return wanted


def _questions(train: TrainConfig, names: tuple[str, ...], shards: TokenShards) -> dict[str, list[Question]]:
    chats = [name for name in names if shards.sets[name].trained is not None]
    texts = [name for name in names if name not in chats]
    for key, count, fit, what in (
        ("questions", train.eval.questions, chats, "conversations; of {} none holds any"),
        ("passages", train.eval.passages, texts, "plain text; of {} none holds any"),
    ):
        if count and not fit:
            raise BadInput(f"train.eval.{key} asks for {what.format(', '.join(names) or 'no set')}")
    length, found = train.sequence_length, dict[str, list[Question]]()
    if train.eval.questions:
        found |= {name: questions(shards.sets[name], length, train.eval.questions, seed=0) for name in chats}
    if train.eval.passages:
        found |= {name: passages(shards.sets[name], length, train.eval.passages, seed=0) for name in texts}
    return found


def pick_device(name: str) -> torch.device:
    """The device of `train.device`. Raises BadInput when there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise BadInput("train.device is cuda, but torch sees no CUDA device; use auto or cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


_NO_EFFECT = {"device", "keep_checkpoints", "loader_workers", "track", "checkpoint_every_steps"}
"""Fields of TrainConfig that move no number of the run."""
_PATHS = {"init_from", "only", "tokens"}
"""Fields of TrainConfig of which the content counts."""


def _fingerprint(
    model: ModelConfig,
    optim: OptimConfig,
    train: TrainConfig,
    tokens: Path,
    start: Path | None,
    only: Trained | None,
) -> str:
    unused = {"lora"} if train.lora is None else set[str]()
    about = {
        "model": model.model_dump(mode="json"),
        "optim": optim.model_dump(mode="json"),
        "train": train.model_dump(
            mode="json", exclude=dict.fromkeys(_NO_EFFECT | _PATHS | unused, True) | {"eval": {"questions", "passages"}}
        ),
        "tokens": sha256_file(tokens / MANIFEST),
        "start": None if start is None else folder_digest(start),
    }
    return digest_of(about if only is None else about | {"only": only.digest})


def folder_digest(folder: Path) -> dict[str, str]:
    """SHA-256 of a model folder's config and weights, by file name. Raises BadInput for another folder."""
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    if not files[0].is_file():
        raise BadInput(f"{files[0]}: missing; train.init_from expects a Hugging Face model folder")
    return {path.name: sha256_file(path) for path in files}


def check_same_tokenizer(start: Path, packed: Path) -> None:
    """Raise BadInput when the tokens were packed with another tokenizer than the one of the model in `start`.

    A folder without tokenizer.json, such as a freshly initialised one, has nothing to compare.
    """
    files = [folder / "tokenizer.json" for folder in (start, packed)]
    if not all(path.is_file() for path in files):
        return
    ours, theirs = (_vocabulary(path) for path in files)
    if ours != theirs:
        differ = sorted(ours.items() ^ theirs.items())
        raise BadInput(
            f"{packed}: the tokens were packed with another tokenizer than that of {start}: {len(differ)} entries "
            f"differ, first {differ[0]!r}; pack the text again with tokenizer.path: {start}"
        )


def _vocabulary(path: Path) -> dict[str, int]:
    """Every token's id, added ones included."""
    try:
        values = json.loads(path.read_bytes())
        vocabulary = values["model"]["vocab"]
        added = {one["content"]: one["id"] for one in values.get("added_tokens", [])}
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: not a tokenizer ({error})") from None
    if isinstance(vocabulary, list):  # Unigram: pairs of token and score
        vocabulary = {pair[0]: i for i, pair in enumerate(vocabulary)}
    return vocabulary | added


def _environment(train: TrainConfig) -> dict[str, str]:
    device = pick_device(train.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": f"{device.type} {name or platform.machine()}".strip(),
        "threads": str(threads(train)),
        "kernels": kernels() if device.type == "cpu" else "torch",
    }


def threads(train: TrainConfig) -> int:
    """CPU threads of the run: as configured, or one per core this process may use."""
    return train.threads or len(os.sched_getaffinity(0))


@contextmanager
def deterministic(train: TrainConfig) -> Iterator[None]:
    """Torch set up so that the same run gives the same bits; the former settings come back afterwards."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    filling: Any = import_module("torch.utils.deterministic")
    fill = filling.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads(train))
    torch.use_deterministic_algorithms(True, warn_only=True)
    filling.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        filling.fill_uninitialized_memory = fill
