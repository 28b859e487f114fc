"""A recipe run from end to end: each stage's folder into one run folder, each made once.

corpus → tokenizer → tokens → checkpoints → model (Hub layout) → parity → samples → report. Running again goes on
where it stopped: a stage whose folder is there is not made again. Heavy imports happen on use.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from trine.config.inputs import path_exists
from trine.config.load import Loaded, diff_config, read_resolved, to_yaml
from trine.errors import BadInput
from trine.manifest import digest_of, publish, read_manifest, write_file
from trine.model.config import ModelConfig
from trine.progress import Progress, silent
from trine.recipe import Config, SamplesConfig, with_vocabulary
from trine.train.metrics import Observer

_STAGES = {"corpus", "tokenizer", "tokens"}
_BYTES_PER_TOKEN = 4
"""Of English text, about; to guess the size of tokens that are not packed yet."""


class Watcher(Observer, Protocol):
    """Who watches a chain: a training observer with a progress callback."""

    @property
    def progress(self) -> Progress: ...


def run_chain(loaded: Loaded[Config], out: Path, watch: Watcher) -> dict[str, Any]:
    """Every stage the config has, into the run folder `out`. Returns what each made; the report comes last."""
    config = loaded.config
    check_machine(config)
    with claimed(loaded, out):
        made: dict[str, Any] = {"out": str(out)}
        if config.corpus is not None and not _done(out / "corpus", "corpus"):
            made["corpus"] = make_corpus(config, out / "corpus", watch.progress)
            _say_refused(made["corpus"], out / "corpus", watch)
        if config.tokenizer is not None and not _done(out / "tokenizer", "tokenizer"):
            made["tokenizer"] = make_tokenizer(config, out, out / "tokenizer", watch.progress)
        if config.pack is not None and not _done(out / "tokens", "tokens"):
            made["tokens"] = make_tokens(config, out, out / "tokens", watch.progress)
            _say_refused(made["tokens"], out / "tokens", watch)
        if config.train is not None:
            made |= _fit_and_export(config, out, watch)
            if "model" in made:
                made["parity"] = prove_parity(out, watch)
            made["samples"] = write_samples(config.samples, out, watch)
            made["report"] = str(_report(out))
    return made


def _say_refused(ledger: dict[str, Any], folder: Path, watch: Watcher) -> None:
    """Tell of conversations that a stage could not use."""
    if "rejected" in ledger:
        first, count = ledger["rejected"]["first"][0], ledger["rejected"]["records"]
        path = folder / "rejected.jsonl"
        watch.on_event(f"refused {count:,} of the records ({path}), the first, {first['path']}: {first['reason']}")


def train_run(loaded: Loaded[Config], out: Path, watch: Watcher) -> dict[str, Any]:
    """The training stage, its export and its report."""
    section(loaded, "train")
    check_machine(loaded.config)
    with claimed(loaded, out):
        made: dict[str, Any] = {"out": str(out)} | _fit_and_export(loaded.config, out, watch)
        made["report"] = str(_report(out))
    return made


def check_machine(config: Config) -> None:
    """Raise, before anything is written, for a device or a package that a later stage would miss."""
    if config.train is not None:
        import trine.report.page  # noqa: F401
        from trine.train.setup import pick_device

        pick_device(config.train.device)


def section(loaded: Loaded[Config], name: str) -> Any:
    """A section of the config that a verb cannot do without. Raises BadInput."""
    found = getattr(loaded.config, name)
    if found is None:
        raise BadInput(f"{loaded.path}: has no section '{name}:', which this verb reads")
    return found


def make_corpus(config: Config, out: Path, progress: Progress) -> dict[str, Any]:
    """The corpus stage."""
    from trine.data.corpus import build_corpus

    assert config.corpus is not None
    return build_corpus(config.corpus, out, progress)


def make_tokenizer(config: Config, run: Path, out: Path, progress: Progress) -> dict[str, Any]:
    """The tokenizer stage; the corpus is in `run` unless the config names one."""
    from trine.data.tokenizer import train_tokenizer

    assert config.tokenizer is not None
    return train_tokenizer(config.tokenizer, _folder(config.tokenizer.corpus, run / "corpus"), out, progress)


def make_tokens(config: Config, run: Path, out: Path, progress: Progress) -> dict[str, Any]:
    """The packing stage; corpus and tokenizer are in `run` unless the config names others."""
    from trine.data.packing import pack_corpus

    assert config.pack is not None
    corpus = _folder(config.pack.corpus, run / "corpus")
    return pack_corpus(config.pack, corpus, _folder(config.pack.tokenizer, run / "tokenizer"), out, progress)


def _folder(named: str | None, default: Path) -> Path:
    return Path(named).expanduser() if named else default


def _fit(config: Config, out: Path, watch: Watcher) -> dict[str, Any]:
    from trine.train.loop import fit

    assert config.train is not None
    model, tokens = config.model or ModelConfig(), _folder(config.train.tokens, out / "tokens")
    if (tokens / "index.json").is_file() and not (out / "plan.json").exists():
        write_json(out / "plan.json", plan_of(config, out, probe=False))
    return fit(model, config.optim, config.train, tokens, out, watch)


def plan_of(config: Config, out: Path, probe: bool, progress: Progress = silent) -> dict[str, Any]:
    """What the training stage into `out` will need; see `estimate.plan`. Raises BadInput."""
    from trine.estimate.machine import this_machine
    from trine.estimate.plan import make_plan
    from trine.model.shape import read_shape

    train = config.train
    assert train is not None
    tokens = _folder(train.tokens, out / "tokens")
    shape = read_shape(Path(train.init_from).expanduser()) if train.init_from else _sized_model(config, tokens)
    plan = make_plan(shape, config.optim, train, this_machine(train, out), probe, progress)
    plan["disk"]["tokens"] = _token_bytes(config, tokens, plan["model"]["vocabulary"])
    return plan


def _token_bytes(config: Config, tokens: Path, vocabulary: int) -> int | None:
    """Bytes of the packed tokens: those there, or a guess from the size of the texts; None where these are absent."""
    from trine.data.shards import token_dtype
    from trine.data.sources import list_files

    if (tokens / "index.json").is_file():
        return sum(path.stat().st_size for path in tokens.rglob("*") if path.is_file())
    sources = config.corpus.sources if config.corpus else ()
    if not sources or not all(path_exists(one.path) and not one.path.startswith("builtin:") for one in sources):
        return None
    texts = sum(path.stat().st_size for source in sources for path in list_files(source))
    return texts // _BYTES_PER_TOKEN * token_dtype(vocabulary).itemsize


def _sized_model(config: Config, tokens: Path) -> ModelConfig:
    """The config's model with the vocabulary of its tokens or of its tokenizer. Raises BadInput without either."""
    from trine.data.shards import TokenShards
    from trine.train.setup import resolve_vocabulary

    if (tokens / "index.json").is_file():
        return resolve_vocabulary(config.model or ModelConfig(), TokenShards(tokens).vocab_size)
    if config.tokenizer is not None and config.tokenizer.path is not None:
        from trine.data.tokenizer import open_tokenizer, vocabulary_size

        opened = open_tokenizer(Path(config.tokenizer.path).expanduser())
        return resolve_vocabulary(config.model or ModelConfig(), vocabulary_size(opened.tokenizer))
    model = with_vocabulary(config.model_copy(update={"model": config.model or ModelConfig()}))
    if model is None or model.vocab_size is None:
        raise BadInput("model.vocab_size is not known before the text is packed; add --model.vocab_size N")
    return model


