"""A base and studies of seconds, over a token folder that is there already."""

from __future__ import annotations

from pathlib import Path

from tests.tokens import write_tokens

BASE = """\
model:
  hidden_size: 32
  intermediate_size: 48
  moe_intermediate_size: 16
  num_hidden_layers: 2
  num_attention_heads: 4
  num_key_value_heads: 2
  head_dim: 8
  num_experts: 8
  num_experts_per_tok: 2
  sliding_window: 8
optim:
  adamw: {lr: 0.01}
train:
  tokens: %s
  steps: 40
  sequence_length: 24
  batch_sequences: 4
  micro_batch_sequences: 2
  threads: 1
  checkpoint_every_steps: 5
  eval: {every_steps: 10}
"""
STUDY = """\
title: Muon & AdamW
claim: one needs fewer tokens
base: base.yaml
seeds: [0, 1]
arms:
  - name: muon
    learning_rate: {key: optim.muon.lr, values: [0.01, 0.02, 0.04]}
  - name: sign
    changes: {train.balance.update: sign}
    learning_rate_of: muon
  - name: plain
    changes: {model.attention_gate: false}
claims:
  - {measure: bits_per_byte, arm: muon, against: sign, expected: lower}
  - {measure: bits_per_byte, arm: muon, against: plain, expected: lower}
measures: [bits_per_byte, max_vio]
plot: {curve: bits_per_byte}
"""


def write_study(folder: Path, study: str = STUDY, name: str = "tiny") -> Path:
    """FOLDER/tokens, base.yaml and NAME.yaml; the path of the study."""
    if not (folder / "tokens").exists():
        write_tokens(folder / "tokens")
    (folder / "base.yaml").write_text(BASE % (folder / "tokens"))
    path = folder / f"{name}.yaml"
    path.write_text(study)
    return path
