"""Where a study's things lie, and what each of its recipes says: no work is done here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trine.config.load import Loaded, load_config
from trine.errors import BadInput
from trine.manifest import digest_of
from trine.optim.config import OptimConfig
from trine.recipe import VERB_OPTIONS, Config
from trine.study.config import Scalar
from trine.study.plan import DATA_SECTIONS, reloaded
from trine.study.spectrum.config import SpectrumStudyConfig, StartConfig, TextConfig, WayConfig


@dataclass(frozen=True)
class Cell:
    """One model on one data."""

    model: StartConfig
    data: TextConfig

    @property
    def name(self) -> str:
        return f"{self.model.name}-{self.data.name}"


class Layout:
    """A study over its output folder; `kept` is the folder of what is kept beside the page."""

    def __init__(self, path: Path, config: SpectrumStudyConfig, out: Path, kept: Path) -> None:
        """Raises BadInput for recipes that cannot be used."""
        self.path, self.config, self.out, self.kept = path, config, out, kept
        self._starts = {one.name: self._start(one) for one in config.models}
        self._texts = {one.name: self._text(one) for one in config.data}

    @cached_property
    def cells(self) -> list[Cell]:
        """Every model on every data."""
        return [Cell(model, data) for model in self.config.models for data in self.config.data]

    def reference(self, arm: WayConfig) -> WayConfig:
        """The arm whose number of parameters `arm` trains."""
        return next(one for one in self.config.arms if one.name == arm.like)

    def folder(self, cell: Cell) -> Path:
        return self.out / "cells" / cell.name

    def selection(self, cell: Cell, arm: WayConfig, seed: int | str) -> Path:
        """The file of what `arm` trains; a random one is the seed's own (`{seed}`: of whichever)."""
        drawn = f"-{seed}" if arm.rule == "random" else ""
        return self.folder(cell) / f"{arm.name}{drawn}.yaml"

    def start_run(self, model: StartConfig) -> Path:
        """The run folder of a model's pretraining; the model is in model/."""
        return self.out / "bases" / model.name

    def scan(self, model: StartConfig, measure: str) -> Path:
        return self.out / "scans" / f"{model.name}-{measure}.json"

    def texts(self, data: TextConfig) -> Path:
        return self.out / "texts" / data.name

    def data_run(self, data: TextConfig) -> Path:
        """Corpus, tokenizer and tokens of a data."""
        return self.out / "data" / data.name

    @property
    def pretraining(self) -> Path:
        """Corpus, tokenizer and tokens of the pretraining."""
        return self.out / "pretraining"

    def start(self, model: StartConfig) -> Loaded[Config]:
        """The run that pretrains a model."""
        return self._starts[model.name]

    def pretraining_data(self) -> Loaded[Config]:
        """The stages that make the tokens of the pretraining."""
        return reloaded(_data_sections(self._recipe(self.config.models[0])))

    def tuning(self, cell: Cell) -> Config:
        """What every run of a cell has in common: optim and train, from the model, on the data's tokens."""
        config = self._texts[cell.data.name]
        assert config.train is not None
        places = {
            "init_from": str(self.start_run(cell.model) / "model"),
            "tokens": str(self.data_run(cell.data) / "tokens"),
        }
        train = config.train.model_copy(update=places)
        return config.model_copy(update={"train": train, "samples": None, **dict.fromkeys(DATA_SECTIONS)})

    def tuning_data(self, data: TextConfig) -> Loaded[Config]:
        """The stages that make the tokens of a data."""
        return reloaded(_data_sections(self._texts[data.name]))

    def identity(self, model: StartConfig) -> str:
        """What is said of a model where paths differ: its name and its recipe, without the text."""
        other = self.start(model).config.model_dump(mode="json", exclude={"inputs"}, exclude_defaults=True)
        other["train"].pop("tokens")
        return f"{model.name}-{digest_of(other)[:8]}"

    def prepared(self, cell: Cell) -> Path:
        """Where it is kept what was prepared for a cell's runs."""
        arms = [arm.model_dump(mode="json", exclude={"learning_rate"}) for arm in self.config.arms]
        about = [self.identity(cell.model), arms, list(self.config.seeds), self.config.gradient_batches]
        return self.kept / f"prepared-{cell.name}-{digest_of(about)[:8]}.json"

    def read_prepared(self, cell: Cell) -> dict[str, Any] | None:
        """What was prepared; None before that."""
        path = self.prepared(cell)
        return json.loads(path.read_text()) if path.is_file() else None

    def words(self) -> dict[str, str]:
        """What stands for a path in kept runs."""
        found = {str(self.start_run(model) / "model"): self.identity(model) for model in self.config.models}
        found |= {str(self.data_run(data) / "tokens"): data.name for data in self.config.data}
        for cell in self.cells:
            for arm in self.config.arms:
                for seed in self.config.seeds:
                    path = self.selection(cell, arm, seed)
                    found[str(path)] = path.stem
        return found

    def _recipe(self, entry: StartConfig | TextConfig, **given: Scalar) -> Config:
        path = self.path.parent / entry.recipe
        words = [word for name, value in (entry.options | given).items() for word in (f"--{name}", _word(value))]
        try:
            config = load_config(Config, path, words, verb_options=VERB_OPTIONS).config
        except BadInput as error:
            raise BadInput(f"{self.path}: '{entry.name}': {error}") from None
        if config.train is None or config.pack is None or config.corpus is None:
            raise BadInput(f"{path}: '{entry.name}' of a study needs the sections corpus, pack and train")
        return config

    def _start(self, model: StartConfig) -> Loaded[Config]:
        config, first = self._recipe(model), self._recipe(self.config.models[0])
        if reloaded(_data_sections(config)).hash != reloaded(_data_sections(first)).hash:
            raise BadInput(
                f"{self.path}: '{model.name}' is pretrained on other text, or by another tokenizer, than "
                f"'{self.config.models[0].name}'; all models need the same sections {', '.join(DATA_SECTIONS)}"
            )
        assert config.train is not None
        train = config.train.model_copy(update={"tokens": str(self.pretraining / "tokens")})
        return reloaded(config.model_copy(update={"train": train, "samples": None, **dict.fromkeys(DATA_SECTIONS)}))

    def _text(self, data: TextConfig) -> Config:
        given: dict[str, Scalar] = {"tokenizer.path": str(self.pretraining / "tokenizer")}
        if data.items is not None:
            given["texts"] = str(self.texts(data))
        config = self._recipe(data, **given)
        assert config.train is not None
        if config.model is not None or config.train.init_from is not None:
            raise BadInput(f"{self.path}: '{data.name}': its recipe names a model; leave model and train.init_from out")
        for name in (self.config.held_out, self.config.forgetting):
            if name not in (config.train.eval.sets or ()):
                raise BadInput(f"{self.path}: '{data.name}': train.eval.sets of its recipe must name {name}")
        return config


def _data_sections(config: Config) -> Config:
    return config.model_copy(update={"train": None, "model": None, "samples": None, "optim": OptimConfig()})


def _word(value: Scalar) -> str:
    return value if isinstance(value, str) else json.dumps(value)