def _fit_and_export(config: Config, out: Path, watch: Watcher) -> dict[str, Any]:
    """The training stage and, when transformers has such a model, RUN/model."""
    missing = _ablations(config)
    if missing:
        watch.on_event(f"{', '.join(missing)}: transformers has no such model, so the run ends at its checkpoints")
    made: dict[str, Any] = {"train": _fit(config, out, watch)}
    assert config.train is not None
    if config.train.lora is not None:
        made["adapter"] = export_adapter(out, watch)
    if missing or (config.train.lora is not None and not config.train.lora.merge):
        return made
    return made | {"model": export_model(out, watch)}


def _ablations(config: Config) -> tuple[str, ...]:
    """What the run's model lacks of AFMoE."""
    from trine.model.hf_config import ABLATED, architecture, read_config

    assert config.train is not None
    start = Path(config.train.init_from).expanduser() if config.train.init_from else None
    if start is None:
        return (config.model or ModelConfig()).ablations()
    return read_config(start).ablations() if architecture(start) == ABLATED else ()


def export_adapter(run: Path, watch: Watcher) -> str:
    """Publish RUN/adapter, the newest checkpoint's factors and tokenizer as peft reads them, unless it is there."""
    from trine.model.adapter import CONFIG, WEIGHTS
    from trine.model.hf_config import copy_tokenizer

    if not _done(run / "adapter", "adapter"):
        source = pick_checkpoint(run, None, watch)
        with publish(run / "adapter", "adapter") as folder:
            for name in (CONFIG, WEIGHTS):
                shutil.copyfile(source / name, folder / name)
            copy_tokenizer(source, folder)
    return str(run / "adapter")


