"""Hugging Face folders in and out: the per-expert layout of the Hub and transformers' stacked one.

Reading takes either layout; writing gives the Hub's. Tensors pass one at a time, so memory holds the model (when
there is one) and one shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trine.errors import BadInput, CheckFailed, nearest
from trine.manifest import publish
from trine.model.adapter import Change, is_adapter, read_adapter
from trine.model.afmoe import Afmoe
from trine.model.causal import CausalModel, load_causal
from trine.model.config import ModelConfig
from trine.model.hf_config import ABLATED, AFMOE, architecture, copy_tokenizer, read_config, stored_dtype, write_config
from trine.model.init import init_tensor
from trine.progress import Progress, silent
from trine.weights.names import Part, hub_parts
from trine.weights.reader import TensorReader
from trine.weights.writer import TensorWriter

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PARITY_TOLERANCE = 1e-5
_BIAS = ".mlp.expert_bias"
LanguageModel = Afmoe | CausalModel
"""What the trainer, the evaluation and the decoding take."""


def load_model(path: str | Path, dtype: str = "float32", device: str | torch.device = "cpu") -> LanguageModel:
    """The model in a Hugging Face folder, in eval mode: AFMoE, or a dense causal model of transformers.

    Needs config.json and safetensors, AFMoE in either layout, or an adapter that training wrote, which is added to its
    base; `dtype` is float32, bfloat16, float16 or auto (as the
    folder says), selection biases stay fp32. Raises BadInput for a folder that is damaged, unsafe or of an
    architecture that cannot be represented, naming the file and the tensor.
    """
    folder, change = _base(Path(path))
    wanted = as_dtype(stored_dtype(folder) if dtype == "auto" else dtype)
    if architecture(folder) not in (AFMOE, ABLATED):
        return _load_causal(folder, wanted, device, change)
    return _load_afmoe(folder, wanted, device, change)


def _unchanged(name: str, tensor: Tensor) -> Tensor:
    return tensor


def _base(folder: Path) -> tuple[Path, Change]:
    """The folder that has the weights, and what becomes of them: an adapter's are its base's with its change added."""
    if not is_adapter(folder):
        return folder, _unchanged
    adapter = read_adapter(folder)
    return adapter.base, adapter.added


@torch.no_grad()
def _load_causal(folder: Path, wanted: torch.dtype, device: str | torch.device, change: Change) -> CausalModel:
    model = load_causal(folder, wanted, device)
    for name, parameter in model.named_parameters():
        parameter.copy_(change(name, parameter))
    return model


def _load_afmoe(folder: Path, wanted: torch.dtype, device: str | torch.device, change: Change) -> Afmoe:
    config, reader = read_config(folder), TensorReader(folder)
    with torch.device("meta"):
        model = Afmoe(config).to(wanted)
    model.to_empty(device=device)
    for moe in model.moe_layers().values():
        moe.expert_bias = torch.zeros(config.num_experts, device=device)
        moe.bias_momentum = torch.zeros(config.num_experts, device=device)
    _fill(model, reader, change)
    return model.eval()


def as_dtype(name: str) -> torch.dtype:
    """The torch dtype of a config's word. Raises BadInput."""
    if name not in DTYPES:
        raise BadInput(f"dtype '{name}' is not one of {', '.join(DTYPES)}, auto{nearest(name, DTYPES)}")
    return DTYPES[name]


@torch.no_grad()
def _fill(model: Afmoe, reader: TensorReader, change: Change) -> None:
    for name, target in _named_tensors(model):
        for part, tensor in _stored(name, tuple(target.shape), reader):
            target[part.place].copy_(change(part.name, tensor))
    head = "lm_head.weight"
    given = reader.read(head) if model.config.tie_word_embeddings and head in reader.tensors else None
    if given is not None and not torch.equal(given.to(model.output_weight), model.output_weight):
        raise BadInput(f"{reader.folder}: tie_word_embeddings is true, but lm_head differs from the embedding")
    _refuse_strangers(model, reader)


def _refuse_strangers(model: Afmoe, reader: TensorReader) -> None:
    """Raise BadInput for a tensor that the model has no place for."""
    known = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    for name, tensor in _named_tensors(model):
        known |= {name, *(part.name for part in hub_parts(name, tuple(tensor.shape)))}
    ignored = ("rotary_emb.inv_freq", ".tokens_per_expert")
    extra = sorted(name for name in reader.tensors if name not in known and not name.endswith(ignored))
    if extra:
        raise BadInput(f"{reader.folder}: holds {len(extra)} tensors this model has no place for, first '{extra[0]}'")


def _named_tensors(model: Afmoe) -> Iterator[tuple[str, Tensor]]:
    """Parameters and selection biases: what a folder stores."""
    yield from model.named_parameters()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name.endswith(_BIAS))


def _stored(name: str, shape: tuple[int, ...], reader: TensorReader) -> Iterator[tuple[Part, Tensor]]:
    """The stored tensors that an in-memory tensor consists of, in either layout. Raises BadInput."""
    whole = name in reader.tensors
    for part in [Part(name, shape, ())] if whole else hub_parts(name, shape):
        if part.name not in reader.tensors:
            close = nearest(part.name, reader.tensors)
            raise BadInput(f"{reader.folder}: tensor '{part.name}' is missing{close}")
        stored = reader.tensors[part.name]
        if stored.shape != part.shape:
            raise BadInput(
                f"{stored.file}: '{part.name}' has shape {list(stored.shape)}, config.json says {list(part.shape)}"
            )
        yield part, reader.read(part.name)


