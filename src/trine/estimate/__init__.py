"""Config in, what a run will need out: parameters, bytes, arithmetic, disk, time.

`shape` opens the model without weights, `size` counts what follows from shapes, `probe` runs the first steps of a real
run with few layers, `trial` tells from probes what all layers take, `machine` what there is, `advice` what to change
when it does not fit; `plan` puts them together.
"""
