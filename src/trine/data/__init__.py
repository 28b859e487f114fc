"""Text enters, batches of tokens leave.

`pipeline` builds the corpus (Parquet + ledger) and packs it, `tokenizer` trains the byte-level BPE, `shards`
is the token format on disk, `pack` cuts the stream into sequences, `loader` makes batches. Only `shards`,
`pack` and `loader` are needed for training; they import torch and numpy alone.
"""
