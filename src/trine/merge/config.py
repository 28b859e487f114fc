"""A merge config, in mergekit's YAML, as frozen models. Every key of mergekit 0.1.5 is known; any other is an error."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from trine.config.base import Frozen
from trine.merge.catalog import SPECS

MethodName = Literal[
    "linear",
    "slerp",
    "nuslerp",
    "multislerp",
    "karcher",
    "task_arithmetic",
    "ties",
    "dare_ties",
    "dare_linear",
    "della",
    "della_linear",
    "breadcrumbs",
    "breadcrumbs_ties",
    "model_stock",
    "nearswap",
    "sce",
    "arcee_fusion",
    "ram",
    "ramplus_tl",
    "passthrough",
]
DTYPES = ("bfloat16", "float16", "float32", "float64")
DtypeName = Literal[
    "bfloat16",
    "float16",
    "float32",
    "float64",
    "torch.bfloat16",
    "torch.float16",
    "torch.float32",
    "torch.float64",
]
Setting = Any
"""A number, a truth value, a list of them (a gradient over the layers), `{value, filter}`, or a list of those."""
Parameters = dict[str, Setting]
Name = Annotated[str, Field(min_length=1)]
assert set(SPECS) == set(MethodName.__args__)


class ModelPath(Frozen):
    """A folder, or a repository of the Hub's cache on this machine."""

    path: Name
    """A model folder, or a name such as `org/model` that the Hub's cache holds."""
    revision: Name | None = None
    """A branch, tag or commit in the Hub's cache."""

    def __str__(self) -> str:
        return self.path + (f"@{self.revision}" if self.revision else "")


class ModelReference(Frozen):
    """A model, written `path[@revision][+lora[@revision]]`."""

    model: ModelPath
    """The model's folder."""
    lora: ModelPath | None = None
    """An adapter that is added to the model."""
    override_architecture: Name | None = None
    """Accepted for mergekit's sake: tensors are matched by name alone, so it changes nothing."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        parts = [one.split("@") for one in value.split("+")]
        if len(parts) > 2 or any(len(one) > 2 or not all(one) for one in parts):
            raise ValueError(f"got '{value}', expected path[@revision][+lora[@revision]]")
        paths = [{"path": one[0], "revision": one[1] if len(one) == 2 else None} for one in parts]
        return {"model": paths[0], "lora": paths[1] if len(paths) == 2 else None}

    def __str__(self) -> str:
        return str(self.model) + (f"+{self.lora}" if self.lora else "")


class InputModel(Frozen):
    """One of `models`."""

    model: ModelReference
    """The model, `path[@revision][+lora]`."""
    parameters: Parameters | None = None
    """Parameters of this model alone."""


class Source(Frozen):
    """One model's part of a slice."""

    model: ModelReference
    """The model, `path[@revision][+lora]`."""
    layer_range: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
    """The first layer and the one after the last."""
    parameters: Parameters | None = None
    """Parameters of this model in this slice alone."""


class OutputSlice(Frozen):
    """Layers of the output, merged from as many layers of each source."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    """One entry per model."""
    base_model: ModelReference | None = None
    """Base of this slice, in place of the config's."""
    residual_weight: float | None = None
    """Accepted for mergekit's sake, which does not use it either."""
    parameters: Parameters | None = None
    """Parameters of this slice."""


class Module(Frozen):
    """One part of a model of several parts, such as the vision tower of a vision-language model."""

    models: Annotated[tuple[InputModel, ...], Field(min_length=1)] | None = None
    """Whole parts to merge."""
    slices: Annotated[tuple[OutputSlice, ...], Field(min_length=1)] | None = None
    """Or layers to stack."""
    parameters: Parameters | None = None
    """Parameters of this part."""


class TokenSource(Frozen):
    """Whose row a token's is: a model's for it (`model`, or its path alone), for another token, or zeros."""

    kind: Literal["model", "model_token", "zero"] = "model"
    """The model's row of the same token, of the token that is named, or zeros."""
    model: ModelReference | None = None
    """One of the models that are merged."""
    token: Name | None = None
    """For model_token: the token whose row it is."""
    token_id: Annotated[int, Field(ge=0)] | None = None
    """For model_token: its id, in place of its text."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        whole = isinstance(value, str) or (
            isinstance(value, dict) and "kind" not in value and isinstance(value.get("model"), dict)
        )
        return {"model": value} if whole else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.model is None) != (self.kind == "zero"):
            raise ValueError(f"kind {self.kind} {'takes no' if self.model else 'needs a'} model")
        given = (self.token is not None) + (self.token_id is not None)
        if given != (self.kind == "model_token"):
            wanted = "one of" if self.kind == "model_token" else "no"
            raise ValueError(f"kind {self.kind} takes {wanted} token, token_id")
        return self


class TokenRow(Frozen):
    """What is said about one token."""

    source: TokenSource | None = None
    """Where the row of models that lack the token comes from."""
    force: bool = False
    """Whether models that have the token get that row too."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.force and self.source is None:
            raise ValueError("force needs a source")
        return self


class Tokenizer(Frozen):
    """The output's tokenizer."""

    source: Literal["union", "base"] | ModelReference = "union"
    """The base model's, another model's, or every token of all."""
    tokens: dict[str, TokenRow] | None = None
    """Tokens whose embeddings are said one by one."""
    pad_to_multiple_of: Annotated[int, Field(ge=1)] | None = None
    """Rows of the embeddings are padded to a multiple of this."""


class MergeConfig(Frozen):
    """The whole config."""

    merge_method: MethodName
    """How tensors are merged."""
    models: Annotated[tuple[InputModel, ...], Field(min_length=1)] | None = None
    """Whole models to merge."""
    slices: Annotated[tuple[OutputSlice, ...], Field(min_length=1)] | None = None
    """Or layers to stack, each slice merged on its own."""
    modules: Annotated[dict[str, Module], Field(min_length=1)] | None = None
    """Or either of them for each part of a model of several parts."""
    base_model: ModelReference | None = None
    """The model that differences are taken from."""
    dtype: DtypeName | None = None
    """Type of the numbers; with `numerics: mergekit` that of the arithmetic too."""
    out_dtype: DtypeName | None = None
    """Type of the output, where it is not `dtype`."""
    tokenizer_source: Literal["union", "base"] | ModelReference | None = None
    """The output's tokenizer, short form."""
    tokenizer: Tokenizer | None = None
    """The output's tokenizer."""
    chat_template: Name | None = None
    """`auto` (that of most models), alpaca, chatml, exaone, llama3, mistral, or a Jinja template."""
    parameters: Parameters | None = None
    """Parameters of every tensor that no narrower scope gives."""
