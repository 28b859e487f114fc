"""Text enters, batches of tokens leave.

`corpus` reads sources into Parquet and a ledger, `tokenizer` trains the byte-level BPE, `packing` writes token
shards, `shards` is their format on disk, `pack` cuts the stream into sequences, `rsdb` draws them from a buffer
of documents, `loader` makes batches. Training needs `shards`, `pack`, `rsdb` and `loader` alone, which import torch
and numpy.
"""
