"""Models rebuilt from the tensors of others: experts from dense models, adapters out of differences.

`moe` plans every output tensor as a copy or as a computed tensor and leaves the writing to the merge engine, so it
streams, resumes and publishes as merges do; `lora` writes an adapter.
"""