def save_model(model: LanguageModel, path: str | Path, tokenizer: Path | None = None) -> None:
    """Publish `model` as a Hugging Face folder in the Hub layout, parameters in the type they have.

    Raises BadInput when `path` exists, or when transformers has no such model.
    """
    if isinstance(model, CausalModel):
        _save_causal(model, Path(path), tokenizer)
        return
    require_exportable(model.config)
    dtype = next(name for name, one in DTYPES.items() if one == model.model.embed_tokens.weight.dtype)
    with publish(Path(path), "model") as folder:
        with TensorWriter(folder) as writer:
            for name, tensor in _named_tensors(model):
                for part in hub_parts(name, tuple(tensor.shape)):
                    writer.add(part.name, tensor[part.place])
        _write_small_files(model.config, folder, dtype, tokenizer)


def _save_causal(model: CausalModel, path: Path, tokenizer: Path | None) -> None:
    with publish(path, "model") as folder:
        model.write(folder)
        if tokenizer is not None:
            copy_tokenizer(tokenizer, folder)


def export_folder(source: Path, out: Path, dtype: str = "float32", progress: Progress = silent) -> None:
    """Publish the model in `source` (either layout) as a folder `out` for the Hub.

    AFMoE is streamed and its selection biases stay fp32; another model is held in memory. An adapter that training
    wrote is added to its base. Raises BadInput for an ablated model.
    """
    wanted, (base, change) = as_dtype(dtype), _base(source)
    if architecture(base) not in (AFMOE, ABLATED):
        _save_causal(_load_causal(base, wanted, "cpu", change), out, source)
        return
    config, reader = read_config(base), TensorReader(base)
    require_exportable(config)
    with torch.device("meta"):
        model = Afmoe(config)
    _refuse_strangers(model, reader)
    named = [(name, tuple(tensor.shape)) for name, tensor in _named_tensors(model)]
    with publish(out, "model") as folder:
        with TensorWriter(folder) as writer:
            for done, (name, shape) in enumerate(named):
                progress(done, len(named), "export: tensors")
                kind = torch.float32 if name.endswith(_BIAS) else wanted
                for stored, tensor in _stored(name, shape, reader):
                    for part in hub_parts(stored.name, stored.shape):
                        writer.add(part.name, change(part.name, tensor[part.place]).to(kind, copy=True))
        _write_small_files(config, folder, dtype, source)


def require_exportable(config: ModelConfig) -> None:
    """Raise BadInput for a model that transformers' AfmoeForCausalLM cannot represent."""
    if config.ablations():
        raise BadInput(
            f"a model with {', '.join(config.ablations())} has no Hugging Face form: transformers' AfmoeForCausalLM "
            "always has that part. Its checkpoints open in trine (trine.load_model, trine generate)"
        )


def init_folder(
    config: ModelConfig, out: Path, seed: int = 0, dtype: str = "float32", progress: Progress = silent
) -> None:
    """Publish a randomly initialised model as a Hub-layout folder, streamed: a size never in memory whole."""
    wanted = as_dtype(dtype)
    require_exportable(config)
    with torch.device("meta"):
        named = [(name, tuple(tensor.shape)) for name, tensor in _named_tensors(Afmoe(config))]
    with publish(out, "model", {"seed": seed}) as folder:
        with TensorWriter(folder) as writer:
            for done, (name, shape) in enumerate(named):
                progress(done, len(named), "init: tensors")
                kind = torch.float32 if name.endswith(_BIAS) else wanted
                for part in hub_parts(name, shape):
                    writer.add(part.name, init_tensor(part.name, part.shape, config, seed).to(kind))
        _write_small_files(config, folder, dtype, None)


def _write_small_files(config: ModelConfig, folder: Path, dtype: str, tokenizer: Path | None) -> None:
    write_config(config, folder, dtype, tokenizer)
    if tokenizer is not None:
        copy_tokenizer(tokenizer, folder)


@torch.no_grad()
def check_parity(folder: Path, tokens: Tensor | None = None) -> dict[str, Any]:
    """Load `folder` in transformers and in trine, both fp32 on the CPU, and compare the logits of `tokens`.

    `tokens` int64 [B, T]; default: 2 x 256 drawn at random. The figure is max |a - b| / max |b|, b being
    transformers'. Returns the record of parity.json; `require_parity` turns a no into an error.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = load_model(folder)
    if tokens is None:
        length = min(256, model.config.max_position_embeddings)
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, model.output_weight.shape[0], (2, length), generator=generator)
    ours = model(tokens)
    del model
    peer = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    ).eval()
    theirs = peer(input_ids=tokens, use_cache=False).logits
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    return {
        "passed": difference <= PARITY_TOLERANCE,
        "max_relative_logit_difference": difference,
        "tolerance": PARITY_TOLERANCE,
        "tokens": tokens.numel(),
        "parameters": sum(p.numel() for p in peer.parameters()),
        "transformers": transformers.__version__,
    }


def require_parity(record: dict[str, Any], folder: Path) -> None:
    """Raise CheckFailed when a parity record says no."""
    if not record["passed"]:
        raise CheckFailed(
            f"{folder}: logits differ from transformers {record['transformers']} by "
            f"{record['max_relative_logit_difference']:.2e} relative, tolerance {record['tolerance']:.0e}"
        )
