"""A model and batches enter, scores leave. `bits` measures bits per byte."""
