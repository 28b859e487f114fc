"""The blocks of a model, first to last, and how many of them training leaves alone."""

from __future__ import annotations

from torch import nn

from trine.model.afmoe import Afmoe
from trine.model.hf import LanguageModel


def blocks(model: LanguageModel) -> nn.ModuleList:
    """The decoder blocks in order; of transformers' models, the list that has as many as the config says."""
    if isinstance(model, Afmoe):
        return model.model.layers
    layers = model.config.num_hidden_layers
    lists = [one for one in model.modules() if isinstance(one, nn.ModuleList)]
    return next(one for one in lists if len(one) == layers)


def frozen_blocks(model: LanguageModel) -> int:
    """How many blocks from the first no gradient has to pass: they and the embeddings are not trained."""
    embeddings = [one for one in model.modules() if isinstance(one, nn.Embedding)]
    if any(one.weight.requires_grad for one in embeddings):
        return 0
    trained = [any(p.requires_grad for p in block.parameters()) for block in blocks(model)]
    return trained.index(True) if any(trained) else len(trained)
