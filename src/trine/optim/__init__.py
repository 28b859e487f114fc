"""Gradients enter, updated parameters leave.

`newton_schulz` orthogonalises, `muon` steps the hidden matrices, `groups` decides which parameter goes to
which optimizer and saves their state, `schedule` is the learning-rate factor. Torch only.
"""
