"""The training loop's config."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trine.config.base import Count, Frozen
from trine.moe.config import BalanceConfig


class EvalConfig(Frozen):
    """Bits per byte on named sets, inside the loop."""

    every_steps: Count | None = Field(default=None, ge=1)
    """Evaluate after every so many steps and at the end. Default: ten times in the run."""
    max_tokens: Count = Field(default=262_144, ge=1)
    """Tokens of each set that are scored, from its beginning."""
    sets: tuple[str, ...] | None = None
    """Sets to score. Default: every set of the token folder but `train`."""


class BadBatchConfig(Frozen):
    """Bad batches planted into the stream, to see what a run does about them."""

    every_steps: Count = Field(default=100, ge=2)
    """A burst begins at every multiple of this step."""
    burst_steps: Count = Field(default=3, ge=1)
    """Steps in a burst."""
    kind: Literal["repeat", "random"] = "repeat"
    """repeat: each sequence is one token, drawn at random, over and over. random: every token is drawn at random."""

    def planted(self, step: int) -> bool:
        """Whether the batch of optimizer step `step`, counted from 1, is a bad one."""
        return step >= self.every_steps and step % self.every_steps < self.burst_steps


class TrainConfig(Frozen):
    """One pretraining run."""

    tokens: str | None = None
    """Folder of the pack stage. Default: tokens/ in the run folder."""
    steps: Count = Field(default=1000, ge=1)
    """Optimizer steps."""
    init_from: str | None = None
    """Hugging Face folder whose model and weights the run starts from (AFMoE or a dense causal model of transformers);
    the section `model` is then left out. Default: the model of `model`, randomly initialised."""
    sequence_length: Count = Field(default=512, ge=2)
    batch_sequences: Count = Field(default=16, ge=1)
    """Sequences in one optimizer step."""
    micro_batch_sequences: Count = Field(default=8, ge=1)
    """Sequences in one forward and backward pass; must divide `batch_sequences`."""
    document_mask: bool = True
    """Attention stays inside a document (Trinity Large); false lets it cross (Nano, Mini)."""
    packing: Literal["carry_over", "rsdb"] = "carry_over"
    """How documents fill sequences: end to end, or drawn at random from a buffer (RSDB, Trinity Large)."""
    rsdb_documents: Count = Field(default=4096, ge=1)
    """Nominal size of the RSDB buffer, which holds twice as many documents."""
    seed: Count = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Compute type of the matrix products; parameters, norms, router and softmax are always fp32."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads. Default: one per core this process may use. Part of what makes a run repeatable bit for bit."""
    recompute: bool = False
    """Recompute each block's activations in the backward pass: less memory, a third more work."""
    loss_chunk_tokens: Count = Field(default=1024, ge=1)
    """Tokens whose logits exist at one time."""
    z_loss: float = Field(default=0.0, ge=0)
    """Coefficient of the squared log-normaliser of the logits (Trinity Large ended with 1e-6)."""
    balance: BalanceConfig = BalanceConfig()
    bad_batches: BadBatchConfig | None = None
    eval: EvalConfig = EvalConfig()
    checkpoint_every_steps: Count | None = Field(default=None, ge=1)
    """Save after every so many steps and at the end. Default: ten times in the run."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """The newest so many are kept."""
    loader_workers: int = Field(default=1, ge=0, le=64)
    """Threads that prepare batches ahead; any number gives the same batches."""
    track: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    """Trackers that receive every metric besides metrics.jsonl."""

    @model_validator(mode="after")
    def _divides(self) -> TrainConfig:
        if self.batch_sequences % self.micro_batch_sequences:
            raise ValueError(
                f"batch_sequences {self.batch_sequences} is not a multiple of "
                f"micro_batch_sequences {self.micro_batch_sequences}"
            )
        return self
