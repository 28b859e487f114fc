"""Models rebuilt from the tensors of others: experts from dense models, other tokenizers, adapters out of differences.

`moe` and `transplant` plan every output tensor as a copy or as a computed tensor and leave the writing to the merge
engine, so they stream, resume and publish as merges do; `lora` writes an adapter.
"""
