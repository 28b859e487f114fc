"""Counted bytes against those of real tensors and real files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.model.shapes import random_tokens, small_config
from tests.model.test_causal import write_peer
from trine.data.loader import Batch
from trine.estimate.size import measure_size
from trine.model.afmoe import Afmoe
from trine.model.config import ModelConfig
from trine.model.init import init_model
from trine.model.shape import build, read_shape
from trine.optim.config import OptimConfig
from trine.optim.groups import build_optimizers
from trine.train.checkpoint import RunState, save_checkpoint
from trine.train.config import TrainConfig
from trine.train.step import train_step

KINDS = ["afmoe", "tied", "llama", "qwen3"]


def tensor_bytes(path: Path) -> int:
    """A safetensors file without its header."""
    data = path.read_bytes()
    return len(data) - 8 - int.from_bytes(data[:8], "little")


@pytest.mark.parametrize("matrices", ["muon", "adamw"])
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_those_of_a_trained_step_and_its_checkpoint(kind: str, matrices: str, tmp_path: Path) -> None:
    config = small_config(tie_word_embeddings=kind == "tied")
    shape = config if kind in KINDS[:2] else read_shape(write_peer(tmp_path / "peer", kind))
    optim = OptimConfig.model_validate({"matrices": matrices})
    size, model = measure_size(shape, optim, 24), build(shape)
    if isinstance(model, Afmoe):
        init_model(model, 0)
    optimizers, tokens = build_optimizers(model, optim), random_tokens(2, 24)
    train_step(model, optimizers, [Batch(tokens, tokens, None)], TrainConfig(), 1.0, 1.0)
    held = [*model.parameters(), *(b for name, b in model.named_buffers() if "inv_freq" not in name)]
    state = optimizers.state_tensors()
    assert size.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert size.optimizer == sum(one.nbytes for one in state.values())
    assert size.weights == pytest.approx(sum(one.nbytes for one in held), rel=1e-3)
    folder = save_checkpoint(tmp_path, model, optimizers, RunState(1, 0, 0, "", {}), tmp_path / "none", 1)
    assert sum(map(tensor_bytes, folder.glob("*.safetensors"))) == pytest.approx(size.checkpoint, rel=1e-3)


def test_counts_of_a_preset_take_no_memory() -> None:
    size = measure_size(ModelConfig.model_validate({"preset": "large"}), OptimConfig(), 8192)
    assert size.parameters / 1e9 == pytest.approx(398.6, abs=0.1)
    assert size.active / 1e9 == pytest.approx(13.4, abs=0.1)
    assert size.static > 4 * 10**12
