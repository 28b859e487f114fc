"""Text enters, batches of tokens leave.

`corpus` reads sources into Parquet and a ledger, `tokenizer` trains the byte-level BPE, `packing` writes token
shards, `shards` is their format on disk, `pack` cuts the stream into sequences, `buffer` and `planned` fill them from
buffers of documents, mixed and in stages, `loader` makes batches. Training needs the last five alone, which import
torch and numpy.
"""
