"""The training loop's config."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trine.config.base import Count, Frozen
from trine.moe.config import BalanceConfig
from trine.optim.config import PhaseScheduleConfig


class EvalConfig(Frozen):
    """Bits per byte on named sets, inside the loop."""

    every_steps: Count | None = Field(default=None, ge=1)
    """Evaluate after every so many steps and at the end. Default: ten times in the run."""
    max_tokens: Count = Field(default=262_144, ge=1)
    """Tokens of each set that are scored, from its beginning."""
    sets: tuple[str, ...] | None = None
    """Sets to score. Default: every set of the token folder but `train`."""
    questions: Count = Field(default=0, ge=0)
    """So many held-out conversations of each set are also asked as multiple choice: the right answer against three of
    other conversations, by log-likelihood per byte."""
    passages: Count = Field(default=0, ge=0)
    """So many places of each set of plain text are asked likewise: the passage that follows against three from
    elsewhere in the same text."""


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


class MixConfig(Frozen):
    """A source's part in the training tokens."""

    source: str
    """Name of a source of the corpus."""
    share: float = Field(gt=0, le=1)
    """Share of the tokens; the shares of a mix sum to 1. At every moment held to within about a sequence."""
    max_epochs: float | None = Field(default=None, gt=0)
    """Most passes over the source in the whole run, all phases counted; the least that any mix says holds. A run that
    would need more is refused before it starts."""


class BatchRampConfig(Frozen):
    """A batch that grows: from `begin_sequences` to `batch_sequences`, evenly over `tokens` tokens."""

    begin_sequences: Count = Field(ge=1)
    """Sequences in the first steps; a multiple of `micro_batch_sequences`, as is every size on the way."""
    tokens: Count = Field(ge=1)
    """Tokens after which the batch is whole."""


Mix = tuple[MixConfig, ...]
Packing = Literal["carry_over", "rsdb", "best_fit"]


class PhaseConfig(Frozen):
    """What changes at a point of the run. What a phase does not name stays as it was before it."""

    begin_tokens: Count = Field(ge=1)
    """The phase begins with the first step that has so many tokens behind it."""
    sequence_length: Count | None = Field(default=None, ge=2)
    batch_sequences: Count | None = Field(default=None, ge=1)
    micro_batch_sequences: Count | None = Field(default=None, ge=1)
    batch_ramp: BatchRampConfig | None = None
    """Tokens counted from the phase's beginning. A ramp still going on when a phase begins ends there."""
    document_mask: bool | None = None
    packing: Packing | None = None
    rsdb_documents: Count | None = Field(default=None, ge=1)
    mix: Mix | None = Field(default=None, min_length=1)
    z_loss: float | None = Field(default=None, ge=0)
    schedule: PhaseScheduleConfig | None = None
    """Learning rates from here to the next phase that has a schedule, or the end; `optim.schedule` ends here."""


