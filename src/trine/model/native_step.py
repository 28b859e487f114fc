"""One token per row through AFMoE in bf16 on the CPU: `native/decode.c` over a model's weights and a cache.

Where there is no C compiler, or the model is not bf16 on the CPU, `native_step` is None and the step is torch's: the
same up to rounding.
"""

from __future__ import annotations

import ctypes
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from trine.model.afmoe import Afmoe
from trine.model.cache import Cache
from trine.moe.layer import SparseMoE
from trine.native.build import library
from trine.native.threads import on_threads

_WEIGHTS = """norm_in q k v gate o q_norm k_norm norm_attended norm_mlp mlp_gate mlp_up mlp_down norm_out router
experts_in experts_out bias keys values""".split()
_SIZES = "layers width heads kv_heads head_dim vocabulary experts top_k expert_width".split()
_ONE_AT_A_TIME = Lock()
"""Threads of a step wait for each other, so no other step may hold some of them."""


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in _WEIGHTS),
        *((name, ctypes.c_int64) for name in ("slots", "window", "rotary", "mlp_width")),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_double) for name in ("eps", "route_scale", "embedding_scale")),
        *((name, ctypes.c_void_p) for name in ("embedding", "norm", "head", "frequencies")),
        ("layer", ctypes.POINTER(_Layer)),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        ("model", ctypes.POINTER(_Model)),
        *((name, ctypes.c_int64) for name in ("rows", "threads")),
        *((name, ctypes.c_void_p) for name in ("tokens", "positions", "logits", "space")),
        ("arrived", ctypes.c_int64),
    )


class NativeStep:
    """A model and a cache as the kernel sees them; a call reads one token per row."""

    def __init__(self, lib: Any, model: Afmoe, cache: Cache) -> None:
        self._lib, self._cache, self._space = lib, cache, torch.empty(0, dtype=torch.uint8)
        lib.decode_space.restype = ctypes.c_int64
        config, head = model.config, model.output_weight
        halves = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        self._frequencies, self._vocabulary = config.rope_theta**-halves, head.shape[0]
        self._layers = (_Layer * config.num_hidden_layers)(*(_layer(model, cache, i) for i in range(len(cache.layers))))
        sizes = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.num_key_value_heads)
        more = (config.head_dim, self._vocabulary, config.num_experts, config.num_experts_per_tok)
        self._model = _Model(*sizes, *more, config.moe_intermediate_size, config.rms_norm_eps, config.route_scale)
        self._model.embedding_scale = config.hidden_size**0.5 if config.mup_enabled else 1.0
        self._model.embedding, self._model.head = model.model.embed_tokens.weight.data_ptr(), head.data_ptr()
        self._model.norm, self._model.frequencies = model.model.norm.weight.data_ptr(), self._frequencies.data_ptr()
        self._model.layer = self._layers

    def __call__(self, tokens: list[int]) -> Tensor:
        """Logits fp32 [B, V] after one token per row; the cache then holds it."""
        for layer, held in zip(self._layers, self._cache.layers, strict=True):
            layer.keys, layer.values = held.key.data_ptr(), held.value.data_ptr()
        positions, threads = torch.tensor(self._cache.append()), torch.get_num_threads()
        fed, logits = torch.tensor(tokens), torch.empty(len(tokens), self._vocabulary)
        pointers = (one.data_ptr() for one in (fed, positions, logits))
        step = _Step(ctypes.pointer(self._model), len(tokens), threads, *pointers)
        if (needed := self._lib.decode_space(ctypes.byref(step))) + 63 > len(self._space):
            self._space = torch.empty(needed + 63, dtype=torch.uint8)
        step.space = -(-self._space.data_ptr() // 64) * 64
        with _ONE_AT_A_TIME:
            on_threads(lambda thread: self._lib.decode_step(ctypes.byref(step), ctypes.c_int64(thread)), threads)
        return logits


def native_step(model: Afmoe, cache: Cache, *flags: str) -> NativeStep | None:
    """The kernel for `model` and `cache`, or None where it does not apply; `flags` are the compiler's."""
    tensors = [*model.parameters(), cache.layers[0].key]
    plain = all(one.dtype == torch.bfloat16 and one.device.type == "cpu" and one.is_contiguous() for one in tensors)
    config = model.config
    widths = (config.hidden_size, config.head_dim, config.moe_intermediate_size, config.intermediate_size)
    if not plain or any(width % 32 for width in widths):
        return None
    lib = library("decode", *flags)
    return NativeStep(lib, model, cache) if lib is not None and lib.available() else None


def _layer(model: Afmoe, cache: Cache, i: int) -> _Layer:
    """Addresses and sizes of a block; 0 for what it does not have. Keys and values move, so they are left out."""
    block: Any = model.model.layers[i]
    attention, dense = block.self_attn, block.mlp
    held: dict[str, Tensor] = {}
    if isinstance(block.mlp, SparseMoE):
        dense, experts = block.mlp.shared_experts, block.mlp.experts
        held = {"router": block.mlp.router.gate.weight, "bias": block.mlp.expert_bias}
        held |= {"experts_in": experts.gate_up_proj, "experts_out": experts.down_proj}
    modules = {
        "norm_in": block.input_layernorm,
        "q": attention.q_proj,
        "k": attention.k_proj,
        "v": attention.v_proj,
        "gate": attention.gate_proj,
        "o": attention.o_proj,
        "q_norm": attention.q_norm,
        "k_norm": attention.k_norm,
        "norm_attended": block.post_attention_layernorm,
        "norm_mlp": block.pre_mlp_layernorm,
        "mlp_gate": dense.gate_proj,
        "mlp_up": dense.up_proj,
        "mlp_down": dense.down_proj,
        "norm_out": block.post_mlp_layernorm,
    }
    held |= {name: module.weight for name, module in modules.items() if hasattr(module, "weight")}
    slots = cache.layers[i].key.shape[2]
    sizes = {"slots": slots, "window": slots if attention.local else 0, "rotary": attention.rotary}
    width = dense.gate_proj.weight.shape[0]
    return _Layer(**{name: tensor.data_ptr() for name, tensor in held.items()}, **sizes, mlp_width=width)
