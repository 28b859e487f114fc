"""Which parameter goes to which optimizer, and their state as plain named tensors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from trine.errors import BadInput
from trine.optim.config import AdamWConfig, MuonConfig, OptimConfig
from trine.optim.muon import Muon


def outer_names(model: nn.Module) -> set[str]:
    """Names of the embeddings, found by module type, and of the head."""
    embeddings = {f"{name}.weight" for name, one in model.named_modules() if isinstance(one, nn.Embedding)}
    return embeddings | {"lm_head.weight", "embed_out.weight"}


def optimizer_of(name: str, parameter: Tensor, config: OptimConfig, outer: set[str]) -> str:
    """`muon` or `adamw`: embedding, head, vectors and adapters to AdamW, router and hidden matrices as configured."""
    if parameter.dim() < 2 or name in outer or ".lora_" in name:
        return "adamw"
    return config.router if name.endswith("router.gate.weight") else config.matrices


class Optimizers:
    """Muon and AdamW over one model, stepped together."""

    def __init__(self, muon: Muon | None, adamw: torch.optim.AdamW | None, names: dict[Tensor, str]) -> None:
        self._all: list[torch.optim.Optimizer] = [one for one in (muon, adamw) if one is not None]
        self._names = names
        self._peaks = [[group["lr"] for group in one.param_groups] for one in self._all]

    def zero_grad(self) -> None:
        """Forget every gradient."""
        for one in self._all:
            one.zero_grad(set_to_none=True)

    def step(self, lr_factor: float) -> None:
        """One update at `lr_factor` times the peak learning rates."""
        for one, peaks in zip(self._all, self._peaks, strict=True):
            for group, peak in zip(one.param_groups, peaks, strict=True):
                group["lr"] = peak * lr_factor
            one.step()

    def state_tensors(self) -> dict[str, Tensor]:
        """Every state tensor as PARAMETER.KEY, e.g. `model.norm.weight.exp_avg`."""
        return {
            f"{self._names[parameter]}.{key}": value.contiguous()
            for one in self._all
            for parameter, state in one.state.items()
            for key, value in state.items()
        }

    @torch.no_grad()
    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_tensors` gave, bit for bit. Raises BadInput for foreign or misshaped tensors."""
        owners = {self._names[p]: (one, p) for one in self._all for g in one.param_groups for p in g["params"]}
        for one in self._all:
            one.state.clear()
        for full_name, value in tensors.items():
            name, _, key = full_name.rpartition(".")
            if name not in owners:
                raise BadInput(f"optimizer state holds '{full_name}', but no parameter is named '{name}'")
            one, parameter = owners[name]
            if value.dim() and value.shape != parameter.shape:
                raise BadInput(
                    f"optimizer state '{full_name}' has shape {list(value.shape)}, "
                    f"its parameter {list(parameter.shape)}"
                )
            one.state[parameter][key] = value.to(parameter.device, copy=True)


def build_optimizers(model: nn.Module, config: OptimConfig) -> Optimizers:
    """Assign every trainable parameter of `model` by name and shape."""
    muon: dict[int, list[Tensor]] = {}
    adamw: dict[bool, list[Tensor]] = {}
    names: dict[Tensor, str] = {}
    outer = outer_names(model)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        names[parameter] = name
        if optimizer_of(name, parameter, config, outer) == "muon":
            split = 2 if name.endswith("experts.gate_up_proj") else 1
            muon.setdefault(split, []).append(parameter)
        else:
            adamw.setdefault(parameter.dim() >= 2, []).append(parameter)
    return Optimizers(_muon(muon, config.muon), _adamw(adamw, config.adamw), names)


def _muon(groups: dict[int, list[Tensor]], config: MuonConfig) -> Muon | None:
    if not groups:
        return None
    return Muon([{"params": params, "split": split} for split, params in groups.items()], config)


def _adamw(groups: dict[bool, list[Tensor]], config: AdamWConfig) -> torch.optim.AdamW | None:
    if not groups:
        return None
    parts = [
        {"params": params, "weight_decay": config.weight_decay if decays else 0.0} for decays, params in groups.items()
    ]
    return torch.optim.AdamW(parts, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def clip_gradients(parameters: Iterable[Tensor], max_norm: float | None) -> Tensor:
    """Scale all gradients so that their global L2 norm is at most `max_norm`; the norm before that."""
    with_gradient = [p for p in parameters if p.grad is not None]
    return nn.utils.clip_grad_norm_(with_gradient, float("inf") if max_norm is None else max_norm)
