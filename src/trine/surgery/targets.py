"""The sparse architectures that dense models can be turned into: who may be a donor, names, config.json."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from trine.errors import BadInput
from trine.surgery.config import MoeConfig

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
_ATTENTION = tuple(f"self_attn.{one}_proj" for one in "qkvo")
_LLAMA = ("input_layernorm", "post_attention_layernorm", *_ATTENTION)
_QK_NORM = ("self_attn.q_norm", "self_attn.k_norm")
_AFMOE = (*_LLAMA, *_QK_NORM, "self_attn.gate_proj", "pre_mlp_layernorm", "post_mlp_layernorm")


@dataclass(frozen=True)
class Target:
    """One architecture."""

    name: str
    donors: tuple[str, ...]
    """`model_type` of the dense models that fit."""
    layer: tuple[str, ...]
    """Weights that a layer of the base must have beside its MLP."""
    expert: str = "mlp.experts.{expert}.{projection}.weight"
    router: str = "mlp.gate.weight"
    shared: Literal["none", "one", "at most one"] = "none"
    shared_stem: str = ""
    shared_gate: str = ""
    """Name of the gate of the shared expert, where there is one."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Projections that have another name in an expert."""
    biased: bool = False
    """Whether attention has biases, 0 where the donor has none."""
    expert_bias: bool = False

    def expert_name(self, expert: int, projection: str) -> str:
        """An expert's weight within a layer."""
        return self.expert.format(expert=expert, projection=self.renamed.get(projection, projection))


TARGETS = {
    "mixtral": Target(
        "mixtral",
        ("llama", "mistral"),
        _LLAMA,
        expert="block_sparse_moe.experts.{expert}.{projection}.weight",
        router="block_sparse_moe.gate.weight",
        renamed={"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"},
    ),
    "deepseek": Target(
        "deepseek", ("llama", "mistral"), _LLAMA, shared="at most one", shared_stem="mlp.shared_experts"
    ),
    "qwen": Target(
        "qwen",
        ("qwen2", "llama", "mistral"),
        _LLAMA,
        shared="one",
        shared_stem="mlp.shared_expert",
        shared_gate="mlp.shared_expert_gate.weight",
        biased=True,
    ),
    "qwen3": Target("qwen3", ("qwen3",), (*_LLAMA, *_QK_NORM)),
    "afmoe": Target(
        "afmoe",
        ("afmoe",),
        _AFMOE,
        router="mlp.router.gate.weight",
        shared="one",
        shared_stem="mlp.shared_experts",
        expert_bias=True,
    ),
}


def choose(config: MoeConfig, base: dict[str, Any], names: set[str]) -> Target:
    """The target that is asked for, or the first that fits. Raises BadInput saying why none does."""
    asked = [TARGETS[config.architecture]] if config.architecture else list(TARGETS.values())
    reasons = {one.name: "; ".join(_reasons(one, config, base, names)) for one in asked}
    fitting = [one for one in asked if not reasons[one.name]]
    if not fitting:
        raise BadInput("\n".join(f"{name}: {why}" for name, why in reasons.items()))
    return fitting[0]


def _reasons(target: Target, config: MoeConfig, base: dict[str, Any], names: set[str]) -> Iterator[str]:
    """Why a base model and a config do not fit a target."""
    kind = base.get("model_type")
    if kind not in target.donors:
        text = f"is made from dense {' or '.join(target.donors)} models, the base is {kind or 'of an unknown type'}"
        if config.architecture and (missing := lacking(target, base, names)):
            text += f"; it lacks {', '.join(missing)}"
        yield text
    shared = len(config.shared_experts or ())
    if target.shared == "none" and shared:
        yield "has no shared experts"
    elif target.shared == "one" and shared != 1:
        yield f"needs one shared expert, got {shared}"
    elif shared > 1:
        yield f"takes one shared expert, got {shared}"
    for one in config.shared_experts or ():
        if target.shared_gate and config.prompted and not one.positive_prompts:
            yield "needs positive_prompts for its shared expert, which has a gate"
        if not target.shared_gate and (one.positive_prompts or one.negative_prompts):
            yield "has no gate for shared experts, so prompts for them mean nothing"


def lacking(target: Target, base: dict[str, Any], names: set[str]) -> list[str]:
    """Tensors that a base model must have for a target and has not, one entry for a weight of several layers."""
    layers, found = base.get("num_hidden_layers") or 0, []
    for kind in (*target.layer, *(f"mlp.{one}" for one in PROJECTIONS)):
        missing = [str(i) for i in range(layers) if f"model.layers.{i}.{kind}.weight" not in names]
        if missing:
            found.append(f"model.layers.{'*' if len(missing) == layers else ','.join(missing)}.{kind}.weight")
    return found


def output_config(target: Target, config: MoeConfig, base: dict[str, Any]) -> dict[str, Any]:
    """config.json of the sparse model."""
    experts, width = len(config.experts), base["intermediate_size"]
    found = {**base, "num_experts_per_tok": config.experts_per_token}
    found.pop("mlp_bias", None)
    match target.name:
        case "mixtral":
            found |= {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": experts}
            found["sliding_window"] = None
        case "deepseek":
            remote = "deepseek-ai/deepseek-moe-16b-base--"
            found |= {"model_type": "deepseek", "architectures": ["DeepseekForCausalLM"], "n_routed_experts": experts}
            found |= {"n_shared_experts": len(config.shared_experts or ()) or None, "first_k_dense_replace": 0}
            found |= {"moe_layer_freq": 1, "scoring_func": "softmax", "norm_topk_prob": True}
            found |= {"moe_intermediate_size": width}
            found["auto_map"] = {
                "AutoConfig": f"{remote}configuration_deepseek.DeepseekConfig",
                "AutoModel": f"{remote}modeling_deepseek.DeepseekModel",
                "AutoModelForCausalLM": f"{remote}modeling_deepseek.DeepseekForCausalLM",
            }
        case "qwen":
            found |= {"model_type": "qwen2_moe", "architectures": ["Qwen2MoeForCausalLM"], "num_experts": experts}
            found |= {"shared_expert_intermediate_size": width, "sliding_window": None, "use_sliding_window": False}
            found |= _every_layer(width)
        case "qwen3":
            found |= {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": experts}
            found |= _every_layer(width)
        case "afmoe":
            found |= {"num_experts": experts, "num_dense_layers": 0, "num_shared_experts": 1}
            found |= {"moe_intermediate_size": width}
    return found


def _every_layer(width: int) -> dict[str, Any]:
    sparse = {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}
    return sparse | {"moe_intermediate_size": width}
