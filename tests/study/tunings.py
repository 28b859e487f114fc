"""A comparison of seconds: a tiny model of a tiny corpus, reports and conversations to tune it on."""

from __future__ import annotations

import json
from pathlib import Path

from tests.chats import write_chats
from tests.conftest import write_texts

BOOKS = """\
inputs:
  - {{name: books, default: {books}}}
corpus:
  sources:
    - {{name: books, path: "${{books}}"}}
tokenizer: {{vocab_size: 320}}
pack: {{}}
model:
  hidden_size: 32
  intermediate_size: 48
  moe_intermediate_size: 16
  num_hidden_layers: 3
  num_dense_layers: 1
  num_attention_heads: 4
  num_key_value_heads: 2
  head_dim: 16
  num_experts: 4
  num_experts_per_tok: 2
  sliding_window: 16
optim: {{muon: {{lr: 0.02}}, adamw: {{lr: 0.005}}}}
train: {{steps: 8, sequence_length: 64, batch_sequences: 4, micro_batch_sequences: 4, threads: 1}}
"""
TUNING = """\
inputs:
  - {{name: texts, kind: text, default: {folder}}}
corpus:
  sources:
{sources}
    - {{name: book, path: {folder}/heldout-book, set: books, licence: none}}
tokenizer: {{}}
pack: {{}}
optim: {{matrices: adamw}}
train:
  steps: 40
  sequence_length: 192
  batch_sequences: 2
  micro_batch_sequences: 2
  threads: 1
  checkpoint_every_steps: 5
  eval: {{every_steps: 40, max_tokens: 512, sets: [heldout, books], {asked}}}
"""
REPORTS = """\
    - {name: reports, path: "${texts}/train.jsonl", licence: public}
    - {name: reports-heldout, path: "${texts}/heldout.jsonl", set: heldout, licence: public}"""
CHATS = """\
    - {{name: sums, path: {folder}/sums.jsonl, licence: none, chat: {{}}}}
    - {{name: sums-heldout, path: {folder}/sums-heldout.jsonl, set: heldout, licence: none, chat: {{}}}}"""
STUDY = """\
title: Tiny
question: Does it matter which matrices are trained?
models: [{{name: moe, recipe: books.yaml}}]
data:
  - {{name: reports, recipe: reports.yaml, items: {folder}/items, heldout_fraction: 0.3}}
  - {{name: sums, recipe: sums.yaml}}
seeds: [0, 1]
learning_rate: {{key: optim.adamw.lr, values: [0.001, 0.002, 0.004], extensions: 1}}
gradient_batches: 2
arms:
  - {{name: full}}
  - {{name: spectrum-50, top: 50}}
  - {{name: lora, lora: true, like: spectrum-50}}
  - {{name: random, rule: random, like: spectrum-50}}
  - {{name: top-layers, rule: top-layers, like: spectrum-50}}
  - {{name: lowest-snr, rule: lowest-snr, measure: published, like: spectrum-50}}
  - {{name: gradient-norm, rule: gradient-norm, like: spectrum-50}}
compare:
  - {{arm: spectrum-50, against: random}}
"""


def write_reports(folder: Path, companies: int = 4, each: int = 2) -> Path:
    """Reports by item as JSON, of so many companies."""
    texts = sorted(write_texts(folder / "texts", companies * each * 2, seed=5).iterdir())
    (folder / "items").mkdir()
    for number in range(companies * each):
        own = [path.read_text() for path in texts[2 * number : 2 * number + 2]]
        report = {
            "cik": f"00{100 + number // each}",
            "year": 2000,
            "item_1": own[0],
            "item_7A": own[1],
            "item_3": "None.",
        }
        (folder / "items" / f"{number}.json").write_text(json.dumps(report))
    return folder / "items"


def write_tuning_study(folder: Path) -> Path:
    """The study's file in `folder`, with all that it reads beside it."""
    write_texts(folder / "books", 12)
    write_texts(folder / "heldout-book", 2, seed=1)
    write_reports(folder)
    write_chats(folder / "sums.jsonl", 80)
    write_chats(folder / "sums-heldout.jsonl", 12, seed=3)
    (folder / "books.yaml").write_text(BOOKS.format(books=folder / "books"))
    (folder / "reports.yaml").write_text(TUNING.format(folder=folder, sources=REPORTS, asked="passages: 8"))
    chats = CHATS.format(folder=folder)
    (folder / "sums.yaml").write_text(TUNING.format(folder=folder, sources=chats, asked="questions: 8"))
    (folder / "study.yaml").write_text(STUDY.format(folder=folder))
    return folder / "study.yaml"
