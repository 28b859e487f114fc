"""A recipe: one YAML file whose sections are the stages, in the order text passes them.

Every verb reads its own section of the same file; `trine run` runs all of them into one run folder.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, ModelWrapValidatorHandler, model_validator

from trine.config.base import Count, Frozen
from trine.config.inputs import InputConfig
from trine.data.config import CorpusConfig, PackConfig, TokenizerConfig
from trine.errors import BadInput, nearest
from trine.model.config import ModelConfig, padded_vocabulary
from trine.optim.config import OptimConfig
from trine.rehearsal import small_model, small_run, small_tokenizer
from trine.train.config import TrainConfig
from trine.train.timeline import Timeline

VERB_OPTIONS = ("out", "json", "help", "version", "dry-run", "keep", "quick", "seed", "dtype")
"""Options of the verbs that take a config, beside the names of its own keys and inputs."""


class SamplesConfig(Frozen):
    """Text the finished model writes, kept in the run folder and shown in the report."""

    prompts: tuple[str, ...] = ()
    chat: bool = False
    """The prompts are a user's messages, put through the model's chat template."""
    max_new_tokens: Count = Field(default=80, ge=1)
    temperature: float = Field(default=0.8, ge=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    seed: Count = Field(default=0, ge=0)


class Config(Frozen):
    """Everything a run needs, in the order data passes."""

    inputs: tuple[InputConfig, ...] = ()
    """Named values that become options of every verb that reads this file."""
    corpus: CorpusConfig | None = None
    tokenizer: TokenizerConfig | None = None
    pack: PackConfig | None = None
    model: ModelConfig | None = None
    """Without it, the defaults of every field."""
    optim: OptimConfig = OptimConfig()
    train: TrainConfig | None = None
    samples: SamplesConfig | None = None
    rehearse: Count | None = Field(default=None, ge=1)
    """Run the recipe small, in so many steps: a tiny model, every phase and schedule in proportion. The run folder's
    config has the sizes that come of it. A run that starts from a model is rehearsed on a tiny new one, whole."""

    @model_validator(mode="wrap")
    @classmethod
    def _rehearsal(cls, data: Any, validate: ModelWrapValidatorHandler[Config]) -> Config:
        config = validate(data)
        if config.rehearse is None:
            return config
        if config.train is None:
            raise ValueError("rehearse shrinks the run of `train`, which must be there")
        train, optim = small_run(config.train, config.optim, config.rehearse)
        train = train.model_copy(update={"init_from": None, "only": None, "lora": None})
        changed = {"train": train, "optim": optim, "model": small_model(config.model or ModelConfig())}
        if config.tokenizer is not None:
            changed["tokenizer"] = small_tokenizer(config.tokenizer)
        return config.model_copy(update=changed | {"rehearse": None})

    @model_validator(mode="after")
    def _inputs_differ(self) -> Config:
        names = [one.name for one in self.inputs]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two inputs are named '{name}'")
            if name in VERB_OPTIONS:
                raise ValueError(f"an input may not be named '{name}': --{name} is an option of trine")
        return self

    @model_validator(mode="after")
    def _sections_agree(self) -> Config:
        if self.train is not None and self.train.init_from and self.model is not None:
            raise ValueError("train.init_from brings its own model; leave the section model out, or train.init_from")
        if self.train is not None:
            try:
                Timeline(self.train, self.optim.schedule)
            except BadInput as error:
                raise ValueError(str(error)) from None
            self._known_sets(self.train)
        vocabulary = self.model.vocab_size if self.model else None
        if vocabulary and self.tokenizer and not self.tokenizer.path and vocabulary < self.tokenizer.vocab_size:
            raise ValueError(
                f"model.vocab_size {vocabulary} is below tokenizer.vocab_size {self.tokenizer.vocab_size}; "
                "leave it out to have it chosen"
            )
        return self

    def _known_sets(self, train: TrainConfig) -> None:
        if self.corpus is None or train.tokens is not None:
            return
        sets = {source.set for source in self.corpus.sources}
        sets |= {rule.set for rule in self.corpus.heldout}
        sets |= {"heldout"} if self.corpus.heldout_fraction else set()
        for name in train.eval.sets or ():
            if name not in sets:
                known = ", ".join(sorted(sets))
                raise ValueError(f"train.eval.sets names '{name}'; the corpus makes {known}{nearest(name, sets)}")
        sources = {source.name for source in self.corpus.sources if source.set == "train"}
        for name in (one.source for settings in train.settings() for one in settings.mix or ()):
            if name not in sources:
                known = ", ".join(sorted(sources))
                raise ValueError(f"mix names the source '{name}'; the corpus trains on {known}{nearest(name, sources)}")


def with_vocabulary(config: Config) -> ModelConfig | None:
    """The model with the vocabulary that the config's own tokenizer will have, where it gives none itself."""
    model, tokenizer = config.model, config.tokenizer
    if model is None or model.vocab_size is not None or tokenizer is None or tokenizer.path is not None:
        return model
    return model.model_copy(update={"vocab_size": padded_vocabulary(tokenizer.vocab_size)})
