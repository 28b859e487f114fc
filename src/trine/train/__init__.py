"""The run: packed tokens enter, checkpoints and metrics.jsonl leave.

`loop.fit` is the for loop, `step.train_step` one optimizer step, `checkpoint` what survives a kill,
`metrics` what is written down. Only torch, numpy, safetensors, transformers and pydantic are needed.
"""