def export_model(run: Path, watch: Watcher) -> str:
    """Publish RUN/model, the newest checkpoint (an adapter added to its base) in the Hub layout, unless it is there."""
    from trine.model.hf import export_folder

    if not _done(run / "model", "model"):
        export_folder(pick_checkpoint(run, None, watch), run / "model", progress=watch.progress)
    return str(run / "model")


def pick_checkpoint(run: Path, step: int | None, watch: Watcher) -> Path:
    """The checkpoint of `step`, or the newest whole one. Raises BadInput."""
    from trine.manifest import verify
    from trine.train.checkpoint import checkpoint_folder, list_checkpoints, newest_whole

    if not (run / "checkpoints").is_dir():
        raise BadInput(f"{run}: has no checkpoints/; expected the folder of a training run")
    if step is None:
        newest = newest_whole(run, watch.on_event)
        if newest is None:
            raise BadInput(f"{run}: has no checkpoint yet")
        return newest
    folder = checkpoint_folder(run, step)
    if not folder.is_dir():
        held = ", ".join(p.name.removeprefix("step-") for p in reversed(list_checkpoints(run))) or "none"
        raise BadInput(f"{run}: has no checkpoint of step {step} (steps: {held})")
    verify(folder, "checkpoint")
    return folder


def prove_parity(run: Path, watch: Watcher) -> dict[str, Any]:
    """Compare RUN/model with transformers once, and keep the answer. Raises CheckFailed for a no."""
    from trine.model.hf import check_parity, require_parity

    path = run / "parity.json"
    if not path.exists():
        watch.on_event("comparing logits with transformers")
        write_json(path, check_parity(run / "model"))
    record = json.loads(path.read_text())
    require_parity(record, run / "model")
    return record


def write_samples(settings: SamplesConfig | None, run: Path, watch: Watcher) -> list[dict[str, str]]:
    """Complete the config's prompts with RUN/model (the newest checkpoint where there is none) once; keep the texts."""
    from trine.completion import TextModel
    from trine.model.sampling import Sampling

    path = run / "samples.json"
    if settings is None or not settings.prompts:
        return []
    if not path.exists():
        exported = (run / "model").is_dir()
        model, samples = TextModel(run / "model" if exported else pick_checkpoint(run, None, watch)), []
        sampling = Sampling(settings.temperature, top_p=settings.top_p, seed=settings.seed)
        for i, prompt in enumerate(settings.prompts):
            watch.progress(i, len(settings.prompts), "samples: prompts")
            asked = [{"role": "user", "content": prompt}]
            tokens = model.encode_chat(asked) if settings.chat else model.encode(prompt)
            pieces = model.complete(tokens, settings.max_new_tokens, sampling)
            samples.append({"prompt": prompt, "completion": "".join(pieces)})
        write_json(path, {"samples": samples})
    return json.loads(path.read_text())["samples"]


def _report(run: Path) -> Path:
    from trine.report.page import write_report

    return write_report(run)


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON to `path`, whole or not at all."""
    write_file(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _done(folder: Path, kind: str) -> bool:
    """Whether a stage's folder is there. Raises BadInput when something else stands in its place."""
    return folder.exists() and bool(read_manifest(folder, kind))


@contextmanager
def claimed(loaded: Loaded[Config], out: Path) -> Iterator[None]:
    """Make `out` this config's run folder, or go on with it. Raises BadInput when it is another's.

    Bad input found before any work is kept leaves no folder behind.
    """
    before = {path.name for path in out.iterdir()} if out.is_dir() else None
    _claim(loaded, out)
    try:
        yield
    except BadInput:
        fresh = {path.name for path in out.iterdir()} - (before or set())
        if fresh <= {"config.yaml", "plan.json", ".lock"}:
            for name in fresh:
                (out / name).unlink()
            if before is None:
                out.rmdir()
        raise


def _claim(loaded: Loaded[Config], out: Path) -> None:
    path = out / "config.yaml"
    if path.is_file():
        former = read_resolved(path)
        if digest_of(former) != loaded.hash:
            changes = diff_config(former, loaded.resolved)
            lines = "\n".join(f"  {line}" for line in changes)
            raise BadInput(
                f"{out}: holds a run of another config; name another --out, or go back to its config:\n{lines}"
            )
        return
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out}: is a file; expected a folder to make or to go on with")
    strangers = {p.name for p in out.iterdir()} - _STAGES - {".lock"} if out.exists() else set()
    if strangers:
        raise BadInput(
            f"{out}: exists and is no run folder (it holds {sorted(strangers)[0]} and no config.yaml); "
            "name another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_file(path, to_yaml(loaded.resolved))
