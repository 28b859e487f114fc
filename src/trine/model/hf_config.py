"""The small files of a Hugging Face folder: config.json both ways, generation config, tokenizer files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trine.errors import BadInput
from trine.model.config import ABLATIONS, ModelConfig
from trine.weights.index import read_mapping

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)

AFMOE = "afmoe"
ABLATED = "afmoe_ablated"
"""model_type of a model with a part switched off: no name that transformers knows, so that it cannot be loaded there as
another model than it is."""
_WRITTEN_FOR = "5.17.0"
"""The oldest transformers whose reading of these files is tested; written out, so that bits do not depend on what is
installed."""
_ABSENT: dict[str, Any] = {
    "vocab_size": 200192,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 32,
    "num_dense_layers": 1,
    "num_attention_heads": 16,
    "head_dim": 128,
    "num_experts": 64,
    "num_experts_per_tok": 6,
    "num_shared_experts": 2,
    "route_scale": 1.0,
    "sliding_window": 1024,
    "global_attn_every_n_layers": 4,
    "rms_norm_eps": 1e-5,
    "mup_enabled": False,
    "tie_word_embeddings": False,
    "max_position_embeddings": 16384,
}
"""What transformers' AfmoeConfig takes for a key that config.json leaves out."""
_FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "score_func": "sigmoid",
    "route_norm": True,
    "n_group": 1,
    "topk_group": 1,
    "num_expert_groups": 1,
    "num_limited_groups": 1,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "rope_scaling": None,
    "quantization_config": None,
}
"""Keys whose other values this model does not compute."""


def read_config(folder: Path) -> ModelConfig:
    """The shape in `folder`/config.json. Raises BadInput for another architecture or an unsupported value."""
    path = folder / "config.json"
    values = read_mapping(path)
    kind = values.get("model_type")
    if kind not in (AFMOE, ABLATED):
        raise BadInput(f"{path}: model_type is {kind!r}, expected '{AFMOE}'")
    for key, expected in _FIXED.items():
        if values.get(key, expected) != expected:
            raise BadInput(f"{path}: {key} is {values[key]!r}; only {expected!r} is supported")
    rope = values.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise BadInput(f"{path}: rope_parameters.rope_type is {rope['rope_type']!r}; only 'default' is supported")
    shape = {key: values[key] if values.get(key) is not None else absent for key, absent in _ABSENT.items()}
    shape["num_key_value_heads"] = values.get("num_key_value_heads") or shape["num_attention_heads"]
    shape["rope_theta"] = float(rope.get("rope_theta") or values.get("rope_theta") or 10000.0)
    shape["route_scale"] = float(shape["route_scale"])
    if kind == ABLATED:
        shape |= {key: values[key] for key in ABLATIONS if key in values}
    if values.get("layer_types") is not None:
        shape["layer_types"] = tuple(values["layer_types"])
    try:
        return ModelConfig(**shape)
    except (ValidationError, TypeError) as error:
        raise BadInput(f"{path}: {_first(error)}") from None


def _first(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    one = error.errors()[0]
    return f"{'.'.join(map(str, one['loc']))}: {one['msg']} (got {one['input']!r:.60})".lstrip(": ")


def architecture(folder: Path) -> str:
    """`model_type` of `folder`/config.json. Raises BadInput when it cannot be read or names none."""
    path = folder / "config.json"
    kind = read_mapping(path).get("model_type")
    if not isinstance(kind, str):
        raise BadInput(f"{path}: model_type is {kind!r}; expected the name of an architecture, such as 'afmoe'")
    return kind


def stored_dtype(folder: Path) -> str:
    """`dtype` of config.json (`torch_dtype` in older ones); float32 when it is not given."""
    values = read_mapping(folder / "config.json")
    return str(values.get("dtype") or values.get("torch_dtype") or "float32")


def end_tokens(folder: Path) -> set[int]:
    """Ids of tokens that end a text, of config.json and generation_config.json: none, one or a list of them."""
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        ids = read_mapping(folder / name).get("eos_token_id") if (folder / name).is_file() else None
        found |= {ids} if isinstance(ids, int) else set(ids or ())
    return found


def write_config(config: ModelConfig, folder: Path, dtype: str, tokenizer: Path | None) -> None:
    """Write config.json and generation_config.json; token ids of text begin and end come from `tokenizer`."""
    shape = config.model_dump(mode="json", exclude={"preset", "rope_theta", "layer_types", *ABLATIONS})
    ablated = {key: getattr(config, key) for key in ABLATIONS} if config.ablations() else {}
    values = {
        "architectures": [] if ablated else ["AfmoeForCausalLM"],
        "model_type": ABLATED if ablated else AFMOE,
        "dtype": dtype,
        **shape,
        **ablated,
        **_special_ids(tokenizer),
        **{key: value for key, value in _FIXED.items() if key != "quantization_config"},
        "initializer_range": 0.5 / config.hidden_size**0.5,
        "layer_types": list(config.layers()),
        "rope_theta": config.rope_theta,
        "use_cache": True,
        "use_grouped_mm": True,
        "transformers_version": _WRITTEN_FOR,
    }
    _write_json(folder / "config.json", values)
    generation = {"_from_model_config": True, **_special_ids(tokenizer)}
    _write_json(
        folder / "generation_config.json",
        generation | {"transformers_version": values["transformers_version"]},
    )


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def _special_ids(tokenizer: Path | None) -> dict[str, int]:
    """bos_token_id and eos_token_id, as far as `tokenizer` names them."""
    if tokenizer is None or not (tokenizer / "tokenizer_config.json").is_file():
        return {}
    named = read_mapping(tokenizer / "tokenizer_config.json")
    added = read_mapping(tokenizer / "tokenizer.json").get("added_tokens", [])
    ids = {one["content"]: one["id"] for one in added}
    tokens = {key: token_text(named.get(f"{key}_token")) for key in ("bos", "eos")}
    return {f"{key}_token_id": ids[token] for key, token in tokens.items() if token in ids}


def token_text(value: Any) -> str | None:
    """A special token of tokenizer_config.json, which is a text or a mapping with its `content`."""
    return value.get("content") if isinstance(value, dict) else value


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer files that `source` has into `folder`, whose generation then also ends where answers end."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    _end_with_answers(folder)


def _end_with_answers(folder: Path) -> None:
    """Add the token that ends an answer (`eot_token` of the tokenizer) to generation_config.json."""
    tokenizer, path = folder / "tokenizer_config.json", folder / "generation_config.json"
    end = token_text(read_mapping(tokenizer).get("eot_token")) if tokenizer.is_file() else None
    if end is None or not path.is_file():
        return
    ids = {one["content"]: one["id"] for one in read_mapping(folder / "tokenizer.json").get("added_tokens", [])}
    values = read_mapping(path)
    given = values.get("eos_token_id")
    ends = [given] if isinstance(given, int) else list(given or ())
    if end in ids and ids[end] not in ends:
        _write_json(path, values | {"eos_token_id": [*ends, ids[end]]})
