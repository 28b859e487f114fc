"""Checkpoints that appear whole or not at all, and the way back from them.

A checkpoint is a published folder `checkpoints/step-N/`: `model.safetensors` and `config.json` (a Hugging
Face folder in transformers' in-memory layout, fp32; a run that trains an adapter writes that alone, as peft does), the
tokenizer, `optimizer.safetensors` (optimizer and
balancing state by parameter name), `state.json` (step, tokens, stream position, fingerprint) and
`manifest.json` with every file's SHA-256, written last. No pickle anywhere.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from trine.errors import BadInput, TrineError
from trine.manifest import publish, remove_stale, verify
from trine.model.causal import CausalModel
from trine.model.hf_config import copy_tokenizer, write_config

if TYPE_CHECKING:
    from trine.model.hf import LanguageModel
    from trine.optim.groups import Optimizers
    from trine.train.lora import LoraFactors

_MOMENTUM = "bias_momentum"


@dataclass(frozen=True)
class RunState:
    """Where a run stands: all that is needed, besides tensors, to go on bit for bit."""

    step: int
    """Optimizer steps done."""
    tokens: int
    """Tokens consumed."""
    sequence: int
    """Index of the next sequence of the training stream."""
    fingerprint: str
    """Digest of everything that decides the run: configs and the token folder."""
    environment: dict[str, str]
    """Versions, device and threads the step was computed with."""
    packing: dict[str, Any] | None = None
    """State of a stream that is mixed, changed on the way, or packed otherwise than by carry-over."""


def checkpoint_folder(run: Path, step: int) -> Path:
    """Folder of the checkpoint of `step`."""
    return run / "checkpoints" / f"step-{step}"


def list_checkpoints(run: Path) -> list[Path]:
    """Published checkpoint folders of a run, newest first."""
    found = {}
    for path in (run / "checkpoints").glob("step-*"):
        digits = path.name.removeprefix("step-")
        if digits.isdigit() and path.is_dir():
            found[int(digits)] = path
    return [found[step] for step in sorted(found, reverse=True)]


def save_checkpoint(
    run: Path,
    model: LanguageModel,
    optimizers: Optimizers,
    state: RunState,
    tokenizer: Path,
    keep: int,
    factors: LoraFactors | None = None,
) -> Path:
    """Publish the checkpoint of `state.step`, then drop all but the newest `keep`. Returns its folder."""
    target = checkpoint_folder(run, state.step)
    with publish(target, "checkpoint", {"step": state.step}) as folder:
        if factors is None:
            balancing = _write_model(folder, model, tokenizer)
        else:
            factors.write(folder)
            balancing = {}
        save_file(optimizers.state_tensors() | balancing, folder / "optimizer.safetensors")
        copy_tokenizer(tokenizer, folder)
        (folder / "state.json").write_text(json.dumps(asdict(state), indent=1) + "\n")
    for old in list_checkpoints(run)[keep:]:
        _remove(old)
    return target


def _write_model(folder: Path, model: LanguageModel, tokenizer: Path) -> dict[str, torch.Tensor]:
    """Write weights and config; the tensors that belong beside the optimizer's."""
    tensors = {name: t.detach().contiguous() for name, t in model.state_dict().items()}
    balancing = {name: tensors.pop(name) for name in list(tensors) if name.endswith(_MOMENTUM)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if isinstance(model, CausalModel):
        model.write_config(folder, dtype="float32")
    else:
        write_config(model.config, folder, dtype="float32", tokenizer=tokenizer)
    return balancing


def _remove(folder: Path) -> None:
    """Rename, then delete: a kill in between leaves no folder that looks like a checkpoint."""
    doomed = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def sweep_leftovers(run: Path) -> None:
    """Delete what killed processes left half written under `checkpoints/`."""
    for leftover in (run / "checkpoints").glob(".step-*.tmp-*"):
        remove_stale(leftover.with_name(leftover.name[1:].partition(".tmp-")[0]))


def newest_whole(run: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files all match its manifest; damaged ones are named through `say`.

    Raises TrineError when checkpoints exist but none is whole: starting over silently would hide the loss.
    """
    folders = list_checkpoints(run)
    for folder in folders:
        try:
            verify(folder, "checkpoint")
        except TrineError as error:
            say(f"skipping damaged checkpoint {folder.name}: {error}")
        else:
            return folder
    if folders:
        raise TrineError(
            f"{run / 'checkpoints'}: none of {len(folders)} checkpoints is whole; "
            "restore one from a copy, or remove them all to start over"
        )
    return None


def set_aside_newer(run: Path, kept: Path | None) -> None:
    """Rename the checkpoints newer than `kept`, which are damaged, to `damaged-step-N`: their steps come again."""
    for folder in list_checkpoints(run):
        if folder == kept:
            return
        aside = folder.with_name(f"damaged-{folder.name}")
        while aside.exists():
            aside = aside.with_name(f"{aside.name}+")
        folder.rename(aside)


def read_state(folder: Path) -> RunState:
    """The RunState of a checkpoint folder. Raises BadInput when it cannot be read."""
    path = folder / "state.json"
    try:
        return RunState(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(f"{path}: not a checkpoint's state ({error})") from None


def restore(folder: Path, model: LanguageModel, optimizers: Optimizers, factors: LoraFactors | None = None) -> None:
    """Load tensors into `model` (or the `factors` in it) and `optimizers`, exactly as they were saved."""
    optimizer_tensors = load_file(folder / "optimizer.safetensors")
    if factors is not None:
        factors.read(folder)
        optimizers.load_state_tensors(optimizer_tensors)
        return
    balancing = {n: optimizer_tensors.pop(n) for n in list(optimizer_tensors) if n.endswith(_MOMENTUM)}
    tensors = load_file(folder / "model.safetensors") | balancing
    with torch.no_grad():
        model.load_state_dict(tensors, strict=True)
    optimizers.load_state_tensors(optimizer_tensors)
