"""Causal language models of transformers behind the interface that the trainer needs of a model.

Parameter names are the architecture's own. What the trainer relies on is proved on a few tokens when a folder is
opened: that the logits are hidden states times the head's matrix, and that documents of a row do not see each other.
"""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trine.errors import BadInput
from trine.moe.config import BalanceConfig

_PROOF_TOLERANCE = 1e-4


class CausalModel(nn.Module):
    """A dense causal language model of transformers; its modules and names, with `hidden` in front of the head."""

    def __init__(self, peer: Any) -> None:
        super().__init__()
        self._peer = (peer,)  # in a tuple, so that its modules are registered once, under their own names
        self.config = peer.config
        head = peer.get_output_embeddings()
        self.tied = head.weight is peer.get_input_embeddings().weight
        for name, child in peer.named_children():
            if not (self.tied and child is head):
                self.add_module(name, child)
        known = inspect.signature(peer.base_model.forward).parameters
        self._cache_name = "cache" if "cache" in known else "past_key_values"
        self.compute_dtype: torch.dtype | None = None
        self._recompute = False
        self.compiled = False

    @property
    def peer(self) -> Any:
        """transformers' own model around the same parameters."""
        return self._peer[0]

    @property
    def sliding(self) -> bool:
        """Whether some layer sees a window only."""
        return any(getattr(layer, "is_sliding", False) for layer in self.new_cache().layers)

    @property
    def output_weight(self) -> Tensor:
        """The head's matrix [V, d]; the embedding's when tied."""
        return self.peer.get_output_embeddings().weight

    @property
    def recompute(self) -> bool:
        """Whether blocks are computed again in the backward pass. Setting it may raise BadInput."""
        return self._recompute

    @recompute.setter
    def recompute(self, wanted: bool) -> None:
        if wanted and not self.peer.supports_gradient_checkpointing:
            raise BadInput(f"train.recompute: {self.config.model_type} does not support it; set it to false")
        if wanted:
            renamed = getattr(self.peer, "activation_checkpointing_enable", None)
            (renamed or self.peer.gradient_checkpointing_enable)({"use_reentrant": False})
        self._recompute = wanted

    def widen_embeddings(self) -> None:
        """Give the states behind a narrow embedding the type that they have behind an fp32 one."""
        self.peer.get_input_embeddings().register_forward_hook(lambda module, given, states: states.float())

    def forward(self, tokens: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """Logits fp32 [B, T, V] for int64 tokens [B, T]; `document_ids` as in `hidden`."""
        hidden, _ = self.hidden(tokens, document_ids)
        logits = F.linear(hidden, self.output_weight.to(hidden.dtype))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def hidden(self, tokens: Tensor, document_ids: Tensor | None = None) -> tuple[Tensor, list[Any]]:
        """Final normed states [B, T, D] in the compute type, and no routing statistics.

        `document_ids` [B, T] int: attention and positions stay inside runs of equal ids.
        """
        positions = {} if document_ids is None else {"position_ids": document_positions(document_ids)}
        return self._states(tokens, use_cache=False, **positions), []

    def new_cache(self) -> Any:
        """An empty cache for `extend`, which keeps only the window on sliding layers."""
        from transformers import DynamicCache

        return DynamicCache(config=self.config)

    def extend(self, tokens: Tensor, mask_BS: Tensor, cache: Any) -> Tensor:
        """Final normed states [B, T, D] of tokens that continue what `cache` holds.

        `mask_BS` int64 marks the real tokens among those held and those that come: a row may begin later than others.
        """
        positions = (mask_BS.cumsum(1) - 1).clamp_min(0)[:, -tokens.shape[1] :]
        mask = None if bool(mask_BS.all()) else mask_BS
        given = {self._cache_name: cache, "use_cache": True, "position_ids": positions, "attention_mask": mask}
        return self._states(tokens, **given)

    def _states(self, tokens: Tensor, **given: Any) -> Tensor:
        dtype = self.compute_dtype or self.output_weight.dtype
        mixed = any(parameter.dtype != dtype for parameter in self.parameters())
        with torch.autocast(tokens.device.type, dtype=dtype, enabled=mixed):
            return self.peer.base_model(input_ids=tokens, **given).last_hidden_state.to(dtype)

    def moe_layers(self) -> dict[int, Any]:
        """None: the model is dense."""
        return {}

    def update_expert_bias(self, counts: list[Tensor], balance: BalanceConfig) -> None:
        """Nothing to move."""

    def write_config(self, folder: Path, dtype: str) -> None:
        """Write config.json and generation_config.json."""
        config = copy.deepcopy(self.config)
        config.dtype = dtype
        config.architectures = [type(self.peer).__name__]
        config.save_pretrained(folder)
        self.peer.generation_config.save_pretrained(folder)

    def write(self, folder: Path) -> None:
        """Write weights and config in the architecture's Hugging Face format, in the type they have."""
        self.peer.save_pretrained(folder)


def document_positions(document_ids: Tensor) -> Tensor:
    """Position of each token in its document, int64 [B, T]: 0 wherever the id changes."""
    index = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return index - torch.where(begins, index, 0).cummax(1).values


def load_causal(folder: Path, dtype: torch.dtype, device: str | torch.device) -> CausalModel:
    """The transformers model in `folder`, in eval mode, from safetensors and without code of the folder.

    Raises BadInput for a folder that transformers cannot read, and for a model that this trainer cannot represent.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    _refuse_config(folder)
    try:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises whatever its parts raise
        raise BadInput(f"{folder}: transformers cannot load it ({str(error).strip().splitlines()[0]})") from None
    peer, report = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            raise BadInput(f"{folder}: weights do not fit config.json: {kind} {sorted(map(str, report[kind]))[:3]}")
    head = peer.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        raise BadInput(f"{folder}: its output head is not one matrix without bias, which the loss needs")
    model = CausalModel(peer).to(device).eval()
    _prove(model, folder)
    return model


def _refuse_config(folder: Path) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_bytes())
    if values.get("quantization_config"):
        raise BadInput(
            f"{path}: quantization_config: quantised weights cannot be trained; name a full-precision folder"
        )
    for key, value in values.items():
        if value and ("dropout" in key or key.endswith("pdrop")) and not key.startswith(("summary", "classifier")):
            raise BadInput(f"{path}: {key} is {value}; dropout is not supported, set it to 0")
        if value and key.endswith("logit_softcapping"):
            raise BadInput(f"{path}: {key} is {value}; capped logits are not supported")
        if key in ("num_experts", "num_local_experts", "n_routed_experts") and value and value > 1:
            raise BadInput(f"{path}: {key} is {value}; of models with experts only AFMoE is supported")


@torch.no_grad()
def _prove(model: CausalModel, folder: Path) -> None:
    """Raise BadInput when logits are more than hidden times head, or when a document sees the one before it."""
    device, vocabulary = model.output_weight.device, model.output_weight.shape[0]
    tokens = (torch.arange(1, 9, device=device) * 7919 % vocabulary).unsqueeze(0)
    plain = model.peer(input_ids=tokens, use_cache=False).logits.float()
    tolerance = _PROOF_TOLERANCE if model.output_weight.dtype == torch.float32 else 5e-2
    kind = model.config.model_type
    if _differ(model(tokens), plain, tolerance):
        raise BadInput(f"{folder}: {kind} scales its logits after the head, which the chunked loss does not compute")
    packed = model(tokens, torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]], device=device))
    apart = torch.cat((model(tokens[:, :3]), model(tokens[:, 3:])), dim=1)
    if _differ(packed, apart, tolerance):
        raise BadInput(f"{folder}: {kind} lets documents packed into one row see each other; it cannot be trained here")


def _differ(one: Tensor, other: Tensor, tolerance: float) -> bool:
    return bool((one - other).abs().max() > tolerance * other.abs().max().clamp_min(1e-30))
