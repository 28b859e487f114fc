"""Config in, what a run will need out: parameters, bytes, arithmetic, disk, time.

`shape` opens the model without weights, `size` counts what follows from shapes, `probe` runs a few real steps of the
model with fewer layers, `plan` puts them together, `advice` says what to change when it does not fit.
"""
