"""From router scores to balanced experts: normed activations enter, expert outputs and statistics leave.

`router` scores and selects, `experts` computes the selected experts, `balance` moves the selection bias,
`stats` turns counts into health figures, `layer` joins them. Torch only.
"""