class LoraConfig(Frozen):
    """Low-rank adapters (LoRA, arXiv:2106.09685) in the format of peft. AdamW trains their factors."""

    rank: Count = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    """The change B A of a weight is added alpha / rank times."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of a layer's inputs that the adapter does not see in a step."""
    targets: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Linear layers by the end of their names, such as q_proj or mlp.down_proj. Default: all of them in the blocks.
    Routers and routed experts cannot be adapted."""
    merge: bool = True
    """Also write RUN/model, the base with the adapter added, beside RUN/adapter."""


class TrainConfig(Frozen):
    """One pretraining run."""

    tokens: str | None = None
    """Folder of the pack stage. Default: tokens/ in the run folder."""
    steps: Count = Field(default=1000, ge=1)
    """Optimizer steps."""
    init_from: str | None = None
    """Hugging Face folder whose model and weights the run starts from (AFMoE or a dense causal model of transformers);
    the section `model` is then left out. Default: the model of `model`, randomly initialised."""
    only: str | None = None
    """Selection file of `trine spectrum select`, or a parameter's name per line: those alone are trained. A frozen
    matrix has no gradient, no optimizer state and no fp32 copy; blocks below the lowest trained one keep no
    activations. Default: everything is trained."""
    lora: LoraConfig | None = None
    """Train adapters of the model in `init_from`, which stays as it is. Default: none."""
    sequence_length: Count = Field(default=512, ge=2)
    batch_sequences: Count = Field(default=16, ge=1)
    """Sequences in one optimizer step."""
    micro_batch_sequences: Count = Field(default=8, ge=1)
    """Sequences in one forward and backward pass; must divide `batch_sequences`."""
    document_mask: bool = True
    """Attention stays inside a document (Trinity Large); false lets it cross (Nano, Mini)."""
    packing: Packing = "carry_over"
    """How documents fill sequences: end to end; drawn at random from a buffer (RSDB, Trinity Large); or whole, with
    padding where none fits, only those longer than a sequence being cut (best_fit)."""
    rsdb_documents: Count = Field(default=4096, ge=1)
    """Nominal size of the RSDB buffer, which holds twice as many documents."""
    mix: Mix | None = Field(default=None, min_length=1)
    """Sources to train on, by share of the tokens. Default: every source, with as many tokens as it has."""
    batch_ramp: BatchRampConfig | None = None
    phases: tuple[PhaseConfig, ...] = ()
    """Changes on the way, at counts of tokens: mix, sequence length, batch, packing, learning rate."""
    seed: Count = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Compute type of the matrix products; parameters, norms, router and softmax are always fp32."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads. Default: one per core this process may use. Part of what makes a run repeatable bit for bit."""
    compile: Literal["auto", "always", "never"] = "auto"
    """Compile the blocks of an AFMoE model (about a minute, cached by torch). auto: when a C++ compiler or a GPU is
    there and the run takes at least 1e14 floating-point operations. Rounding differs from uncompiled blocks."""
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
        if self.lora is not None and (self.init_from is None or self.only is not None):
            raise ValueError("lora needs init_from, the model to adapt, and leaves no choice to only")
        begins = [phase.begin_tokens for phase in self.phases]
        if begins != sorted(set(begins)):
            raise ValueError(f"phases begin at {begins} tokens; each must begin after the one before")
        for place, settings in enumerate(self.settings()):
            try:
                _check_settings(settings)
            except ValueError as error:
                raise ValueError(f"phases.{place - 1}: {error}" if place else str(error)) from None
        return self

    def settings(self) -> list[TrainConfig]:
        """What holds from the beginning, and from the beginning of each phase on."""
        found: list[TrainConfig] = [self]
        for phase in self.phases:
            named = {name: getattr(phase, name) for name in PHASE_SETTINGS if getattr(phase, name) is not None}
            found.append(found[-1].model_copy(update={"batch_ramp": phase.batch_ramp} | named))
        return found


PHASE_SETTINGS = sorted(PhaseConfig.model_fields.keys() & TrainConfig.model_fields.keys())
"""Fields of `train` that a phase can change."""


def _check_settings(train: TrainConfig) -> None:
    batch, micro, ramp, mix = train.batch_sequences, train.micro_batch_sequences, train.batch_ramp, train.mix or ()
    if batch % micro:
        raise ValueError(f"batch_sequences {batch} is not a multiple of micro_batch_sequences {micro}")
    if ramp is not None and (ramp.begin_sequences % micro or ramp.begin_sequences > batch):
        raise ValueError(
            f"batch_ramp.begin_sequences {ramp.begin_sequences} must be a multiple of micro_batch_sequences {micro} "
            f"and at most batch_sequences {batch}"
        )
    names = [one.source for one in mix]
    if len(set(names)) < len(names):
        raise ValueError(f"mix names a source twice: {', '.join(names)}")
    total = sum(one.share for one in mix)
    if mix and abs(total - 1) > 1e-6:
        raise ValueError(f"the shares of mix sum to {total:.6g}; they must sum to 1")
